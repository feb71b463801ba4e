"""Root-mean-square normalisation with the residual stream."""

import torch

from penstock_kernels.rms_norm import add_rms_norm, rms_norm
from penstock_server.layers.linear import LoadContext


class RmsNorm:
    """Whole on every rank."""

    def __init__(self, context: LoadContext, name: str, size: int, epsilon: float) -> None:
        stored = context.reader.read(f"{name}.weight", (size,))
        self._weight = stored.to(device=context.device, dtype=context.dtype, copy=True)
        self._epsilon = epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, C] from [T, C]."""
        return rms_norm(x, self._weight, self._epsilon)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Adds `x` to `residual` in place and returns the sum normalised; all [T, C]."""
        return add_rms_norm(x, residual, self._weight, self._epsilon)
