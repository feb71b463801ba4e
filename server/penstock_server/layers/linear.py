"""Linear layers split over the ranks: by output (column-parallel) or by input (row-parallel).

Shapes: T tokens, I inputs and O outputs of the whole layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from penstock_kernels import linear
from penstock_server.dummy_weights import DummyReader
from penstock_server.parallel import TensorParallel
from penstock_server.weights import CheckpointReader


@dataclass(frozen=True, slots=True)
class LoadContext:
    """Where layers load from and what they load into."""

    reader: CheckpointReader | DummyReader
    parallel: TensorParallel
    device: torch.device
    dtype: torch.dtype  # of computation


@dataclass(frozen=True, slots=True)
class Projection:
    """One stored matrix of a fused column-parallel layer, and the outputs of it that this rank holds."""

    name: str  # prefix of `.weight` and `.bias`
    out_features: int
    part: slice


class ColumnParallelLinear:
    """Each rank computes its part of the outputs; several projections of one input are fused into one product."""

    def __init__(self, context: LoadContext, projections: Sequence[Projection], in_features: int, bias: bool) -> None:
        parts = [p.part.stop - p.part.start for p in projections]
        weight = torch.empty(sum(parts), in_features, dtype=context.dtype, device=context.device)
        biases = torch.empty(sum(parts), dtype=context.dtype, device=context.device) if bias else None
        start = 0
        for projection, size in zip(projections, parts, strict=True):
            shape = (projection.out_features, in_features)
            stored = context.reader.read(f"{projection.name}.weight", shape, (projection.part,))
            weight[start : start + size].copy_(stored)
            if biases is not None:
                stored = context.reader.read(f"{projection.name}.bias", shape[:1], (projection.part,))
                biases[start : start + size].copy_(stored)
            start += size
        self._linear = linear.prepare(weight, biases)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, this rank's outputs of all projections, in their order] from [T, I]."""
        return self._linear(x)

    def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
        """[T, half of that] from [T, I], where the projections are gates and then ups: silu(gate) * up."""
        return self._linear.silu_mul(x)


class RowParallelLinear:
    """Each rank multiplies its part of the inputs; the sum over ranks is on all of them."""

    def __init__(self, context: LoadContext, name: str, shape: tuple[int, int], part: slice, bias: bool) -> None:
        """`shape` (O, I) of the whole layer; `part`: this rank's inputs."""
        stored = context.reader.read(f"{name}.weight", shape, (slice(0, shape[0]), part))
        # What was read onto a GPU is nobody else's.
        weight = stored.to(device=context.device, dtype=context.dtype, copy=not stored.is_cuda)
        del stored
        biases = None
        if bias:
            stored = context.reader.read(f"{name}.bias", shape[:1])
            # Added once, before the sum over ranks.
            if context.parallel.rank == 0:
                biases = stored.to(device=context.device, dtype=context.dtype, copy=True)
        self._linear = linear.prepare(weight, biases)
        self._parallel = context.parallel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, O] from [T, this rank's inputs]."""
        return self._parallel.all_reduce(self._linear(x))
