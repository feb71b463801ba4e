"""The models: one family per file, imported only when a checkpoint asks for it.

A family's module offers `describe` and `load` with the signatures below.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from penstock_server.models.base import Model
    from penstock_server.models.source import ModelDescription, ModelSource
    from penstock_server.parallel import Split, TensorParallel

# Architecture as config.json names it -> module of its family.
_FAMILIES = {
    "LlamaForCausalLM": "penstock_server.models.llama",
    "PenstockIntegerForCausalLM": "penstock_server.models.integer",
}


def architecture(folder: Path) -> str:
    """The architecture of a model folder. Raises ValueError that lists the supported ones; imports no torch."""
    path = folder / "config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable model config: {error}") from error
    for name in named:
        if name in _FAMILIES:
            return str(name)
    shown = ", ".join(map(str, named)) or "none"
    raise ValueError(f"{path}: unsupported architecture {shown}; supported: {', '.join(sorted(_FAMILIES))}")


def describe(folder: Path, split: "Split", device: "torch.device", dtype: str) -> "ModelDescription":
    """What the config alone tells. `dtype` as in `ModelSource`.

    Raises ValueError for what cannot be served: an unknown architecture or activation, a broken config, heads that do
    not divide by the ranks.
    """
    description: ModelDescription = _family(folder).describe(folder, split, device, dtype)
    return description


def load(source: "ModelSource", parallel: "TensorParallel") -> "Model":
    """This rank's part of the model, read and ready. Raises ValueError as `describe` does, and for a bad checkpoint."""
    model: Model = _family(source.folder).load(source, parallel)
    return model


def _family(folder: Path) -> ModuleType:
    return importlib.import_module(_FAMILIES[architecture(folder)])
