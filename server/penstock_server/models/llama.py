"""Llama 2, 3, 3.1 and 3.2, and whatever else calls itself `LlamaForCausalLM`.

Shapes: T tokens, S sampled tokens, C hidden size, V vocabulary.
"""

from pathlib import Path

import torch

from penstock_kernels.attention import prepare
from penstock_server.batch import ForwardBatch
from penstock_server.dummy_weights import DummyReader
from penstock_server.kv_cache import KvCache
from penstock_server.layers.attention import AttentionShape, SelfAttention, StepAttention
from penstock_server.layers.embedding import LmHead, VocabParallelEmbedding
from penstock_server.layers.linear import ColumnParallelLinear, LoadContext, Projection, RowParallelLinear
from penstock_server.layers.norm import RmsNorm
from penstock_server.layers.rotary import RotaryEmbedding
from penstock_server.models.base import KvSpec
from penstock_server.models.config import ModelConfig
from penstock_server.models.dtype import float32_reason, resolve_dtype
from penstock_server.models.source import ModelDescription, ModelSource
from penstock_server.parallel import Split, TensorParallel
from penstock_server.weights import CheckpointReader

# Older conversions store the rotary frequencies, which follow from the config.
_KNOWN_UNUSED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def describe(folder: Path, split: Split, device: torch.device, dtype: str) -> ModelDescription:
    """See `models.describe`."""
    config = ModelConfig.from_folder(folder)
    split.query_heads(config.num_heads)
    compute = resolve_dtype(dtype, config.dtype, device)
    return ModelDescription(
        "LlamaForCausalLM",
        config.vocab_size,
        config.max_positions,
        _kv_spec(config, split, compute),
        float32_reason(dtype, config.dtype, device),
    )


def load(source: ModelSource, parallel: TensorParallel) -> "LlamaModel":
    """See `models.load`."""
    config = ModelConfig.from_folder(source.folder)
    dtype = describe(source.folder, parallel.split, source.device, source.dtype).kv_spec.dtype
    if source.load_format == "dummy":
        return LlamaModel(config, LoadContext(DummyReader(config.dtype, source.device), parallel, source.device, dtype))
    with CheckpointReader(source.folder, _KNOWN_UNUSED, source.progress, source.device) as reader:
        return LlamaModel(config, LoadContext(reader, parallel, source.device, dtype))


def _kv_spec(config: ModelConfig, split: Split, dtype: torch.dtype) -> KvSpec:
    kv_heads = split.kv_heads(config.num_kv_heads)
    return KvSpec(config.num_layers, kv_heads.stop - kv_heads.start, config.head_dim, dtype)


class LlamaModel:
    """One rank's part of the model."""

    def __init__(self, config: ModelConfig, context: LoadContext) -> None:
        self.vocab_size = config.vocab_size
        self.kv_spec = _kv_spec(config, context.parallel.split, context.dtype)
        name, tied = "model.embed_tokens", config.tie_word_embeddings
        if tied and f"{name}.weight" not in context.reader and "lm_head.weight" in context.reader:
            name = "lm_head"  # some checkpoints store the shared matrix under its other name
        self._embedding = VocabParallelEmbedding(context, name, config.vocab_size, config.hidden_size)
        if tied:
            self._head = LmHead.tied(context, "lm_head", self._embedding, config.vocab_size)
        else:
            self._head = LmHead.load(context, "lm_head", config.vocab_size, config.hidden_size)
        self._layers = [_Layer(config, context, layer) for layer in range(config.num_layers)]
        self._norm = RmsNorm(context, "model.norm", config.hidden_size, config.norm_epsilon)
        self._rotary = RotaryEmbedding(config.rope, config.head_dim, context.device, context.dtype)

    def forward(self, batch: ForwardBatch, kv: KvCache) -> torch.Tensor:
        """Hidden states [T, C] of the step's tokens; writes their keys and values into `kv`."""
        step = StepAttention(
            prepared=prepare(batch.attention, kv.tokens_per_block, self.kv_spec.dtype),
            rotation=self._rotary(batch.positions),
            slot_mapping=batch.attention.slot_mapping,
            kv=kv,
        )
        residual = self._embedding(batch.token_ids)
        hidden = None
        for layer in self._layers:
            hidden = layer(hidden, residual, step)
        return residual if hidden is None else self._norm.add(hidden, residual)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [S, V] of the hidden states [S, C], whole on every rank."""
        return self._head(hidden)


class _Layer:
    """Attention and MLP. The residual stream is changed in place; what a layer returns is not yet added to it."""

    def __init__(self, config: ModelConfig, context: LoadContext, layer: int) -> None:
        name, size = f"model.layers.{layer}", config.hidden_size
        shape = AttentionShape(size, config.num_heads, config.num_kv_heads, config.head_dim, config.attention_bias)
        self._input_norm = RmsNorm(context, f"{name}.input_layernorm", size, config.norm_epsilon)
        self._attention = SelfAttention(context, f"{name}.self_attn", layer, shape)
        self._mlp_norm = RmsNorm(context, f"{name}.post_attention_layernorm", size, config.norm_epsilon)
        self._mlp = _Mlp(config, context, f"{name}.mlp")

    def __call__(self, hidden: torch.Tensor | None, residual: torch.Tensor, step: StepAttention) -> torch.Tensor:
        normed = self._input_norm(residual) if hidden is None else self._input_norm.add(hidden, residual)
        attended = self._attention(normed, step)
        return self._mlp(self._mlp_norm.add(attended, residual))


class _Mlp:
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, context: LoadContext, name: str) -> None:
        size, inner = config.hidden_size, config.intermediate_size
        part = context.parallel.split.part(inner)
        projections = (Projection(f"{name}.gate_proj", inner, part), Projection(f"{name}.up_proj", inner, part))
        self._gate_up = ColumnParallelLinear(context, projections, size, config.mlp_bias)
        self._down = RowParallelLinear(context, f"{name}.down_proj", (size, inner), part, config.mlp_bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(self._gate_up.silu_mul(x))
