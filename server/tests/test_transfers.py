"""Results on their way to the host: every column in a place of its own, round after round."""

import numpy as np
import pytest
import torch

from penstock_server.transfers import ResultBuffer, to_device

CPU = torch.device("cpu")
COLUMNS = [
    torch.arange(5),
    torch.arange(3, dtype=torch.float32),
    torch.empty(3, 0, dtype=torch.int64),
    torch.arange(6, dtype=torch.float32).view(3, 2).t(),
    torch.arange(6).view(3, 2),
]


def buffer_on(device, num_bytes=200):
    """A buffer as on CUDA, in memory that is not pinned where there is no GPU."""
    buffer = ResultBuffer(num_bytes, device)
    if device == CPU:
        buffer._bytes = torch.empty(num_bytes, dtype=torch.uint8)
    return buffer


def check_rounds(device):
    buffer = buffer_on(device)
    for _ in range(3):
        buffer.clear()
        received = [buffer.receive(column.to(device)) for column in COLUMNS]
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert all(torch.equal(host, column) for host, column in zip(received, COLUMNS, strict=True))


def test_columns_of_all_types_keep_apart():
    check_rounds(CPU)


@pytest.mark.gpu
def test_columns_from_a_gpu(cuda):
    check_rounds(cuda)
    assert torch.equal(to_device(np.arange(7), cuda).cpu(), torch.arange(7))
    assert to_device(np.empty((2, 0)), cuda).shape == (2, 0)


def test_on_a_cpu_nothing_is_copied():
    column, array = torch.arange(3), np.arange(3)
    assert ResultBuffer(8, CPU).receive(column) is column
    array[0] = 7
    assert to_device(array, CPU).tolist() == [7, 1, 2]


def test_more_than_the_buffer_holds_is_our_mistake():
    with pytest.raises(AssertionError, match="more than any should"):
        buffer_on(CPU, 16).receive(torch.arange(3))
