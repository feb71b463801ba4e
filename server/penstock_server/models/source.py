"""Where a model comes from, and what its config alone tells about it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock_server.models.base import KvSpec


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Known before any weight is read."""

    architecture: str
    vocab_size: int
    max_positions: int
    kv_spec: KvSpec  # of this rank; its dtype is also that of weights and activations
    float32_reason: str | None = None  # a line for the log where that is not what was asked for or is stored


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load, and onto what."""

    folder: Path
    device: torch.device
    dtype: str  # "auto", "float32", "bfloat16" or "float16"
    load_format: str = "auto"  # "auto" and "safetensors" are the same; "dummy": random weights
    # Told the fraction that is loaded, and the bytes that were read for it.
    progress: Callable[[float, int], None] = lambda fraction, num_bytes: None
