"""The 8B shape for benchmarks on a GPU: a config and a tokenizer whose tokens are words, and where files are what is
measured, random weights in real ones, written in seconds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """Llama-3.1-8B unless told otherwise."""

    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    feed_forward: int = 14336
    vocabulary: int = 128_256
    max_positions: int = 8192

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def step_weight_bytes(self) -> int:
        """What a decode step reads of the weights in bf16: everything but the embedding table."""
        qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = qkv + self.heads * self.head_dim * self.hidden + 3 * self.hidden * self.feed_forward
        return 2 * (self.layers * layer + self.vocabulary * self.hidden)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


def describe(shape: Shape, folder: Path) -> None:
    """A model folder without weights, for `--load-format dummy`, whose answers end only at their limit."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "tokenizer.json").exists():
        return
    no_end = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(_config(shape) | no_end))
    (folder / "generation_config.json").write_text(json.dumps(no_end))
    _save_tokenizer(shape.vocabulary, folder)


def write(shape: Shape, folder: Path) -> None:
    """The same with weights; one file per layer. Needs 16 GB for the 8B shape."""
    describe(shape, folder)
    if (folder / _INDEX).exists():
        return
    index: dict[str, str] = {}
    for name, tensors in _files(shape):
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    # Last: the folder is whole when it is there.
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def prompt(num_tokens: int) -> str:
    """Text of so many tokens."""
    return " ".join(f"w{37 * place % 1000}" for place in range(num_tokens))


def _files(shape: Shape) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(std=0.02, generator=generator)

    def ones() -> torch.Tensor:
        return torch.ones(shape.hidden, dtype=torch.bfloat16)

    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        tensors = {
            "input_layernorm": ones(),
            "post_attention_layernorm": ones(),
            "self_attn.q_proj": random(width, shape.hidden),
            "self_attn.k_proj": random(kv_width, shape.hidden),
            "self_attn.v_proj": random(kv_width, shape.hidden),
            "self_attn.o_proj": random(shape.hidden, width),
            "mlp.gate_proj": random(shape.feed_forward, shape.hidden),
            "mlp.up_proj": random(shape.feed_forward, shape.hidden),
            "mlp.down_proj": random(shape.hidden, shape.feed_forward),
        }
        named = {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in tensors.items()}
        yield f"layer-{layer}.safetensors", named
    table = random(shape.vocabulary, shape.hidden)
    yield (
        "ends.safetensors",
        {
            "model.embed_tokens.weight": table,
            "model.norm.weight": ones(),
            "lm_head.weight": random(shape.vocabulary, shape.hidden),
        },
    )


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _save_tokenizer(vocabulary: int, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")
    wrapped.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    wrapped.save_pretrained(folder)
