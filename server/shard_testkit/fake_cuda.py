"""A CUDA device that is not there: torch's fake tensors have a device, shapes and dtypes, but no values.

A step runs on it as it would on a GPU, the Triton kernels' launches included, which are noted instead. An operation
that mixes host and device, or needs a value on the host, raises.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from penstock_kernels import attention_config, overlap, triton_support
from penstock_server import seat_params, seats, staging, step, transfers, weights
from penstock_server.results import StepColumns
from penstock_server.step import StepOutput
from penstock_server.weights import CheckpointReader

CUDA = torch.device("cuda", 0)


class Launches(TorchDispatchMode):
    """A context that notes the Triton kernels that were launched, in order, and the copies between host and device."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.compiled: set[str] = set()  # kernels with their compile-time arguments; `clear` keeps them
        self.products = 0
        self.copies: list[str] = []

    def clear(self) -> None:
        self.kernels, self.products, self.copies = [], 0, []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.products += name in ("linear", "mm", "addmm")
        ends = [value for value in (*args, out) if isinstance(value, torch.Tensor) and value.dim()]
        if "copy" in name and len({tensor.device.type for tensor in ends}) > 1:
            self.copies.append(name)
        return out


class _Event:
    def __init__(self, **options: bool) -> None:
        pass

    def record(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_Event") -> float:
        return 1.0


class _Stream:
    def __init__(self, device: object = None) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Within, tensors on `CUDA` can be made. Enter what it gives to note launches."""
    launches = Launches()
    triton = pytest.importorskip("triton")
    assert not triton_support.is_interpreted()

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        bound = kernel.signature.bind(*args, **{k: v for k, v in options.items() if k in kernel.arg_names})
        tensors = [value for value in bound.arguments.values() if isinstance(value, torch.Tensor)]
        where = {tensor.device for tensor in tensors}
        assert where == {CUDA}, f"{kernel.__name__} gets tensors on {where}"
        assert all(not isinstance(value, torch.Tensor) for value in grid), f"the grid of {kernel.__name__}"
        launches.kernels.append(kernel.__name__)
        constants = {p.name: bound.arguments.get(p.name) for p in kernel.params if p.is_constexpr}
        launches.compiled.add(f"{kernel.__name__} {constants}")

    hopper = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    for name, value in {
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device: hopper,
        "get_device_capability": lambda device: (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", launch)
    for module in (seats, seat_params, step):
        monkeypatch.setattr(module, "to_device", _appear)
    monkeypatch.setattr(weights, "for_device", lambda device: None)
    monkeypatch.setattr(CheckpointReader, "read", _really(CheckpointReader.read))
    monkeypatch.setattr(StepOutput, "columns", _nothing_useful)
    for module in (transfers, staging):
        monkeypatch.setattr(module, "host_memory", _really(_host_memory))
    caches = (attention_config.describe, overlap.launch_options)
    for cache in caches:
        cache.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield launches
    for cache in caches:
        cache.cache_clear()


def _appear(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """What came through pinned memory is simply there."""
    return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)


def _host_memory(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, np.ndarray]:
    memory = torch.zeros(count, dtype=dtype)
    return memory, memory.numpy()


def _nothing_useful(output: StepOutput) -> StepColumns:
    """A step's results have shapes only."""
    ids, found = output.ids, output.logprobs
    return StepColumns(
        row_seats=np.zeros(output.row_seats.shape, np.int64),
        ids=np.zeros(0 if ids is None else tuple(ids.shape), np.int64),
        logprobs=None if found is None else np.zeros(tuple(found.chosen.shape), np.float32),
        top_ids=None if found is None else np.zeros(tuple(found.top_ids.shape), np.int64),
        top_logprobs=None if found is None else np.zeros(tuple(found.top.shape), np.float32),
    )


def _really(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function outside of fake mode."""

    def run(*args: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **options)

    return run
