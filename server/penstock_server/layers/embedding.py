"""Token embedding and language-model head, both split over the vocabulary.

Shapes: T tokens, S sampled tokens, C channels, V the vocabulary. A rank holds ceil(V / ranks) ids, the last one fewer,
so that logits join without gaps.
"""

import torch

from penstock_kernels import linear
from penstock_kernels.embedding import embedding
from penstock_server.layers.linear import LoadContext


class VocabParallelEmbedding:
    """Looks up ids; the table stays in the checkpoint's dtype, since rows are widened after they are read."""

    def __init__(self, context: LoadContext, name: str, vocab_size: int, channels: int) -> None:
        self._ids = context.parallel.split.padded_part(vocab_size)
        stored = context.reader.read(f"{name}.weight", (vocab_size, channels), (self._ids,))
        self.table = stored.to(device=context.device, copy=True)  # [this rank's ids, C]
        self._dtype = context.dtype
        self._parallel = context.parallel

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T, C] from int64 [T]."""
        return self._parallel.all_reduce(embedding(token_ids, self.table, self._ids.start, self._dtype))


class LmHead:
    """Logits of the whole vocabulary on every rank."""

    def __init__(self, context: LoadContext, table: torch.Tensor, vocab_size: int) -> None:
        """`table` [this rank's ids, C]: the stored weight, or the embedding's table where the two are tied."""
        rows = -(-vocab_size // context.parallel.size)
        if table.dtype == context.dtype and table.shape[0] == rows:
            weight = table
        else:
            weight = torch.zeros(rows, table.shape[1], dtype=context.dtype, device=context.device)
            weight[: table.shape[0]].copy_(table)
        self._linear = linear.prepare(weight)
        self._parallel = context.parallel
        self._vocab_size = vocab_size

    @classmethod
    def load(cls, context: LoadContext, name: str, vocab_size: int, channels: int) -> "LmHead":
        """A head with a weight of its own."""
        part = context.parallel.split.padded_part(vocab_size)
        stored = context.reader.read(f"{name}.weight", (vocab_size, channels), (part,))
        return cls(context, stored.to(context.device), vocab_size)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [S, V] from [S, C]."""
        return self._parallel.all_gather(self._linear(hidden))[:, : self._vocab_size].float()
