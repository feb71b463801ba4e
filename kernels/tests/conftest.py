"""Fixtures of all tests of operations."""

import os
from pathlib import Path

import pytest
import torch
from kernel_testkit.devices import cuda, device, dtype

__all__ = ["cuda", "device", "dtype"]

if os.environ.get("TRITON_INTERPRET") == "1":
    # Operations ask whether a process has imported it.
    from triton.runtime.interpreter import GridExecutor

    RAN: set[str] = set()
    LAUNCH = GridExecutor.__call__

    def launch(self, *args, **kwargs):
        """Notes a kernel with the dtypes of its floating-point tensors."""
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        floats = {str(tensor.dtype)[6:] for tensor in tensors if tensor.is_floating_point()} or {"integers"}
        RAN.update(f"{self.fn.__name__}:{name}" for name in floats)
        return LAUNCH(self, *args, **kwargs)

    GridExecutor.__call__ = launch

    def pytest_sessionfinish(session: pytest.Session) -> None:
        """For `test_triton_interpreter.py`, which started this process."""
        if path := os.environ.get("PENSTOCK_KERNELS_RAN"):
            Path(path).write_text("\n".join(sorted(RAN)))
