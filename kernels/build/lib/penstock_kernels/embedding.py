"""Looks up token embeddings in one rank's part of the vocabulary.

Shapes: T tokens, V rows of this rank's table, C channels.
"""

import torch

from penstock_kernels.triton_support import uses_triton


def embedding(token_ids: torch.Tensor, table: torch.Tensor, first_id: int, dtype: torch.dtype) -> torch.Tensor:
    """[T, C] in `dtype`: rows of `table` [V, C], which holds ids first_id .. first_id + V - 1; zeros for other ids."""
    if uses_triton(table):
        from penstock_kernels.embedding_triton import embedding_triton

        return embedding_triton(token_ids, table, first_id, dtype)
    return embedding_cpu(token_ids, table, first_id, dtype)


def embedding_cpu(token_ids: torch.Tensor, table: torch.Tensor, first_id: int, dtype: torch.dtype) -> torch.Tensor:
    """Plain torch, on any device."""
    rows = token_ids - first_id if first_id else token_ids
    inside_rows = rows.clamp(0, table.shape[0] - 1)
    inside = rows == inside_rows
    out = table.index_select(0, inside_rows).to(dtype)
    # A select, not a product: the row in place of a missing one may hold anything.
    return out.masked_fill_(~inside[:, None], 0.0)


def embedding_ref(token_ids: torch.Tensor, table: torch.Tensor, first_id: int, dtype: torch.dtype) -> torch.Tensor:
    """One token at a time."""
    out = torch.zeros(token_ids.shape[0], table.shape[1], dtype=dtype, device=table.device)
    for token, token_id in enumerate(token_ids.tolist()):
        if first_id <= token_id < first_id + table.shape[0]:
            out[token] = table[token_id - first_id].to(dtype)
    return out
