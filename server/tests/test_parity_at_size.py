"""Parity at the shapes of a real model: layers as wide as Llama 3.1 8B's in bfloat16 on a GPU, narrow ones in float32
on a CPU. Random weights, scaled so that some tokens are far more likely than others, from a fixed seed.

The rule of bfloat16: our logits' error against float32 is at most 1.5 times that of transformers in bfloat16.
"""

from dataclasses import dataclass

import pytest
import torch
from model_testkit.paged import PagedModel
from shard_testkit.engines import EngineSizes, LocalEngine
from shard_testkit.generation import generate
from transformers import LlamaConfig, LlamaForCausalLM

from penstock_server import models
from penstock_server.models.source import ModelSource
from penstock_server.parallel import TensorParallel

NUM_PROMPTS = 64
NUM_GENERATED = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """A model, and what it is computed in."""

    config: dict[str, int]
    dtype: torch.dtype
    num_prompts: int


WIDE = Size(
    {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 4, "vocab_size": 32064, "head_dim": 128,
    },
    torch.bfloat16,
    NUM_PROMPTS,
)  # fmt: skip
NARROW = Size(
    {
        "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "vocab_size": 500, "head_dim": 16,
    },
    torch.float32,
    6,
)  # fmt: skip


ON_GPU = pytest.param(("cuda", WIDE), marks=pytest.mark.gpu, id="wide")


@pytest.fixture(params=[ON_GPU, pytest.param(("cpu", NARROW), id="narrow")])
def case(request, tmp_path):
    """(device, size, transformers' model in float32 on the device, folder)."""
    kind, size = request.param
    device = request.getfixturevalue("cuda") if kind == "cuda" else CPU
    torch.manual_seed(7)
    config = LlamaConfig(**size.config, max_position_embeddings=512, tie_word_embeddings=False, rope_theta=500_000.0)
    with torch.device(device):
        reference = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.8, 1.2)
            else:
                # A head of three times what keeps sizes: the best token is then far ahead of most.
                parameter.normal_(0, (3 if "lm_head" in name else 1) * parameter.shape[-1] ** -0.5)
        # What is stored is what the reference computes with.
        reference.to(size.dtype).float()
        reference.to(size.dtype).save_pretrained(tmp_path)
        reference.float()
    return device, size, reference, tmp_path


def prompts_of(size):
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(3, 60, (size.num_prompts,), generator=generator).tolist()
    return [torch.randint(0, size.config["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


def load(folder, dtype, device):
    return models.load(ModelSource(folder, device, str(dtype)[6:]), TensorParallel(0, 1, None, device))


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def test_errors_are_near_those_of_transformers(case):
    device, size, reference, folder = case
    ours = load(folder, size.dtype, device)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=size.dtype).to(device).eval()
    error, own, peaks = [], [], []
    for ids in prompts_of(size):
        expected = logits_of(reference, ids)
        # The prompt in one piece but for its last tokens, one by one: both kinds of attention.
        got = PagedModel(ours, device=device).run(ids, [max(1, len(ids) - 2)]).float().cpu()
        error.append((got - expected).abs().mean())
        own.append((logits_of(theirs, ids) - expected).abs().mean())
        best = expected.softmax(-1).topk(1).values
        peaks.append(best.median())
    assert torch.stack(peaks).median() > 10 / size.config["vocab_size"], "no token stands out"
    assert torch.stack(error).mean() <= 1.5 * torch.stack(own).mean() + 1e-5


@pytest.mark.parametrize("case", [ON_GPU], indirect=True)
@pytest.mark.parametrize("num_rows", [1, 17, 32])
def test_replayed_steps_give_what_called_ones_do(case, num_rows):
    """Every row's tokens, also in graphs whose size has padding."""
    device, size, _, folder = case
    prompts = prompts_of(size)[:num_rows]
    sizes = EngineSizes(tokens_per_block=16, max_tokens=2048, num_blocks=512)
    answers, replays = [], []
    for captures in (False, True):
        engine = LocalEngine(load(folder, size.dtype, device), sizes, device=device)
        if captures:
            engine.warm_up()
        before = engine.engine.num_replays
        answers.append(generate(engine, prompts, NUM_GENERATED, 16))
        replays.append(engine.engine.num_replays - before)
        engine.close()
    assert answers[0] == answers[1]
    assert replays[0] == 0
    assert replays[1] >= NUM_GENERATED - 1
    assert len({tuple(answer) for answer in answers[0]}) > num_rows // 2
