"""A tiny Llama checkpoint with random weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write_llama(folder: Path, seed: int = 0) -> Path:
    """A model folder without a tokenizer; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv_size = hidden * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    shapes = {"model.embed_tokens": (SHAPE["vocab_size"], hidden), "lm_head": (SHAPE["vocab_size"], hidden)}
    norms = ["model.norm"]
    for layer in range(SHAPE["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        norms += [f"{name}.input_layernorm", f"{name}.post_attention_layernorm"]
        shapes |= {
            f"{name}.self_attn.q_proj": (hidden, hidden),
            f"{name}.self_attn.k_proj": (kv_size, hidden),
            f"{name}.self_attn.v_proj": (kv_size, hidden),
            f"{name}.self_attn.o_proj": (hidden, hidden),
            f"{name}.mlp.gate_proj": (inner, hidden),
            f"{name}.mlp.up_proj": (inner, hidden),
            f"{name}.mlp.down_proj": (hidden, inner),
        }
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    tensors |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    save_file(tensors, folder / "model.safetensors")
    return folder
