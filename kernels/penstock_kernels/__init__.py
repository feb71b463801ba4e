"""Penstock's operations: for each a reference, a CPU implementation and (later) a Triton kernel behind one function.

Imports torch only; works without triton installed.
"""
