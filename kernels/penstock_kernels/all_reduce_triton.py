"""All-reduce over symmetric memory. Shapes: N elements, P programs.

Program p of a rank waits for program p of the others only, which has written what it reads. Its flags hold the number
of the call, which only grows (and wraps around), so nobody has to reset them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from enum import Enum

import torch
import triton
import triton.language as tl

from penstock_kernels.all_reduce import GROUP, NUM_PROGRAMS, PeerBuffers
from penstock_kernels.overlap import launch_options, wait_for_inputs

# Elements that a program takes at a time: as many for each of its threads as it loads at once.
BLOCK = 2048
NUM_WARPS = 8


class Half(Enum):
    """What a launch does. Apart they serve where ranks take turns in one process, as in tests."""

    SEND = (True, False)
    RECEIVE = (False, True)
    BOTH = (True, True)


def all_reduce_triton(x: torch.Tensor, buffers: PeerBuffers, half: Half = Half.BOTH) -> torch.Tensor:
    """See `all_reduce`. What SEND returns is empty memory."""
    assert buffers.fits(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sends, receives = half.value
    _all_reduce_kernel[(NUM_PROGRAMS,)](
        x.contiguous(),
        out,
        buffers.data,
        buffers.flags,
        buffers.calls,
        x.numel() // GROUP,
        group=GROUP,
        half_elements=buffers.half_bytes // x.element_size(),
        rank=buffers.rank,
        size=buffers.size,
        sends=sends,
        receives=receives,
        block=BLOCK,
        num_warps=NUM_WARPS,
        **launch_options(x.device),
    )
    return out


@triton.jit(do_not_specialize=["num_groups"])
def _all_reduce_kernel(
    x_ptr,  # [N]
    out_ptr,  # [N]
    data_ptr,  # int64 [ranks]
    flags_ptr,  # int64 [ranks]
    calls_ptr,  # int32 [P]
    num_groups,  # N / group
    group: tl.constexpr,
    half_elements: tl.constexpr,
    rank: tl.constexpr,
    size: tl.constexpr,
    sends: tl.constexpr,
    receives: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    wait_for_inputs(overlaps)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    program = tl.program_id(0)
    stride = tl.num_programs(0) * block
    call = tl.load(calls_ptr + program) + 1
    half = (call & 1).to(tl.int64) * half_elements
    num_elements = num_groups * group  # so that the compiler knows that a group is there or is not
    if sends:
        own_ptr = tl.multiple_of(tl.load(data_ptr + rank).to(tl.pointer_type(dtype)) + half, 16)
        for start in range(program * block, num_elements, stride):
            place = start + tl.arange(0, block)
            part = tl.load(x_ptr + place, mask=place < num_elements)
            tl.store(own_ptr + place, part, mask=place < num_elements)
        # All threads have written before one of them tells; what it releases includes their stores.
        tl.debug_barrier()
        for peer in tl.static_range(size):
            told_ptr = tl.load(flags_ptr + peer).to(tl.pointer_type(tl.int32)) + program * size + rank
            tl.atomic_xchg(told_ptr, call, sem="release", scope="sys")
    if receives:
        heard_ptr = tl.load(flags_ptr + rank).to(tl.pointer_type(tl.int32)) + program * size
        for peer in tl.static_range(size):
            # A difference, because the number wraps around.
            while tl.atomic_add(heard_ptr + peer, 0, sem="acquire", scope="sys") - call < 0:
                pass
        tl.debug_barrier()
        for start in range(program * block, num_elements, stride):
            place = start + tl.arange(0, block)
            inside = place < num_elements
            first_ptr = tl.multiple_of(tl.load(data_ptr).to(tl.pointer_type(dtype)) + half, 16)
            total = tl.load(first_ptr + place, mask=inside)
            for peer in tl.static_range(1, size):
                part_ptr = tl.multiple_of(tl.load(data_ptr + peer).to(tl.pointer_type(dtype)) + half, 16)
                part = tl.load(part_ptr + place, mask=inside)
                total = (total.to(tl.float32) + part.to(tl.float32)).to(dtype)
            tl.store(out_ptr + place, total, mask=inside)
        tl.store(calls_ptr + program, call)
