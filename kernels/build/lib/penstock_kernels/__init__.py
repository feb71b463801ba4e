"""Penstock's operations: for each a reference, a CPU implementation and, where it gains, a Triton kernel behind one
function.

Needs torch; works without triton installed.
"""

from penstock_kernels.triton_support import has_triton

# Whether a step on CUDA can be captured in a graph: all that decode steps run there reads lengths on the device only.
GRAPH_SAFE = has_triton()
