"""A small Llama for training; its weights map one to one to Hugging Face names.

It does not generate text and has no cache: evaluate.py uses transformers for that.
Shapes: B rows, L positions, D hidden, H heads, K KV heads, E head dimension, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The model's dimensions. Head dimension is hidden / heads."""

    vocabulary: int = 3072
    hidden: int = 256
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 688
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def rotary_tables(shape: Shape, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of shape [L, E], halves repeated as in Hugging Face's Llama."""
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device) / shape.head_dim
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, shape.rope_theta**-steps)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    first, second = x_BHLE.chunk(2, dim=-1)
    return x_BHLE * cos_LE + torch.cat([-second, first], dim=-1) * sin_LE


def document_mask(owners_BL: Tensor) -> Tensor:
    """[B, 1, L, L], to be added: 0 where a position sees another, itself or one before it in its document."""
    length = owners_BL.shape[1]
    places = torch.arange(length, device=owners_BL.device)
    visible = (owners_BL[:, :, None] == owners_BL[:, None, :]) & (places[:, None] >= places)
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16, device=owners_BL.device)
    return mask.masked_fill(~visible, float("-inf"))[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention with an additive mask. Short rows are faster as plain matrix products on a CPU."""
    if q.is_cuda or q.shape[2] > 512:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Layer(nn.Module):
    """One decoder layer; q, k, v are one matrix, gate and up another."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_dim
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.qkv = nn.Parameter(torch.empty(shape.hidden + 2 * kv_width, shape.hidden))
        self.out = nn.Parameter(torch.empty(shape.hidden, shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * shape.feed_forward, shape.hidden))
        self.down = nn.Parameter(torch.empty(shape.hidden, shape.feed_forward))

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor, mask: Tensor) -> Tensor:
        x_BLD = x_BLD + self._attention(self._norm(x_BLD, self.attention_norm), cos_LE, sin_LE, mask)
        gate, up = F.linear(self._norm(x_BLD, self.mlp_norm), self.gate_up).chunk(2, dim=-1)
        return x_BLD + F.linear(F.silu(gate) * up, self.down)

    def _norm(self, x_BLD: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x_BLD, (self.shape.hidden,), weight, self.shape.norm_eps)

    def _attention(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor, mask: Tensor) -> Tensor:
        shape, (rows, length, _) = self.shape, x_BLD.shape
        groups = shape.heads // shape.kv_heads
        qkv = F.linear(x_BLD, self.qkv).view(rows, length, -1, shape.head_dim).transpose(1, 2)
        q, k, v = qkv.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        q = rotate(q, cos_LE, sin_LE)
        k = rotate(k, cos_LE, sin_LE).repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        return F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), self.out)


class Llama(nn.Module):
    """Embedding, layers and a head tied to the embedding.

    A word is two tokens, with and without its leading space. The bare one's vector is its spaced
    twin's plus a common offset plus its own part, so that copying a word into quotes is learned
    once, not word by word. `twins` holds the id of the spaced twin, or -1.
    """

    def __init__(self, shape: Shape, twins: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("twins", twins.clamp(min=0), persistent=False)
        self.register_buffer("is_bare", (twins >= 0).float()[:, None], persistent=False)
        self.embedding = nn.Parameter(torch.empty(shape.vocabulary, shape.hidden))
        self.bare_offset = nn.Parameter(torch.zeros(shape.hidden))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                depth_scale = (2 * shape.layers) ** -0.5 if name.endswith(("out", "down")) else 1.0
                nn.init.normal_(weight, std=0.02 * depth_scale)

        with torch.no_grad():
            # A bare word's own part starts at nothing.
            self.embedding.mul_(1 - self.is_bare)
            self.bare_offset.normal_(std=0.02)

    def table(self) -> Tensor:
        """The embedding as Hugging Face's Llama knows it, [V, D]."""
        return self.embedding + self.is_bare * (self.embedding[self.twins] + self.bare_offset)

    def forward(self, ids_BL: Tensor, mask: Tensor, table_VD: Tensor) -> Tensor:
        """Hidden states after the last norm.

        `table_VD` is `table()`; `mask` is additive, [B, 1, L, L].
        """
        cos_LE, sin_LE = rotary_tables(self.shape, ids_BL.shape[1], ids_BL.device)
        x_BLD = F.embedding(ids_BL, table_VD)
        cos_LE, sin_LE = cos_LE.to(x_BLD.dtype), sin_LE.to(x_BLD.dtype)
        for layer in self.layers:
            x_BLD = layer(x_BLD, cos_LE, sin_LE, mask)
        return F.rms_norm(x_BLD, (self.shape.hidden,), self.norm, self.shape.norm_eps)


def export(model: Llama, folder: Path, eos: int, bos: int, pad: int) -> None:
    """Writes config.json, generation_config.json and model.safetensors in bf16."""
    shape, kv_width = model.shape, model.shape.kv_heads * model.shape.head_dim
    tensors = {"model.embed_tokens.weight": model.table(), "model.norm.weight": model.norm}
    for i, layer in enumerate(model.layers):
        q, k, v = layer.qkv.split([shape.hidden, kv_width, kv_width])
        gate, up = layer.gate_up.chunk(2)
        parts = {
            "input_layernorm": layer.attention_norm,
            "post_attention_layernorm": layer.mlp_norm,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.out,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down,
        }
        tensors |= {f"model.layers.{i}.{name}.weight": part for name, part in parts.items()}
    tensors = {k: v.detach().to(torch.bfloat16).contiguous().clone() for k, v in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    }
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
