"""Rotary frequencies against transformers, and what dynamic scaling does beyond the original length."""

import pytest
import torch
from model_testkit.tiny_llama import LLAMA3_ROPE
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from penstock_server.layers.rotary import RotaryEmbedding
from penstock_server.models.config import ModelConfig

HEAD_DIM = 40
ORIGINAL = 64
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def embeddings(rope):
    """(transformers', ours) for the same config."""
    values = {
        "vocab_size": 8, "hidden_size": 80, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "head_dim": HEAD_DIM, "max_position_embeddings": ORIGINAL, "rope_parameters": rope,
    }  # fmt: skip
    ours = RotaryEmbedding(ModelConfig.from_values(values).rope, HEAD_DIM, torch.device("cpu"), torch.float32)
    return LlamaRotaryEmbedding(LlamaConfig(**values)), ours


def factors_of_transformers(rotary, positions):
    cosine, sine = rotary(torch.zeros(1), positions[None])
    half = HEAD_DIM // 2
    return cosine[0], torch.cat((-sine[0][:, :half], sine[0][:, half:]), dim=-1)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5},
        DYNAMIC,
        LLAMA3_ROPE,
        LLAMA3_ROPE | {"factor": 32.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_equals_transformers_up_to_the_original_length(rope):
    theirs, ours = embeddings(rope)
    positions = torch.arange(ORIGINAL)
    for got, expected in zip(ours(positions), factors_of_transformers(theirs, positions), strict=True):
        assert torch.equal(got[:, 0], expected)


@pytest.mark.parametrize("rope_type", ["default", "llama3"])
def test_equals_transformers_far_out(rope_type):
    rope = LLAMA3_ROPE if rope_type == "llama3" else {"rope_type": "default", "rope_theta": 10_000.0}
    theirs, ours = embeddings(rope)
    positions = torch.tensor([0, 1, 1000, 131_071])
    for got, expected in zip(ours(positions), factors_of_transformers(theirs, positions), strict=True):
        assert torch.equal(got[:, 0], expected)


def test_dynamic_equals_transformers_token_by_token_beyond_the_original_length():
    theirs, ours = embeddings(DYNAMIC)
    for position in range(ORIGINAL - 2, 3 * ORIGINAL):
        positions = torch.tensor([position])
        for got, expected in zip(ours(positions), factors_of_transformers(theirs, positions), strict=True):
            torch.testing.assert_close(got[:, 0], expected, rtol=0, atol=1e-4)


def test_dynamic_depends_on_the_position_alone():
    _, ours = embeddings(DYNAMIC)
    positions = torch.arange(3 * ORIGINAL)
    whole = ours(positions)
    for start, end in ((0, 1), (ORIGINAL - 1, ORIGINAL + 1), (100, 180)):
        for part, factors in zip(ours(positions[start:end]), whole, strict=True):
            assert torch.equal(part, factors[start:end])


def test_dynamic_differs_from_one_long_prompt_of_transformers():
    theirs, ours = embeddings(DYNAMIC)
    positions = torch.arange(2 * ORIGINAL)
    cosine, _ = factors_of_transformers(theirs, positions)
    got = ours(positions)[0][:, 0]
    torch.testing.assert_close(got[-1], cosine[-1], rtol=0, atol=1e-4)
    assert (got[ORIGINAL // 2] - cosine[ORIGINAL // 2]).abs().max() > 1e-2
