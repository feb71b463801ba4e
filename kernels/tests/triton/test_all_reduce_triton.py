"""The sum over ranks, whose buffers all lie on one device here: ranks take turns, in any order that waiting allows."""

import random

import pytest
import torch
from kernel_testkit.triton_device import BFLOAT16, DEVICE, GPU_TESTS

from penstock_kernels.all_reduce import NUM_PROGRAMS, PeerBuffers, all_reduce_ref
from penstock_kernels.all_reduce_triton import Half, all_reduce_triton

pytestmark = GPU_TESTS

MAX_ELEMENTS = (NUM_PROGRAMS + 1) * 2048


class Group:
    """All ranks' buffers, poisoned."""

    def __init__(self, size, dtype, first_call=0):
        self.data = [torch.full((2 * MAX_ELEMENTS,), torch.nan, dtype=dtype, device=DEVICE) for _ in range(size)]
        self.flags = [
            torch.full((NUM_PROGRAMS, size), first_call, dtype=torch.int32, device=DEVICE) for _ in range(size)
        ]
        addresses = [
            torch.tensor([part.data_ptr() for part in parts], device=DEVICE) for parts in (self.data, self.flags)
        ]
        self.ranks = [
            PeerBuffers(
                rank=rank,
                data=addresses[0],
                flags=addresses[1],
                calls=torch.full((NUM_PROGRAMS,), first_call, dtype=torch.int32, device=DEVICE),
                half_bytes=MAX_ELEMENTS * dtype.itemsize,
            )
            for rank in range(size)
        ]


def run(group, calls, seed):
    """`calls` [call][rank] of tensors. Every rank sends and receives each call in order; whose turn it is, is random,
    but who waits for a part that was not sent gets no turn. Gives results like `calls`."""
    size, choose = len(group.ranks), random.Random(seed)
    num_sent, num_received = [0] * size, [0] * size
    results = [[None] * size for _ in calls]
    while min(num_received) < len(calls):
        can_send = [r for r in range(size) if num_sent[r] == num_received[r] < len(calls)]
        can_receive = [r for r in range(size) if num_received[r] < num_sent[r] and min(num_sent) >= num_sent[r]]
        rank = choose.choice(can_send + can_receive)
        sends = rank in can_send
        call = num_received[rank]
        out = all_reduce_triton(calls[call][rank], group.ranks[rank], Half.SEND if sends else Half.RECEIVE)
        if sends:
            num_sent[rank] += 1
        else:
            results[call][rank] = out
            num_received[rank] += 1
    return results


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("first_call", [0, 2**31 - 3])
def test_all_ranks_get_the_sum_in_rank_order(size, first_call, dtype):
    """Calls of all sizes, also around the one whose number wraps."""
    generator = torch.Generator().manual_seed(size)
    shapes = [(3, 8), (5, 0), (MAX_ELEMENTS,), (2056,)]
    calls = [[torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(size)] for shape in shapes]
    group = Group(size, dtype, first_call)
    for parts, results in zip(calls, run(group, calls, seed=size), strict=True):
        expected = all_reduce_ref(parts)
        for result in results:
            assert torch.equal(result, expected)


@pytest.mark.parametrize("seed", range(2))
def test_a_rank_that_is_ahead_overwrites_nothing_that_others_read(seed):
    """Many small calls in random turns."""
    calls = [[torch.full((40,), float(10 * call + rank), device=DEVICE) for rank in range(3)] for call in range(8)]
    for parts, results in zip(calls, run(Group(3, torch.float32), calls, seed), strict=True):
        for result in results:
            assert torch.equal(result, all_reduce_ref(parts))
