"""The sum of all ranks' tensors over memory that every GPU can read: one kernel, no library.

For tensors so small that a collective's latency decides: each rank writes its part into a buffer of its own, tells the
others, and reads all parts (one-shot all-reduce). Parts are added in rank order and rounded after each addition, as
`torch.add` does, so that all ranks hold the same bits, and the same as where a library gathered the parts.

Shapes: N elements, P programs.
"""

from dataclasses import dataclass

import torch

# Programs of every call, whatever its size: each counts the calls on its own, and all must count alike.
NUM_PROGRAMS = 32
# A tensor's elements are a multiple of this.
GROUP = 8


@dataclass(frozen=True, slots=True)
class PeerBuffers:
    """One rank's view of the memory that all ranks share. Addresses stay what they are, so a graph may hold them.

    A rank's buffer has two halves, used in turn: a rank that has all parts of one call may write the next while others
    still read this one, and cannot get further ahead, because it then needs their parts of the next.
    """

    rank: int
    data: torch.Tensor  # int64 [ranks]: address of each rank's buffer, aligned to 16 bytes
    flags: torch.Tensor  # int64 [ranks]: address of each rank's int32 [P, ranks], zeros at first: calls sent so far
    calls: torch.Tensor  # int32 [P], zeros at first: calls so far of this rank
    half_bytes: int  # of each half of a buffer, a multiple of 16

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.data.shape[0]

    def fits(self, x: torch.Tensor) -> bool:
        """Whether `all_reduce` takes a tensor like `x`. The same on all ranks."""
        return x.is_floating_point() and x.nbytes <= self.half_bytes and x.numel() % GROUP == 0


def all_reduce_ref(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of all ranks' parts, in rank order."""
    total = parts[0].clone()
    for part in parts[1:]:
        total = total + part
    return total


def all_reduce(x: torch.Tensor, buffers: PeerBuffers) -> torch.Tensor:
    """A new tensor, the sum of all ranks' `x`, which has one shape and dtype on all of them, and `fits`.

    All ranks must call it, in the same order: the device waits for them. Has a Triton kernel only; where there is no
    memory that all ranks can read, a library's collectives take its place.
    """
    from penstock_kernels.all_reduce_triton import all_reduce_triton

    return all_reduce_triton(x, buffers)
