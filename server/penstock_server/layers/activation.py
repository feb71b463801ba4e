"""Activations between the two halves of an MLP."""

from penstock_kernels.silu_mul import silu_mul

__all__ = ["silu_mul"]
