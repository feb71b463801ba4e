"""Warpers against transformers' processors: 20 fixed rows, each parameter alone, and 30 combinations."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as reference

from penstock_kernels.sample import host_rows
from penstock_kernels.sample_workspace import SampleWorkspace
from penstock_kernels.warpers import (
    MIN_TEMPERATURE,
    Warper,
    WarpParams,
    top_k_limits,
    top_p_limits,
    typical_p_limits,
    warp,
    warp_ref,
)

CPU = torch.device("cpu")
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
SINGLES = [
    *({"temperature": value} for value in (0.01, 0.3, 0.7, 1.5, 10.0)),
    *({"top_k": value} for value in (1, 2, 5, 50, 1000, 10**9)),
    *({"top_p": value} for value in (0.01, 0.1, 0.25, 0.5, 0.8, 0.9, 0.95, 0.999)),
    *({"min_p": value} for value in (0.001, 0.05, 0.1, 0.5, 1.0)),
    *({"typical_p": value} for value in (0.05, 0.2, 0.5, 0.9, 0.95, 0.999)),
]


def fixed_rows(vocab_size: int) -> torch.Tensor:
    """20 rows of logits: what models give, and what breaks samplers."""
    generator = torch.Generator().manual_seed(20)
    noise = torch.randn((20, vocab_size), generator=generator)
    ids = torch.arange(vocab_size)
    rows = noise * 3
    rows[1] *= 0.3
    rows[2] *= 3
    rows[3] = rows[3].bfloat16().float()  # what a bf16 model gives: many equal logits
    rows[4] = -1.1 * torch.log(1.0 + ids.float())  # Zipf
    rows[5] = rows[4][torch.randperm(vocab_size, generator=generator)] + 40
    rows[6] = 0  # flat
    rows[7] = -7.25
    rows[7, 5] = 3  # flat but for one
    rows[8, vocab_size // 2] = 120  # peaked: all others have probability 0
    rows[9] = (ids % 2).float()  # two levels
    rows[10] = (noise[10] * 2).round() / 2  # few levels
    rows[11, ids % 2 == 0] = -torch.inf
    rows[12] = -torch.inf
    rows[12, 17] = -3.0  # a single choice
    rows[13] = -torch.inf
    rows[13, 3:9] = 1.5  # six equal choices
    rows[14] *= 1e4
    rows[15] = torch.where(ids % 3 == 0, -0.0, 0.0)  # equal numbers of unequal bits
    rows[16] = -0.01 * ids.float()  # geometric
    rows[17] = 1.0 + 0.05 * noise[17]  # all but flat
    rows[18] = torch.where(ids < 10, 5.0, -5.0)  # a plateau
    rows[19] = -1e30 + 0 * noise[19]
    return rows


def combinations() -> list[dict[str, float]]:
    """30 random settings of all five parameters."""
    draw = np.random.default_rng(30)
    choices = {
        "temperature": (0.3, 0.7, 1.0, 1.3, 2.0),
        "top_k": (0, 1, 3, 20, 50, 200),
        "top_p": (0.2, 0.5, 0.8, 0.9, 0.95, 1.0),
        "min_p": (0.0, 0.01, 0.05, 0.2),
        "typical_p": (0.2, 0.5, 0.9, 0.95, 1.0),
    }
    return [{name: draw.choice(values).item() for name, values in choices.items()} for _ in range(30)]


def params_of(settings: list[dict[str, float]], vocab_size: int) -> WarpParams:
    """Parameters of one row per settings dict."""

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([{**NEUTRAL, **row}[name] for row in settings]).astype(dtype)

    columns = (
        np.maximum(column("temperature", np.float32), np.float32(MIN_TEMPERATURE)),
        top_k_limits(column("top_k", np.int32), vocab_size),
        top_p_limits(column("top_p", np.float32)),
        column("min_p", np.float32),
        typical_p_limits(column("typical_p", np.float32)),
    )
    return WarpParams(*(torch.from_numpy(values) for values in columns))


def warped(scores: torch.Tensor, settings: list[dict[str, float]], *, skip: bool = True) -> torch.Tensor:
    """Our warpers on a copy of the rows, one settings dict per row; `skip` leaves out stages that no row needs."""
    names = {warper: warper.name.lower() for warper in Warper}
    needed = {
        warper: np.array([row.get(name, NEUTRAL[name]) != NEUTRAL[name] for row in settings])
        for warper, name in names.items()
    }
    stages = {
        warper: torch.from_numpy(np.flatnonzero(rows)) if skip and not rows.all() else None
        for warper, rows in needed.items()
        if rows.any() or not skip
    }
    result, workspace = scores.clone(), SampleWorkspace(scores.shape[1], CPU)
    for buffer in (workspace.probs, workspace.subset):
        buffer.fill_(torch.nan)  # reading before writing shows
    warp(result, params_of(settings, scores.shape[1]), stages, workspace)
    return result


def transformed(scores: torch.Tensor, settings: dict[str, float]) -> torch.Tensor:
    """transformers' processors, in the order of its `_get_logits_processor`."""
    values = {**NEUTRAL, **settings}
    processors = [
        reference.TemperatureLogitsWarper(values["temperature"]) if values["temperature"] != 1 else None,
        reference.TopKLogitsWarper(values["top_k"]) if values["top_k"] else None,
        reference.TopPLogitsWarper(values["top_p"]) if values["top_p"] < 1 else None,
        reference.MinPLogitsWarper(values["min_p"]) if values["min_p"] else None,
        reference.TypicalLogitsWarper(values["typical_p"]) if values["typical_p"] < 1 else None,
    ]
    for processor in processors:
        scores = scores if processor is None else processor(None, scores)
    return scores


def check(vocab_size: int, settings: dict[str, float]) -> None:
    """The same tokens with the same probabilities; of equal scores the same number."""
    scores = fixed_rows(vocab_size)
    ours, theirs = warped(scores, [settings] * 20), transformed(scores, settings)
    for row in range(20):
        mine, other = torch.softmax(ours[row], 0), torch.softmax(theirs[row], 0)
        kept, other_kept = ours[row] > -torch.inf, theirs[row] > -torch.inf
        assert kept.sum() == other_kept.sum(), f"row {row}"
        torch.testing.assert_close(mine.sort().values, other.sort().values, atol=1e-5, rtol=0)
        # transformers leaves it to an unstable sort which of equal scores it keeps when it cuts through them.
        assert scores[row][kept != other_kept].unique().numel() <= 1, f"row {row}"
        same = kept == other_kept
        torch.testing.assert_close(mine[same], other[same], atol=1e-5, rtol=0)


@pytest.mark.parametrize("vocab_size", [1000, 2003])
@pytest.mark.parametrize("settings", SINGLES, ids=str)
def test_each_parameter_equals_transformers(settings, vocab_size):
    check(vocab_size, settings)


@pytest.mark.parametrize("settings", combinations(), ids=str)
def test_combinations_equal_transformers(settings):
    check(2003, settings)


def test_warping_equals_its_reference():
    settings = [*combinations()[:15], *({name: value} for name, value in (("top_p", 0.4), ("typical_p", 0.6)))]
    settings += [{"top_k": 7}, {"min_p": 0.1}, {}]
    scores = torch.randn((20, 700), generator=torch.Generator().manual_seed(9)) * 2
    scores[:, ::5] = scores[:, ::5].round()
    expected = scores.clone()
    warp_ref(expected, params_of(settings, 700))
    assert torch.equal(warped(scores, settings), expected)
    assert torch.equal(expected[19], scores[19])


def test_large_vocabulary_equals_transformers():
    check(49_152, {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "typical_p": 0.9})


@pytest.mark.parametrize("top_p", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("vocab_size", [10, 50, 100, 1000])
def test_top_p_that_divides_equal_scores_keeps_as_many_as_transformers(top_p, vocab_size):
    scores = torch.zeros((1, vocab_size))
    kept = (warped(scores, [{"top_p": top_p}]) == 0).sum()
    assert kept == (transformed(scores, {"top_p": top_p}) == 0).sum()


def test_top_p_keeps_the_lowest_of_equal_ids():
    assert warped(torch.zeros((1, 10)), [{"top_p": 0.35}]).isfinite().nonzero()[:, 1].tolist() == [0, 1, 2, 3]


def test_one_token_always_stays():
    scores = fixed_rows(1000)
    for settings in ({"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}, {"typical_p": 1e-9}, {"temperature": 1e-38}):
        result = warped(scores, [settings] * 20)
        assert (result > -torch.inf).any(1).all(), settings
        assert not torch.softmax(result, 1).isnan().any(), settings


# The last is long enough that torch would split one row's reduction over threads.
@pytest.mark.parametrize("vocab_size", [1000, 2003, 50_001])
def test_a_row_does_not_depend_on_its_neighbours_or_on_skipped_stages(vocab_size):
    scores = fixed_rows(vocab_size)
    settings = [*combinations()[:12], *({name: value} for name, value in NEUTRAL.items()), {"top_p": 0.3}, {}, {}]
    together = warped(scores, settings)
    assert torch.equal(together, warped(scores, settings, skip=False))
    for row in range(20):
        alone = warped(scores[row : row + 1], settings[row : row + 1])
        assert torch.equal(alone[0], together[row]), f"row {row}"
    for row in (17, 18, 19):
        expected = warped(scores[row : row + 1], [settings[row]])[0] if settings[row] else scores[row]
        assert torch.equal(together[row], expected)


@pytest.mark.parametrize("warper", Warper)
def test_a_stage_leaves_rows_that_it_does_not_name_alone_whatever_their_parameters(warper):
    scores = fixed_rows(1000)
    settings = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9}
    named = host_rows(np.arange(20) % 3 == 1, CPU)
    found, every = scores.clone(), scores.clone()
    warp(found, params_of([settings] * 20, 1000), {warper: named}, SampleWorkspace(1000, CPU))
    warp(every, params_of([settings] * 20, 1000), {warper: None}, SampleWorkspace(1000, CPU))
    expected = scores.clone()
    expected[named] = every[named]
    assert torch.equal(found, expected)
    assert not torch.equal(found, every)


def test_a_row_of_nan_harms_no_other():
    scores = fixed_rows(1000)
    settings = [{"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9}] * 20
    clean = warped(scores, settings)
    for poison in (torch.nan, torch.inf, -torch.inf):
        scores[4] = poison
        dirty = warped(scores, settings)
        assert torch.equal(dirty[:4], clean[:4])
        assert torch.equal(dirty[5:], clean[5:])
