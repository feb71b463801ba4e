"""Fixtures of all tests of the shard."""

from kernel_testkit.devices import cuda

__all__ = ["cuda"]
