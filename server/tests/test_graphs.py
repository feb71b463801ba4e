"""Captures on CUDA, with a graph that is not there: which stream and pool they take, and what they tell when they
fail."""

import contextlib
from typing import ClassVar

import pytest
import torch

from penstock_server.graphs import CudaCapture, GaveWay


class Graph:
    """Notes what is done to all graphs. A capture that was disturbed cannot end."""

    log: ClassVar[list[object]] = []
    disturbed = False

    def capture_begin(self, pool, capture_error_mode):
        self.log.append(("begin", pool, capture_error_mode))

    def capture_end(self):
        self.log.append("end")
        if self.disturbed:
            raise RuntimeError("operation failed due to a previous error during capture")

    def pool(self):
        return "pool"

    def replay(self):
        pass


@pytest.fixture
def graph(monkeypatch):
    monkeypatch.setattr(Graph, "log", [])
    monkeypatch.setattr(Graph, "disturbed", False)
    for name, value in {
        "Stream": lambda: "side",
        "stream": lambda stream: contextlib.nullcontext(Graph.log.append(stream)),
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "empty_cache": lambda: Graph.log.append("memory back"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Graph


def test_all_captures_share_a_pool_and_a_stream_and_give_no_memory_back(graph, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("memory is given back"))
    capture = CudaCapture()
    for staged in ("first", "second"):
        assert capture(lambda staged: staged + " captured", staged)[1] == staged + " captured"
    once = ["side", ("begin", None, "thread_local"), "end"]
    assert graph.log == [*once, "side", ("begin", "pool", "thread_local"), "end"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), GaveWay()])
@pytest.mark.parametrize("disturbed", [False, True])
def test_a_capture_that_fails_ends_and_tells_why(graph, error, disturbed):
    graph.disturbed = disturbed

    def fail(staged):
        raise error

    with pytest.raises(type(error)):
        CudaCapture()(fail, "step")
    assert graph.log[-1] == "end"


def test_a_capture_without_memory_is_tried_again_with_what_torch_held_back(graph):
    steps = iter([torch.OutOfMemoryError("no memory"), None])

    def once_too_large(staged):
        if error := next(steps):
            raise error
        return staged

    assert CudaCapture()(once_too_large, "step")[1] == "step"
    assert graph.log.count("memory back") == 1


def test_a_capture_that_cannot_end_says_so(graph):
    graph.disturbed = True
    with pytest.raises(RuntimeError, match="previous error"):
        CudaCapture()(lambda staged: staged, "step")
