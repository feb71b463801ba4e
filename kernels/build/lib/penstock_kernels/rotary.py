"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout of Hugging Face's Llama.

Shapes: T tokens, N heads, D head size (even). Element i of a head is paired with element i + D / 2 and the pair is
turned by the angle of (token, i).
"""

import torch


def rotation(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of `rotary` for float32 `angles` [T, D / 2]: cosines and signed sines, each [T, 1, D]."""
    cosine, sine = angles.cos(), angles.sin()
    signed_sine = torch.cat((sine.neg(), sine), dim=-1)
    return torch.cat((cosine, cosine), dim=-1).to(dtype)[:, None, :], signed_sine.to(dtype)[:, None, :]


def rotary(heads: torch.Tensor, cosine: torch.Tensor, signed_sine: torch.Tensor) -> torch.Tensor:
    """[T, N, D]: `heads` [T, N, D] turned by the factors that `rotation` made. A new tensor; `heads` may be a view."""
    return rotary_cpu(heads, cosine, signed_sine)


def rotary_cpu(heads: torch.Tensor, cosine: torch.Tensor, signed_sine: torch.Tensor) -> torch.Tensor:
    """Plain torch, on any device. Three operations: rolling by half a head brings each element's partner beside it."""
    return torch.mul(heads, cosine).addcmul_(heads.roll(heads.shape[-1] // 2, -1), signed_sine)


def rotary_ref(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """One pair at a time, in the dtype of its inputs; `angles` [T, D / 2]."""
    out = torch.empty_like(heads)
    half = heads.shape[-1] // 2
    for i in range(half):
        cosine, sine = angles[:, i, None].cos(), angles[:, i, None].sin()
        first, second = heads[:, :, i], heads[:, :, i + half]
        out[:, :, i] = first * cosine - second * sine
        out[:, :, i + half] = second * cosine + first * sine
    return out
