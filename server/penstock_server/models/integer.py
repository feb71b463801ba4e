"""A model whose next token is an exact, order-sensitive hash of what it finds in the pages of its KV cache.

A slot's key is the token's id and its value the token's position. For layer l and KV head h of the H heads of the whole
model, i = l * H + h and B_i = 1,000,003 + 7,919 i, a sequence of n tokens hashes to

    S = sum over i and p < n of (mix(token_p, position_p) * B_i^(p+1) mod P) mod P,    P = 2^31 - 1,
    mix(token, position) = (48,271 token + 69,621 position + 12,345) mod P,

and the next token is S mod (V - 1). Any block, order, length or head that is wrong changes it. Token V - 1 stores NaN,
and a row that reads a NaN has NaN logits. Shapes: T tokens, R rows, N slots of a row's pages, H KV heads of this rank.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock_server.batch import ForwardBatch
from penstock_server.kv_cache import KvCache
from penstock_server.models.base import KvSpec
from penstock_server.models.source import ModelDescription, ModelSource
from penstock_server.parallel import Split, TensorParallel

PRIME = 2**31 - 1
# Ids and positions are stored as float32, which holds integers up to here exactly.
LARGEST_EXACT = 2**24
# Added to a token's sum when it read a NaN: larger than the sums of all ranks together.
NAN_MARK = 2**48


@dataclass(frozen=True, slots=True)
class IntegerConfig:
    """The keys of config.json that the model reads."""

    vocab_size: int
    num_layers: int
    num_kv_heads: int  # of the whole model
    max_positions: int

    @classmethod
    def from_folder(cls, folder: Path) -> "IntegerConfig":
        """Raises ValueError for a missing key or a size that float32 cannot hold exactly."""
        values = json.loads((folder / "config.json").read_text())
        try:
            config = cls(
                vocab_size=values["vocab_size"],
                num_layers=values["num_hidden_layers"],
                num_kv_heads=values["num_key_value_heads"],
                max_positions=values["max_position_embeddings"],
            )
        except KeyError as missing:
            raise ValueError(f"{folder / 'config.json'} has no {missing}") from None
        if not 3 <= config.vocab_size <= LARGEST_EXACT or config.max_positions > LARGEST_EXACT:
            raise ValueError(f"vocab_size and max_position_embeddings of an integer model end at {LARGEST_EXACT}")
        return config


def describe(folder: Path, split: Split, device: torch.device, dtype: str) -> ModelDescription:
    """See `models.describe`. The model computes in integers, and stores float32 whatever is asked for."""
    config = IntegerConfig.from_folder(folder)
    return ModelDescription(
        "PenstockIntegerForCausalLM", config.vocab_size, config.max_positions, _kv_spec(config, split)
    )


def load(source: ModelSource, parallel: TensorParallel) -> "IntegerModel":
    """See `models.load`. There are no weights."""
    return IntegerModel(IntegerConfig.from_folder(source.folder), parallel, source.device)


def _kv_spec(config: IntegerConfig, split: Split) -> KvSpec:
    if config.num_kv_heads % split.size:
        raise ValueError(f"{config.num_kv_heads} key-value heads do not divide by {split.size} ranks (--num-shard)")
    return KvSpec(config.num_layers, config.num_kv_heads // split.size, head_dim=1, dtype=torch.float32)


class IntegerModel:
    """`Model` over a paged cache of (id, position). Its hidden state is the sum S, -1 where a NaN was read."""

    def __init__(self, config: IntegerConfig, parallel: TensorParallel, device: torch.device) -> None:
        self.vocab_size = config.vocab_size
        self.kv_spec = _kv_spec(config, parallel.split)
        heads = self.kv_spec.num_kv_heads
        self._parallel = parallel
        first_head = parallel.rank * heads
        self._powers = [
            torch.stack(
                [powers(1_000_003 + 7_919 * (layer * config.num_kv_heads + first_head + head), config.max_positions)
                 for head in range(heads)], dim=1,
            ).to(device)
            for layer in range(config.num_layers)
        ]  # fmt: skip

    def forward(self, batch: ForwardBatch, kv: KvCache) -> torch.Tensor:
        """int64 [T, 1]: the sums over all heads of all ranks."""
        attention = batch.attention
        row_of_token = torch.searchsorted(attention.query_starts[1:], self._token_index(batch), right=True).clamp_max(
            attention.block_table.shape[0] - 1
        )  # padded tokens belong to no row: any will do
        total = torch.zeros_like(batch.positions)
        for layer, weights in enumerate(self._powers):
            self._store(batch, kv, layer)
            total = total + self._row_sums(batch, kv, layer, weights)[row_of_token, batch.positions]
        if self._parallel.size > 1:
            total = self._parallel.all_reduce(total)
        return torch.where(total >= NAN_MARK, -1, total % PRIME).unsqueeze(1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [S, V]: 0 at the next token, falling by 1 from each id to the one after it, cyclically."""
        sums = hidden.squeeze(1)
        following = torch.remainder(sums, self.vocab_size - 1)
        ids = torch.arange(self.vocab_size, device=sums.device)
        logits = -torch.remainder(ids - following.unsqueeze(1), self.vocab_size).float()
        return torch.where((sums < 0).unsqueeze(1), torch.nan, logits)

    @staticmethod
    def _token_index(batch: ForwardBatch) -> torch.Tensor:
        return torch.arange(batch.positions.shape[0], dtype=torch.int32, device=batch.positions.device)

    def _store(self, batch: ForwardBatch, kv: KvCache, layer: int) -> None:
        """Writes id and position of every token into its slot, in all heads; NaN for the NaN token."""
        is_nan = batch.token_ids == self.vocab_size - 1
        for pool, values in ((kv.keys[layer], batch.token_ids), (kv.values[layer], batch.positions)):
            stored = torch.where(is_nan, torch.nan, values.float())
            flat = pool.view(-1, self.kv_spec.num_kv_heads)
            flat.index_copy_(0, batch.attention.slot_mapping, stored.unsqueeze(1).expand(-1, flat.shape[1]))

    def _row_sums(self, batch: ForwardBatch, kv: KvCache, layer: int, weights: torch.Tensor) -> torch.Tensor:
        """int64 [R, N]: entry p is the layer's sum over the slots 0..p of the row's pages, this rank's heads only."""
        table = batch.attention.block_table
        num_rows, num_slots = table.shape[0], table.shape[1] * kv.tokens_per_block
        pages = [pool.index_select(0, table.reshape(-1)).view(num_rows, num_slots, -1)
                 for pool in (kv.keys[layer], kv.values[layer])]  # fmt: skip
        nan = (pages[0].isnan() | pages[1].isnan()).any(dim=2)
        tokens, positions = (page.nan_to_num(nan=0.0).long() for page in pages)
        mixed = (tokens * 48_271 + positions * 69_621 + 12_345) % PRIME
        # A row's pages may reach beyond the last position; no token stands there.
        used = min(num_slots, weights.shape[0])
        terms = (mixed[:, :used] * weights[:used] % PRIME).sum(dim=2)
        return terms.cumsum(dim=1) % PRIME + nan[:, :used].long().cummax(dim=1).values * NAN_MARK


def powers(base: int, count: int) -> torch.Tensor:
    """int64 [count]: base^1 .. base^count modulo PRIME, by doubling."""
    result = torch.tensor([base % PRIME])
    while result.numel() < count:
        result = torch.cat([result, result * result[-1] % PRIME])
    return result[:count].clone()
