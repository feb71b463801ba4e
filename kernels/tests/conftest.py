"""Fixtures of all tests of operations."""

from kernel_testkit.devices import cuda, device, dtype

__all__ = ["cuda", "device", "dtype"]
