"""Tiny random Llama checkpoints of awkward shapes, saved by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Every case has grouped-query heads 6/2 of size 40, which is not hidden_size / heads, unless it says otherwise.
CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied-bfloat16": {"tie_word_embeddings": True, "dtype": torch.bfloat16},
    "many-heads": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 34, "hidden_size": 132},
    "one-kv-head": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "hidden_size": 132},
    "two-kv-heads": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 132},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}},
    "rope-dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}},
    "rope-llama3": {"rope_parameters": LLAMA3_ROPE},
}


def save(folder: Path, seed: int = 0, max_shard_size: str = "300KB", **changes: Any) -> LlamaForCausalLM:
    """Writes a checkpoint to `folder`, by default in several files, and returns the float32 model it holds."""
    values: dict[str, Any] = {
        "vocab_size": 131,
        "hidden_size": 168,
        "intermediate_size": 201,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 40,
        "max_position_embeddings": 128,
        "eos_token_id": [3, 5, 7],
    }
    dtype = changes.pop("dtype", torch.float32)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(values | changes))).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh norms are ones and fresh biases zeros: mistakes in either would not show.
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return load_reference(folder)


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Read back rather than cast: a cast would also round the rotary frequencies."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def reference_logits(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """float32 [N, V]: one pass over the whole sequence."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits
