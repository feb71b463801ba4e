"""Attention over the paged KV cache: decode rows and chunks of prompts with a cached prefix, grouped-query heads.

Shapes: T tokens, H query heads, K key-value heads, G = H / K, D head size, N rows of a group, L keys, Q queries of a
tile.

    softmax(cap(scale * q k^T) + mask) v    cap(s) = softcap * tanh(s / softcap), or s where softcap is 0

Decode rows run together in groups of equal padded length, and a row's padding depends on its own length only, so a
row's result has the same bits alone and in any batch. Whatever lies in the pool beyond a row's length is never read,
and a NaN of one row reaches no other. (The Triton kernels have their own way to the same promises.)
"""

from typing import TYPE_CHECKING, TypeAlias, Union

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from penstock_kernels.attention_batch import AttentionBatch
from penstock_kernels.attention_groups import DecodeGroup, GroupedRows, PromptRow, group_rows
from penstock_kernels.triton_support import uses_triton

if TYPE_CHECKING:
    from penstock_kernels.attention_triton import DeviceRows

# One step's rows as `prepare` leaves them for every layer's attention.
PreparedAttention: TypeAlias = Union[GroupedRows, "DeviceRows"]


def prepare(batch: AttentionBatch, tokens_per_block: int, dtype: torch.dtype, window: int = 0) -> PreparedAttention:
    """Readies a step's rows for layers with this window: a token sees that many last keys, itself included; 0: all.

    `dtype` is that of the queries.
    """
    if uses_triton(batch.block_table):
        from penstock_kernels.attention_triton import DeviceRows

        return DeviceRows(batch, tokens_per_block, window)
    return group_rows(batch, tokens_per_block, dtype, window)


def paged_attention(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    prepared: PreparedAttention,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """[T, H, D]: attention of every token of the step; zeros for padded tokens.

    `query` [T, H, D]; `k_cache`, `v_cache` [blocks, tokens per block, K, D] with the step's own keys already stored; H
    a multiple of K. All of one floating dtype, on one device.
    """
    if isinstance(prepared, GroupedRows):
        return paged_attention_cpu(query, k_cache, v_cache, prepared, scale, softcap)
    from penstock_kernels.attention_triton import paged_attention_triton

    return paged_attention_triton(query, k_cache, v_cache, prepared, scale, softcap)


def paged_attention_cpu(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    prepared: GroupedRows,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Plain torch, on any device: gathers the keys of a group, then one fused attention call."""
    num_kv_heads, head_dim = k_cache.shape[2:]
    attend = _Attend(
        k_cache.view(-1, num_kv_heads * head_dim), v_cache.view(-1, num_kv_heads * head_dim), scale, softcap
    )
    query = query.view(query.shape[0], num_kv_heads, -1, head_dim)
    if prepared.covers_all and len(prepared.decode) == 1 and not prepared.prompts:
        return attend.decode(query, prepared.decode[0]).flatten(1, 2)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if not prepared.covers_all:
        out.zero_()
    for group in prepared.decode:
        if isinstance(group.rows, slice):
            out[group.rows] = attend.decode(query[group.rows], group)
        else:
            out.index_copy_(0, group.rows, attend.decode(query.index_select(0, group.rows), group))
    for row in prepared.prompts:
        attend.prompt(query[row.tokens], row, out[row.tokens])
    return out.flatten(1, 2)


class _Attend:
    """One layer's attention: its pool by slot, [slots, K * D], and its constants. Queries come as [T, K, G, D]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, scale: float, softcap: float) -> None:
        self._keys = keys
        self._values = values
        self._scale = scale
        self._softcap = softcap

    def decode(self, query: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        """[N, K, G, D]. The heads of a KV head are its queries, so keys and values are not repeated."""
        num_kv_heads, num_queries, head_dim = query.shape[1:]
        shape = (group.num_rows, -1, num_kv_heads, head_dim)
        gathered = group.gathered.fill(self._keys, self._values, group.slots)
        keys, values = (x.view(shape).transpose(1, 2) for x in gathered)
        # MKL's products of 1 and 3 rows round differently with the alignment of a thread's buffer; even ones do not.
        if num_queries % 2:
            query = pad(query, (0, 0, 0, 1))
        if group.num_rows * num_kv_heads == 1:
            # A single product would be split over MKL's own threads, and be summed in another order than in a batch.
            query, keys, values = (x.expand(2, -1, -1, -1) for x in (query, keys, values))
            return self._softmax(query, keys, values, group.mask)[:1, :, :num_queries]
        return self._softmax(query, keys, values, group.mask)[:, :, :num_queries]

    def prompt(self, query: torch.Tensor, row: PromptRow, out: torch.Tensor) -> None:
        """Fills `out` [Q, K, G, D]. KV heads are the batch, and the heads of one share it by a stride of 0."""
        num_kv_heads, num_groups, head_dim = query.shape[1:]
        shape = (-1, num_kv_heads, 1, head_dim)
        gathered = row.gathered.fill(self._keys, self._values, row.slots)
        keys, values = (x.view(shape).permute(1, 2, 0, 3).expand(-1, num_groups, -1, -1) for x in gathered)
        query, out = query.permute(1, 2, 0, 3), out.permute(1, 2, 0, 3)
        for tile in row.tiles:
            tile_keys, tile_values = keys[:, :, tile.keys], values[:, :, tile.keys]
            tile_query = query[:, :, tile.queries].contiguous()  # aligned alike wherever the row begins in its step
            out[:, :, tile.queries] = self._softmax(tile_query, tile_keys, tile_values, tile.mask)

    def _softmax(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        if not self._softcap:
            return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self._scale)
        scores = torch.matmul(query, keys.transpose(-1, -2)).mul_(self._scale / self._softcap)
        return scores.tanh_().mul_(self._softcap).add_(mask).softmax(-1).matmul(values)


def paged_attention_ref(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window_and_softcap: tuple[int, float] = (0, 0.0),
) -> torch.Tensor:
    """The same, one token at a time, in the dtype of its inputs (float64 in tests)."""
    window, softcap = window_and_softcap
    tokens_per_block, num_kv_heads = k_cache.shape[1:3]
    heads_per_kv_head = query.shape[1] // num_kv_heads
    keys = k_cache.flatten(0, 1).repeat_interleave(heads_per_kv_head, dim=1)
    values = v_cache.flatten(0, 1).repeat_interleave(heads_per_kv_head, dim=1)
    out = torch.zeros_like(query)
    for row, start in enumerate(batch.query_starts.tolist()[:-1]):
        seq_len, query_len = int(batch.host_seq_lens[row]), int(batch.host_query_lens[row])
        for i in range(query_len if seq_len else 0):
            last = seq_len - query_len + i
            seen = torch.arange(max(0, last - window + 1) if window else 0, last + 1, device=query.device)
            slots = batch.block_table[row, seen // tokens_per_block].long() * tokens_per_block + seen % tokens_per_block
            scores = (keys[slots] * query[start + i]).sum(-1) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            out[start + i] = (scores.softmax(0)[:, :, None] * values[slots]).sum(0)
    return out
