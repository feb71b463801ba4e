"""Hugging Face's config.json as one frozen `ModelConfig`, whether transformers 4 or 5 wrote it.

Version 4 wrote `torch_dtype`, `rope_theta` and `rope_scaling`; version 5 writes `dtype` and `rope_parameters`. Absent
keys, and null ones, have the defaults of transformers' LlamaConfig where it has harmless ones; a size that is absent is
an error.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penstock_server.layers.rotary import RopeConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ACTIVATIONS = ("silu", "swish")
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder needs to know of itself."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_epsilon: float
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    rope: RopeConfig
    dtype: torch.dtype  # of the checkpoint; float32 where it does not say

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelConfig":
        """Raises ValueError that names the file and the key."""
        path = folder / "config.json"
        try:
            return cls.from_values(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ModelConfig":
        """From the parsed object. Raises ValueError that names the key."""
        activation = values.get("hidden_act") or "silu"
        if activation not in _ACTIVATIONS:
            raise ValueError(f"unsupported hidden_act {activation!r}; supported: {', '.join(_ACTIVATIONS)}")
        if values.get("quantization_config") is not None:
            raise ValueError("unsupported quantization_config: only unquantized checkpoints can be served")
        hidden_size, num_heads = _size(values, "hidden_size"), _size(values, "num_attention_heads")
        head_dim = _size(values, "head_dim", hidden_size // num_heads)
        if head_dim % 2:
            raise ValueError(f"head_dim {head_dim} is odd: rotary embedding turns pairs")
        num_kv_heads = _size(values, "num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
        max_positions = _size(values, "max_position_embeddings", 2048)
        return cls(
            vocab_size=_size(values, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(values, "intermediate_size"),
            num_layers=_size(values, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_positions=max_positions,
            norm_epsilon=_number(values, "rms_norm_eps", 1e-6),
            attention_bias=bool(values.get("attention_bias", False)),
            mlp_bias=bool(values.get("mlp_bias", False)),
            tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
            rope=_rope(values, max_positions),
            dtype=_dtype(values.get("dtype") or values.get("torch_dtype") or "float32"),
        )


def _size(values: dict[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"no {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}, not a positive integer")
    return value


def _number(values: dict[str, Any], key: str, default: float | None = None) -> float:
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"no {key}")
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{key} is {value!r}, not a positive number")
    return float(value)


def _dtype(name: Any) -> torch.dtype:
    short = str(name).removeprefix("torch.")
    if short not in _DTYPES:
        raise ValueError(f"unsupported dtype {name!r}; supported: {', '.join(_DTYPES)}")
    return _DTYPES[short]


def _rope(values: dict[str, Any], max_positions: int) -> RopeConfig:
    """As transformers: `rope_scaling` if it is there, else `rope_parameters`; inner keys before outer ones."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling is {rope!r}, not an object")  # noqa: TRY004 - a user's mistake, not ours
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_TYPES:
        raise ValueError(f"unsupported rope_type {kind!r}; supported: {', '.join(_ROPE_TYPES)}")
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"unsupported partial_rotary_factor {partial!r}; only 1.0 is")
    theta = _number(rope if rope.get("rope_theta") is not None else values, "rope_theta", 10_000.0)
    if kind == "default":
        return RopeConfig(kind, theta)
    factor = _number(rope, "factor")
    if kind == "linear":
        return RopeConfig(kind, theta, factor)
    if kind == "dynamic":
        return RopeConfig(kind, theta, factor, original_max_positions=max_positions)
    # As in transformers, a value beside the rope keys wins over the one among them.
    key = "original_max_position_embeddings"
    return RopeConfig(
        kind=kind,
        theta=theta,
        factor=factor,
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_max_positions=_size(values if values.get(key) is not None else rope, key, max_positions),
    )
