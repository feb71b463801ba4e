"""Lets a kernel begin while the one before it on the stream ends (programmatic dependent launch), from Hopper on.

A kernel that is launched with `launch_options` calls `wait_for_inputs` before it reads what another has written and
before it writes anything. All of them must: that a kernel has ended means that those before it have, if each waited.
"""

# ruff: noqa: ANN201
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import functools

import torch
import triton
import triton.language as tl

_HOPPER = 9


@functools.cache
def launch_options(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of a launch: the kernel's own `overlaps`, and what makes the driver do it."""
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= _HOPPER:
        return {"overlaps": True, "launch_pdl": True}
    return {"overlaps": False}


@triton.jit
def wait_for_inputs(overlaps: tl.constexpr):
    """Waits until the kernel before has ended and its stores are visible; then lets the one after begin.

    Not sooner: programs of several kernels would wait in the shared memory that those at work could have. On an H100
    that cost 2 % of a step of 8 rows; fetching weights ahead of the wait gained nothing.
    """
    if overlaps:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
