"""The padded sizes that a shard offers in `Info`, and the limits of a plan that follow from its config."""

from penstock_server.config import ALL_REDUCES, LOAD_FORMATS, ShardConfig
from penstock_server.logs import LEVELS
from penstock_server.plan_checks import PlanLimits

MAX_TOP_LOGPROBS = 20

DECODE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Padding costs a mixed step at most a few per cent of its tokens beyond the smallest sizes: (up to, in steps of).
MIXED_STEPS = ((16, 8), (64, 16), (256, 32), (1024, 64), (4096, 256))
LARGEST_MIXED_STEP = 1024


def decode_sizes(max_rows: int) -> tuple[int, ...]:
    """Padded rows of decode steps; the last is `max_rows`. Beyond 256 rows in steps of 256."""
    larger = range(512, max_rows, 256)
    return (*(size for size in (*DECODE_SIZES, *larger) if size < max_rows), max_rows)


def mixed_sizes(max_tokens: int) -> tuple[int, ...]:
    """Padded tokens of mixed steps; the last is `max_tokens`."""
    sizes: list[int] = []
    start = 0
    for end, step in (*MIXED_STEPS, (max_tokens, LARGEST_MIXED_STEP)):
        sizes += range(start + step, end + 1, step)
        start = max(start, end)
    return (*(size for size in sizes if size < max_tokens), max_tokens)


def blocks_per_seat(max_seq_len: int, tokens_per_block: int) -> int:
    """Entries of a seat's block table: a power of two, so that a step may read any power of two of them."""
    num_blocks = -(-max_seq_len // tokens_per_block)
    return int(1 << (num_blocks - 1).bit_length())


def plan_limits(config: ShardConfig, num_blocks: int, vocab_size: int) -> PlanLimits:
    """What plans may refer to."""
    return PlanLimits(
        num_seats=config.num_seats,
        num_penalty_lanes=config.num_penalty_lanes,
        num_blocks=num_blocks,
        blocks_per_seat=blocks_per_seat(config.max_seq_len, config.tokens_per_block),
        vocab_size=vocab_size,
        max_rows=config.max_rows,
        max_tokens=config.max_step_tokens,
        max_seq_len=config.max_seq_len,
        max_top_logprobs=min(MAX_TOP_LOGPROBS, vocab_size),
        decode_sizes=decode_sizes(config.max_rows),
        mixed_sizes=mixed_sizes(config.max_step_tokens),
    )


def check_config(config: ShardConfig) -> None:
    """Raises ValueError that names the key."""
    for name in ("num_ranks", "tokens_per_block", "max_rows", "max_seq_len", "num_seats", "step_depth", "num_threads"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} {getattr(config, name)} must be at least 1")
    if config.max_seq_len < 2:
        raise ValueError(f"max_seq_len {config.max_seq_len} holds no prompt and answer")
    if not 0 <= config.rank < config.num_ranks:
        raise ValueError(f"rank {config.rank} is not one of {config.num_ranks} ranks")
    if config.max_step_tokens < config.max_rows:
        raise ValueError(f"max_step_tokens {config.max_step_tokens} is below max_rows {config.max_rows}")
    if config.num_seats < config.max_rows or config.num_seats >= 1 << 24:
        raise ValueError(f"num_seats {config.num_seats} is not between max_rows {config.max_rows} and 2^24 - 1")
    if config.log_level not in LEVELS:
        raise ValueError(f"log_level {config.log_level!r} is not one of {', '.join(LEVELS)}")
    if config.all_reduce not in ALL_REDUCES:
        raise ValueError(f"all_reduce {config.all_reduce!r} is not one of {', '.join(ALL_REDUCES)}")
    if config.load_format not in LOAD_FORMATS:
        raise ValueError(f"load_format {config.load_format!r} is not one of {', '.join(LOAD_FORMATS)}")
    if config.num_penalty_lanes < 0:
        raise ValueError(f"num_penalty_lanes {config.num_penalty_lanes} is negative")
    if config.num_blocks is not None and config.num_blocks < 2:
        raise ValueError(f"num_blocks {config.num_blocks} leaves no block beside the scratch block 0")
