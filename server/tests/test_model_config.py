"""config.json as transformers 4 and 5 write it, and what is refused."""

import json

import pytest
import torch
from transformers import LlamaConfig

from penstock_server import models
from penstock_server.layers.rotary import RopeConfig
from penstock_server.models.config import ModelConfig
from penstock_server.models.dtype import float32_reason, resolve_dtype

# As transformers 4 wrote Llama 3.2 1B's, shortened to what matters.
VERSION_4 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def changed(**changes):
    values = VERSION_4 | changes
    return ModelConfig.from_values({key: value for key, value in values.items() if value is not ...})


def test_version_4():
    assert changed() == ModelConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_positions=131072,
        norm_epsilon=1e-5,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=True,
        rope=RopeConfig("llama3", 500000.0, 32.0, 1.0, 4.0, 8192),
        dtype=torch.bfloat16,
    )


def test_version_5_says_the_same(tmp_path):
    LlamaConfig(**VERSION_4).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in written
    assert "dtype" in written
    assert ModelConfig.from_folder(tmp_path) == changed()


def test_what_older_configs_leave_out():
    config = changed(head_dim=..., num_key_value_heads=..., rope_scaling=None, rope_theta=..., torch_dtype=...,
                     attention_bias=..., tie_word_embeddings=..., rms_norm_eps=...)  # fmt: skip
    assert (config.head_dim, config.num_kv_heads) == (64, 32)
    assert config.rope == RopeConfig("default", 10000.0)
    assert (config.dtype, config.norm_epsilon) == (torch.float32, 1e-6)
    assert not config.tie_word_embeddings


def test_rope_keys():
    assert changed(rope_scaling={"type": "linear", "factor": 4}).rope == RopeConfig("linear", 500000.0, 4.0)
    dynamic = changed(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=4096).rope
    assert dynamic == RopeConfig("dynamic", 500000.0, 2.0, original_max_positions=4096)
    inner = changed(rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 7.0}, rope_theta=9.0).rope
    assert inner.theta == 7.0


def test_null_means_absent():
    bare = dict.fromkeys(("rope_scaling", "rope_theta", "rms_norm_eps", "hidden_act", "head_dim", "torch_dtype"))
    config = changed(**bare)
    assert (config.rope, config.norm_epsilon) == (RopeConfig("default", 10000.0), 1e-6)
    inner = {"rope_type": "linear", "factor": 2.0, "rope_theta": None}
    assert changed(rope_scaling=inner).rope == RopeConfig("linear", 500000.0, 2.0)
    original = {**VERSION_4["rope_scaling"]}
    assert changed(rope_scaling=original, original_max_position_embeddings=None).rope == changed().rope


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "unsupported hidden_act 'gelu'; supported: silu"),
        ({"hidden_size": ...}, "no hidden_size"),
        ({"num_hidden_layers": "16"}, "num_hidden_layers is '16', not a positive integer"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"head_dim": 33}, "head_dim 33 is odd"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is no multiple of num_key_value_heads 5"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "unsupported rope_type 'yarn'; supported: default, linear, dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "no factor"),
        ({"rope_scaling": [1]}, "not an object"),
        ({"rope_scaling": None, "partial_rotary_factor": 0.5}, "unsupported partial_rotary_factor 0.5"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"torch_dtype": "int8"}, "unsupported dtype 'int8'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unsupported quantization_config"),
    ],
)
def test_refusals_name_the_key(changes, words):
    with pytest.raises(ValueError, match=words):
        changed(**changes)


def test_an_unknown_architecture_lists_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["MysteryModel"]}')
    with pytest.raises(ValueError, match=r"MysteryModel; supported: LlamaForCausalLM, PenstockIntegerForCausalLM"):
        models.architecture(tmp_path)


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_a_broken_config_is_named(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        models.architecture(tmp_path)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("name", "stored", "has_bf16", "dtype", "reason"),
    [
        ("auto", FP32, True, FP32, None),
        ("auto", BF16, True, FP32, "computing in float32, the default on a CPU; the checkpoint is bfloat16"),
        ("auto", FP16, False, FP32, "computing in float32, the default on a CPU; the checkpoint is float16"),
        ("float32", BF16, True, FP32, None),
        ("bfloat16", FP32, True, BF16, None),
        ("bfloat16", BF16, False, FP32, "computing in float32: this CPU has no bfloat16 arithmetic"),
        ("float16", BF16, True, FP32, "computing in float32: float16 is no faster on a CPU"),
    ],
)
def test_dtype_on_a_cpu(name, stored, has_bf16, dtype, reason, monkeypatch):
    monkeypatch.setattr("penstock_server.models.dtype.has_bf16_arithmetic", lambda: has_bf16)
    assert resolve_dtype(name, stored, torch.device("cpu")) == dtype
    found = float32_reason(name, stored, torch.device("cpu"))
    assert found == reason if reason is None else found.startswith(reason)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        resolve_dtype("int4", torch.bfloat16, torch.device("cpu"))


def test_dtype_on_a_gpu():
    gpu = torch.device("cuda")
    assert resolve_dtype("auto", torch.bfloat16, gpu) == torch.bfloat16
    assert resolve_dtype("float16", torch.bfloat16, gpu) == torch.float16
    assert float32_reason("auto", torch.bfloat16, gpu) is None
