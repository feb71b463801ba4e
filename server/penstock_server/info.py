"""What a shard says about itself: the facts of its model and config -> `InfoResponse`."""

from dataclasses import dataclass

from penstock_server.config import ShardConfig
from penstock_server.pb.shard.v1 import shard_pb2
from penstock_server.plan_checks import PROTOCOL_VERSION, PlanLimits


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """Known before any weight is read."""

    architecture: str
    dtype: str  # compute type
    device_type: str
    max_positions: int
    bytes_per_block: int


def info_response(
    config: ShardConfig, facts: ShardFacts, limits: PlanLimits, ready: bool, batch_invariant: bool
) -> shard_pb2.InfoResponse:
    """`limits.num_blocks` counts only once the shard is ready."""
    group = shard_pb2.KvGroup(
        kind=shard_pb2.KV_GROUP_KIND_FULL,
        tokens_per_block=config.tokens_per_block,
        bytes_per_block=facts.bytes_per_block,
        num_blocks=limits.num_blocks if ready else 0,
    )
    return shard_pb2.InfoResponse(
        protocol=PROTOCOL_VERSION,
        rank=config.rank,
        num_ranks=config.num_ranks,
        architecture=facts.architecture,
        dtype=facts.dtype,
        device_type=facts.device_type,
        vocab_size=limits.vocab_size,
        # A request can be no longer than the config allows, however far the model's positions reach.
        max_positions=min(facts.max_positions, config.max_seq_len),
        groups=[group],
        num_seats=limits.num_seats,
        num_penalty_lanes=limits.num_penalty_lanes,
        decode_sizes=limits.decode_sizes,
        mixed_sizes=limits.mixed_sizes,
        depth=config.step_depth,
        features=[],
        batch_invariant=batch_invariant,
        max_top_logprobs=limits.max_top_logprobs,
    )
