"""The Llama family against transformers: whole prompts, prompts in two pieces, decoding, batches, and several ranks."""

import pytest
import torch
from model_testkit.paged import PagedModel
from model_testkit.parity import Output, check_parity
from model_testkit.ranks import Run, run_ranks
from model_testkit.tiny_llama import CASES, load_reference, reference_logits, save
from safetensors.torch import load_file, save_file

from penstock_server import models
from penstock_server.models.llama import LlamaModel
from penstock_server.models.source import ModelSource
from penstock_server.parallel import Split, TensorParallel

CPU = torch.device("cpu")
# Largest difference of a logit; the tiny models' logits reach about 10.
TOLERANCE = 1e-4


def load(folder, dtype="float32"):
    return models.load(ModelSource(folder, CPU, dtype), TensorParallel(0, 1, None, CPU))


def token_ids(count, seed=0, vocab_size=131):
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(transformers' model, ours, folder)."""
    folder = tmp_path_factory.mktemp("llama")
    reference = save(folder, **CASES[request.param])
    return reference, load(folder), folder


def test_whole_prompt_then_decode(case):
    reference, model, _ = case
    ids = token_ids(60)
    expected = reference_logits(reference, ids)
    assert expected.abs().max() > 1
    for pieces in ([60], [41], [1]):
        got = PagedModel(model).run(ids, pieces)
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_prompt_split_at_every_boundary(case):
    reference, model, _ = case
    ids = token_ids(36, seed=1)
    expected = reference_logits(reference, ids)
    paged = PagedModel(model, num_blocks=36 * 3 + 1)
    for first in range(1, 36):
        got = paged.run(ids, [first, 36 - first])
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE, msg=lambda m, cut=first: f"cut {cut}: {m}")


def test_a_row_has_the_same_bits_alone_and_in_a_batch(case):
    _, model, _ = case
    prompts = [token_ids(length, seed=length) for length in (3, 17, 30, 31, 64, 70)]
    alone = [PagedModel(model).run(ids, [len(ids) - 2]) for ids in prompts]
    paged = PagedModel(model)
    rows = [paged.sequence(ids) for ids in prompts]
    steps = [paged.step([(row, len(row.ids) - 2) for row in rows], padded_tokens=3)]
    steps += [paged.step([(row, 1) for row in rows]) for _ in range(2)]
    for index, expected in enumerate(alone):
        assert torch.equal(torch.cat([step[index] for step in steps]), expected)


def test_mixed_steps_equal_the_reference(case):
    reference, model, _ = case
    first, second = token_ids(40, seed=2), token_ids(50, seed=3)
    paged = PagedModel(model)
    a, b = paged.sequence(first), paged.sequence(second)
    got_a, got_b = [], []
    for pieces in ([(a, 30)], [(a, 1), (b, 20)], [(b, 1), (a, 1)], [(a, 5), (b, 29)], [(a, 3)]):
        for (sequence, _), logits in zip(pieces, paged.step(pieces), strict=True):
            (got_a if sequence is a else got_b).append(logits)
    torch.testing.assert_close(torch.cat(got_a), reference_logits(reference, first), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.cat(got_b), reference_logits(reference, second), rtol=0, atol=TOLERANCE)


def test_greedy_tokens_pass_parity(case):
    reference, model, _ = case
    outputs = []
    for seed in range(4):
        prompt = token_ids(10 + seed, seed=seed)
        paged = PagedModel(model)
        sequence = paged.sequence(prompt + [0] * 30)
        token = int(paged.step([(sequence, len(prompt))])[0][-1].argmax())
        generated = [token]
        for _ in range(29):
            sequence.ids[sequence.fed] = token
            token = int(paged.step([(sequence, 1)])[0][-1].argmax())
            generated.append(token)
        outputs.append(Output(prompt, generated))
    report = check_parity(reference, outputs)
    assert report.num_positions == 120


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("biases", (2,)), ("tied", (2,)), ("one-kv-head", (2,)), ("two-kv-heads", (4,)), ("untied", (2,))],
)
def test_several_ranks(name, sizes, tmp_path):
    reference = save(tmp_path / "model", **CASES[name])
    ids = token_ids(45, seed=4)
    expected = reference_logits(reference, ids)
    runs = [Run(ids, [45]), Run(ids, [20, 21])]
    for size in sizes:
        by_rank = run_ranks(tmp_path / "model", tmp_path / f"ranks-{size}", size, runs)
        for logits in by_rank:
            for index, got in enumerate(logits):
                torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
                assert torch.equal(got, by_rank[0][index]), "ranks differ"


@pytest.mark.parametrize("kind", ["equal", "different", "different in one rank", "alone"])
def test_a_tied_config_beside_a_head_in_the_checkpoint(kind, tmp_path):
    """As transformers: an equal head is the embedding, a different one a head of its own; alone it is both."""
    folder = tmp_path / "model"
    save(folder, max_shard_size="1GB", **CASES["tied"])
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    if kind == "different":
        head = head.flip(0).contiguous()
    if kind == "different in one rank":
        head[-1] = 1.0
    if kind == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    ids = token_ids(20, seed=6)
    expected = reference_logits(load_reference(folder), ids)
    torch.testing.assert_close(PagedModel(load(folder)).run(ids, [20]), expected, rtol=0, atol=TOLERANCE)
    if kind == "different in one rank":
        for (logits,) in run_ranks(folder, tmp_path / "ranks", 2, [Run(ids, [20])]):
            torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("size", "words"), [(3, "2 key-value heads"), (4, "6 query heads")])
def test_ranks_that_do_not_fit_the_heads_are_refused(size, words, tmp_path):
    save(tmp_path, **CASES["untied"])
    with pytest.raises(ValueError, match=words):
        models.describe(tmp_path, Split(0, size), CPU, "float32")


def test_description_needs_no_weights(tmp_path):
    save(tmp_path, **CASES["biases"])
    for weights in tmp_path.glob("*.safetensors*"):
        weights.unlink()
    description = models.describe(tmp_path, Split(1, 2), CPU, "auto")
    assert (description.vocab_size, description.max_positions) == (131, 128)
    spec = description.kv_spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.dtype) == (2, 1, 40, torch.float32)


def test_bfloat16_error_is_near_transformers_own(tmp_path):
    reference = save(tmp_path, **CASES["tied-bfloat16"])
    model = load(tmp_path, "bfloat16")
    assert isinstance(model, LlamaModel)
    ids = token_ids(60, seed=5)
    expected = reference_logits(reference, ids)
    own = reference_logits(load_reference(tmp_path, torch.bfloat16), ids).float()
    error = (PagedModel(model).run(ids, [40]) - expected).abs().mean()
    assert error <= 1.5 * (own - expected).abs().mean()


def test_several_files_were_saved(case):
    assert len(list(case[2].glob("*.safetensors"))) > 1
