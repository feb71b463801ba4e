"""In which dtype a model is computed, from what was asked for, the checkpoint and the processor."""

import logging

import torch

from penstock_kernels.cpu_features import has_bf16_arithmetic

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_log = logging.getLogger(__name__)


def resolve_dtype(name: str, checkpoint: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of weights, activations and KV cache. `name`: "auto" or one of torch's three float dtypes.

    On a CPU "auto" is float32, and a 16-bit dtype is taken only where the processor calculates in it; elsewhere it
    would gain nothing from batching, so float32 takes its place and the log says so. Raises ValueError for an unknown
    name.
    """
    if name != "auto" and name not in _NAMES:
        raise ValueError(f"unknown dtype {name!r}; known: auto, {', '.join(_NAMES)}")
    if device.type != "cpu":
        return checkpoint if name == "auto" else _NAMES[name]
    if name == "bfloat16" and not has_bf16_arithmetic():
        _log.info("computing in float32: this CPU has no bfloat16 arithmetic (AMX or AVX512-BF16)")
        return torch.float32
    if name == "float16":
        _log.info("computing in float32: float16 is no faster on a CPU")
        return torch.float32
    return torch.float32 if name == "auto" else _NAMES[name]
