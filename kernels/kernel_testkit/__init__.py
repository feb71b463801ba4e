"""Helpers of the kernels' tests: cases in a poisoned pool, and how far an implementation may be from its reference."""
