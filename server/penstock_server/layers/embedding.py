"""Token embedding and language-model head, both split over the vocabulary.

Shapes: T tokens, S sampled tokens, C channels, V the vocabulary. A rank holds ceil(V / ranks) ids, the last one fewer,
so that logits join without gaps.
"""

import logging

import torch

from penstock_kernels import linear
from penstock_kernels.embedding import embedding
from penstock_server.layers.linear import LoadContext

_log = logging.getLogger(__name__)


class VocabParallelEmbedding:
    """Looks up ids; the table stays in the checkpoint's dtype, since rows are widened after they are read."""

    def __init__(self, context: LoadContext, name: str, vocab_size: int, channels: int) -> None:
        self.table = _read_rows(context, name, vocab_size, channels)
        self._first_id = context.parallel.rank * self.table.shape[0]
        self._dtype = context.dtype
        self._parallel = context.parallel

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T, C] from int64 [T]."""
        return self._parallel.all_reduce(embedding(token_ids, self.table, self._first_id, self._dtype))


class LmHead:
    """Logits of the whole vocabulary on every rank."""

    def __init__(self, context: LoadContext, table: torch.Tensor, vocab_size: int) -> None:
        """`table` [this rank's ids, C]: that of the embedding where the two are tied.

        Where weights are packed, a tied table is kept twice: the packed copy cannot be looked up. A checkpoint of 16
        bits pays a half of its own float32 size for that.
        """
        self._linear = linear.prepare(table.to(context.dtype))
        self._parallel = context.parallel
        self._vocab_size = vocab_size

    @classmethod
    def load(cls, context: LoadContext, name: str, vocab_size: int, channels: int) -> "LmHead":
        """A head with a weight of its own."""
        return cls(context, _read_rows(context, name, vocab_size, channels), vocab_size)

    @classmethod
    def tied(cls, context: LoadContext, name: str, embedding: VocabParallelEmbedding, vocab_size: int) -> "LmHead":
        """The embedding's table, unless the checkpoint also holds a weight `name` of other values: then that one."""
        table = embedding.table
        if f"{name}.weight" in context.reader:
            stored = _read_rows(context, name, vocab_size, table.shape[1])
            if stored.dtype != table.dtype or not torch.equal(stored, table):
                _log.warning("%s.weight differs from the embedding: it is used, though the config ties the two", name)
                table = stored
        return cls(context, table, vocab_size)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [S, V] from [S, C]."""
        return self._parallel.all_gather(self._linear(hidden))[:, : self._vocab_size].float()


def _read_rows(context: LoadContext, name: str, vocab_size: int, channels: int) -> torch.Tensor:
    """[ceil(V / ranks), C] in the stored dtype: this rank's rows, zeros where the last ranks have none."""
    part = context.parallel.split.padded_part(vocab_size)
    stored = context.reader.read(f"{name}.weight", (vocab_size, channels), (part,))
    num_rows = -(-vocab_size // context.parallel.size)
    if stored.shape[0] == num_rows:
        return stored.to(device=context.device, copy=not stored.is_cuda)  # what was read onto a GPU is ours
    table = torch.zeros(num_rows, channels, dtype=stored.dtype, device=context.device)
    table[: stored.shape[0]].copy_(stored)
    return table
