"""y = x W^T + b, with the weight packed once at load where the processor's library gains from it.

Shapes: T tokens, I input and O output channels. On a CPU the weight goes to oneDNN's own layout by two private
operations of torch, `mkldnn::_reorder_linear_weight` and `mkldnn::_linear_pointwise`; where a torch lacks them or they
fail for a dtype, `torch.nn.functional.linear` takes their place.

Why packed: 2 to 4 times faster than `linear` from 8 tokens on, and a token's result has the same bits in any batch,
which `linear` does not give. oneDNN sums a single token in another order when I is large; such a layer runs it as two.

On a GPU few tokens go through a kernel of ours, with which a step is faster than with the library's: `linear_triton`.
"""

import functools
from typing import TYPE_CHECKING

import torch

from penstock_kernels.silu_mul import silu_mul
from penstock_kernels.triton_support import uses_triton

if TYPE_CHECKING:
    from penstock_kernels.linear_triton import SkinnyConfig


class Linear:
    """One weight, ready to be applied. Use `prepare` to make one."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, packed: bool) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._packed = packed
        self._skinny = None if packed else _skinny_config(weight)
        if packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            self._pad_single = _differs_alone(self._weight, weight.shape, weight.dtype)
        else:
            self._weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, O] from [T, I], in the weight's dtype."""
        if self._skinny is not None and x.shape[0] <= self._skinny.max_tokens:
            return self._run_skinny(x, False)
        if not self._packed:
            return torch.nn.functional.linear(x, self._weight, self._bias)
        if self._pad_single and x.shape[0] == 1:
            return _packed_linear(x.expand(2, -1), self._weight, self._bias)[:1]
        return _packed_linear(x, self._weight, self._bias)

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """[T, O / 2] from [T, I]: of outputs that are gates and then ups, silu(gate) * up."""
        if self._skinny is not None and x.shape[0] <= self._skinny.max_tokens:
            return self._run_skinny(x, True)
        return silu_mul(self(x))

    def _run_skinny(self, x: torch.Tensor, then_silu_mul: bool) -> torch.Tensor:
        from penstock_kernels.linear_triton import skinny_linear

        assert self._skinny is not None
        return skinny_linear(x, self._weight, self._bias, self._skinny, then_silu_mul)


def prepare(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Takes `weight` [O, I] and `bias` [O] of one floating dtype. Keeps no reference to a weight that it packs."""
    return Linear(weight, bias, weight.device.type == "cpu" and can_pack(weight.dtype))


def _skinny_config(weight: torch.Tensor) -> "SkinnyConfig | None":
    """How few tokens are multiplied by a kernel of ours; None: they are not."""
    if weight.dtype == torch.float32 or not uses_triton(weight):
        return None
    from penstock_kernels.linear_triton import skinny_config

    return skinny_config(*weight.shape)


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have a packed linear in `dtype`; tries one."""
    weight, x = torch.ones(16, 16, dtype=dtype), torch.ones(3, 16, dtype=dtype)
    try:
        out = _packed_linear(x, torch.ops.mkldnn._reorder_linear_weight(weight, None), None)
    except (RuntimeError, AttributeError):
        return False
    return bool(torch.equal(out, torch.full((3, 16), 16, dtype=dtype)))


def linear_ref(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """One token at a time, in the dtype of its inputs."""
    out = torch.stack([(weight * row).sum(1) for row in x])
    return out if bias is None else out + bias


def _packed_linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


_DIFFERS_ALONE: dict[tuple[torch.Size, torch.dtype, int], bool] = {}


def _differs_alone(packed: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether one token alone is summed in another order than in a batch; tried once per shape and thread count."""
    key = (shape, dtype, torch.get_num_threads())
    if key not in _DIFFERS_ALONE:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, shape[1], generator=generator).to(dtype)
        alone, pair = _packed_linear(x, packed, None), _packed_linear(x.expand(2, -1), packed, None)
        _DIFFERS_ALONE[key] = not torch.equal(alone, pair[:1])
    return _DIFFERS_ALONE[key]
