"""Tensor parallelism: which part of a layer this rank holds, and the collectives that put the parts together.

Deterministic: reductions add in rank order, so all ranks hold the same bits and a token's result does not depend on
the number of tokens. A group of one rank makes no process group and copies nothing. Ranks enter a collective only
while they run a step, so an idle group waits in none.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from penstock_kernels.all_reduce import PeerBuffers, all_reduce
from penstock_server import symmetric_memory

# Any: the group and store classes are not in torch's type stubs.
distributed: Any = torch.distributed
# A rank that dies closes its connections, which ends the others' collectives at once; this bounds one that hangs.
# Neither holds for sums over symmetric memory: there the launcher has to end the group.
_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a layer rank `rank` of `size` holds. Needs no other rank to be there."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not below the number of ranks {self.size}")

    def part(self, total: int) -> slice:
        """A part of `total` things that need not divide evenly."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def padded_part(self, total: int) -> slice:
        """A part of `total` things, ceil(total / size) for every rank but the last ones, whose parts may be shorter."""
        rows = -(-total // self.size)
        return slice(min(self.rank * rows, total), min((self.rank + 1) * rows, total))

    def query_heads(self, num_heads: int) -> slice:
        """Query heads. Raises ValueError unless they divide by the ranks."""
        if num_heads % self.size:
            raise ValueError(f"{num_heads} query heads do not divide by {self.size} ranks (--num-shard)")
        return self.part(num_heads)

    def kv_heads(self, num_kv_heads: int) -> slice:
        """Key-value heads: a part of them, or one that several ranks hold. Raises ValueError where neither divides."""
        if num_kv_heads % self.size == 0:
            return self.part(num_kv_heads)
        if self.size % num_kv_heads == 0:
            head = self.rank * num_kv_heads // self.size
            return slice(head, head + 1)
        raise ValueError(
            f"{num_kv_heads} key-value heads do not divide by {self.size} ranks (--num-shard), "
            "nor the ranks by the heads"
        )


class TensorParallel:
    """One rank of `size`. All ranks construct it at the same time, with the same `rendezvous` file, fresh per start."""

    def __init__(
        self, rank: int, size: int, rendezvous: Path | None, device: torch.device, symmetric: bool = False
    ) -> None:
        """`symmetric`: small tensors are added over memory that all ranks' GPUs can read. Raises ValueError where that
        cannot be.
        """
        self.split = Split(rank, size)
        self.rank = rank
        self.size = size
        self._group: Any = None
        self._peers: PeerBuffers | None = None
        if size > 1:
            if rendezvous is None:
                raise ValueError(f"{size} ranks need a rendezvous file")
            store = distributed.FileStore(str(rendezvous), size)
            self._group = _connect(rank, size, store, device)
            if symmetric:
                own_keys = distributed.PrefixStore("symmetric", store)
                self._peers, self._peer_memory = symmetric_memory.connect(rank, size, own_keys, device)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' `x`, added in rank order."""
        if self._group is None:
            return x
        if self._peers is not None and self._peers.fits(x):
            return all_reduce(x, self._peers)
        parts = self._gather(self._group, x)
        total = parts[0]
        for part in parts[1:]:
            total.add_(part)
        return total

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' `x`, joined along the last dimension in rank order. Same shape on all ranks."""
        if self._group is None:
            return x
        return torch.cat(self._gather(self._group, x).unbind(0), dim=-1)

    def broadcast(self, x: torch.Tensor, root: int = 0) -> torch.Tensor:
        """Overwrites `x` with rank `root`'s."""
        if self._group is not None:
            self._group.broadcast([x], _broadcast_options(root)).wait()
        return x

    def close(self) -> None:
        """Leaves the group. No collective may follow."""
        if self._group is not None:
            self._group.shutdown()
            self._group = None

    def _gather(self, group: Any, x: torch.Tensor) -> torch.Tensor:
        """[ranks, ...]."""
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        group._allgather_base(parts.view(-1), x.contiguous().view(-1)).wait()
        return parts


def _connect(rank: int, size: int, store: Any, device: torch.device) -> Any:
    """A process group of its own, not torch's default one: nothing else in the process can reach it."""
    if device.type == "cuda":
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = _TIMEOUT
        return distributed.ProcessGroupNCCL(store, rank, size, options)
    options = distributed.ProcessGroupGloo._Options()
    # Loopback by address: all ranks of a group are on one machine, and no other machine may connect.
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = _TIMEOUT
    return distributed.ProcessGroupGloo(store, rank, size, options)


def _broadcast_options(root: int) -> Any:
    options = torch.distributed.BroadcastOptions()
    options.rootRank = root
    options.rootTensor = 0
    return options
