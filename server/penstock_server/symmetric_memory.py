"""Memory of this rank's GPU that the other ranks' GPUs read and write: set up once, at the start, by torch."""

from typing import Any

import torch

from penstock_kernels.all_reduce import NUM_PROGRAMS, PeerBuffers

# Half a buffer: what 64 tokens of 8,192 channels take in bfloat16. Each rank reads all parts, so for much more than
# this a library, which moves less, is the faster way.
HALF_BYTES = 1 << 20
_GROUP = "penstock"
_BARRIER_MS = 60_000


def connect(rank: int, size: int, store: Any, device: torch.device) -> tuple[PeerBuffers, object]:
    """Buffers for `all_reduce`, and what owns their memory: to be kept while any rank uses it. All ranks call it at the
    same time. `store`: one of torch.distributed that all share. Raises ValueError where the GPUs cannot reach each
    other's memory.
    """
    if device.type != "cuda":
        raise ValueError("--all-reduce symmetric is for GPUs")
    # Any: not in torch's type stubs. torch's own wrapper asks for its default process group, and there is none here.
    memory: Any = torch._C._distributed_c10d._SymmetricMemory
    memory.set_group_info(_GROUP, rank, size, store)
    num_bytes = 2 * HALF_BYTES + NUM_PROGRAMS * size * torch.int32.itemsize
    shared = memory.empty_strided_p2p((num_bytes,), (1,), torch.uint8, device, _GROUP)
    try:
        handle = memory.rendezvous(shared)
    except torch.distributed.DistError:
        raise  # another rank is gone
    except RuntimeError as error:
        raise ValueError(
            f"--all-reduce symmetric: these GPUs cannot read each other's memory; leave the flag out: {error}"
        ) from error
    shared.zero_()
    handle.barrier(0, _BARRIER_MS)  # nobody writes into what another has yet to clear
    torch.cuda.synchronize(device)
    return peer_buffers(rank, handle.buffer_ptrs, device), (shared, handle)


def peer_buffers(rank: int, addresses: list[int], device: torch.device) -> PeerBuffers:
    """For memory of 2 HALF_BYTES, and of zeros for the flags behind them, at these addresses, one of each rank."""
    data = torch.tensor(addresses, dtype=torch.int64, device=device)
    return PeerBuffers(
        rank=rank,
        data=data,
        flags=data + 2 * HALF_BYTES,
        calls=torch.zeros(NUM_PROGRAMS, dtype=torch.int32, device=device),
        half_bytes=HALF_BYTES,
    )
