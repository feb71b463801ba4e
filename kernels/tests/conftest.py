"""Fixtures of all tests of operations."""

import os

from kernel_testkit.devices import cuda, device, dtype

__all__ = ["cuda", "device", "dtype"]

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton  # noqa: F401 - operations ask whether a process has it
