"""Results on their way to the host: every column in a place of its own, round after round."""

import contextlib

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


class HostStream:
    """On a CPU everything happens at once."""

    def wait_stream(self, other):
        pass


def buffer_on(device, monkeypatch, num_bytes=200):
    """A buffer as on CUDA, in memory that is not pinned where there is no GPU."""
    if device.type == "cuda":
        return ResultBuffer(num_bytes, device, torch.cuda.Stream(device))
    monkeypatch.setattr(torch.cuda, "current_stream", HostStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return ResultBuffer(num_bytes, device, HostStream())


def check_rounds(device, monkeypatch):
    buffer = buffer_on(device, monkeypatch)
    for _ in range(3):
        buffer.clear()
        sources = [column.to(device, copy=True) for column in COLUMNS]
        received = [buffer.receive(source) for source in sources]
        for source in sources:
            source.zero_()  # as the next step does to what a graph left
        buffer.send()
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert all(torch.equal(host, column) for host, column in zip(received, COLUMNS, strict=True))


def test_columns_of_all_types_keep_apart(monkeypatch):
    check_rounds(CPU, monkeypatch)


@pytest.mark.gpu
def test_columns_from_a_gpu(cuda, monkeypatch):
    check_rounds(cuda, monkeypatch)
    assert torch.equal(to_device(np.arange(7), cuda).cpu(), torch.arange(7))
    assert to_device(np.empty((2, 0)), cuda).shape == (2, 0)


def test_on_a_cpu_nothing_is_copied():
    column, array = torch.arange(3), np.arange(3)
    buffer = ResultBuffer(8, CPU, None)
    assert buffer.receive(column) is column
    buffer.send()
    array[0] = 7
    assert to_device(array, CPU).tolist() == [7, 1, 2]


def test_more_than_the_buffer_holds_is_our_mistake(monkeypatch):
    with pytest.raises(AssertionError, match="more than any should"):
        buffer_on(CPU, monkeypatch, 16).receive(torch.arange(3))
