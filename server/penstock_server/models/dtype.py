"""In which dtype a model is computed, from what was asked for, the checkpoint and the processor."""

import torch

from penstock_kernels.cpu_features import has_bf16_arithmetic

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, checkpoint: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of weights, activations and KV cache. `name`: "auto" or one of torch's three float dtypes.

    On a CPU "auto" is float32, and a 16-bit dtype is taken only where the processor calculates in it; elsewhere it
    would gain nothing from batching, so float32 takes its place. Raises ValueError for an unknown name.
    """
    if name != "auto" and name not in _NAMES:
        raise ValueError(f"unknown dtype {name!r}; known: auto, {', '.join(_NAMES)}")
    if device.type != "cpu":
        return checkpoint if name == "auto" else _NAMES[name]
    return torch.bfloat16 if name == "bfloat16" and has_bf16_arithmetic() else torch.float32


def float32_reason(name: str, checkpoint: torch.dtype, device: torch.device) -> str | None:
    """A line for the log where float32 takes the place of the 16 bits that were asked for or are stored."""
    if device.type != "cpu" or resolve_dtype(name, checkpoint, device) != torch.float32:
        return None
    if name == "bfloat16":
        return "computing in float32: this CPU has no bfloat16 arithmetic (AMX or AVX512-BF16)"
    if name == "float16":
        return "computing in float32: float16 is no faster on a CPU"
    if name == "auto" and checkpoint != torch.float32:
        return f"computing in float32, the default on a CPU; the checkpoint is {str(checkpoint).removeprefix('torch.')}"
    return None
