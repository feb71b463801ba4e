"""The parity helper itself: what it lets pass, what it counts, and what it catches."""

from types import SimpleNamespace

import pytest
import torch
from model_testkit.parity import Output, check_parity


def reference(*rows):
    """A model that gives these logits at the last positions of any input, whatever its ids."""

    def forward(ids):
        logits = torch.zeros(1, ids.shape[1], 4)
        logits[0, ids.shape[1] - len(rows) :] = torch.tensor(rows)
        return SimpleNamespace(logits=logits)

    return forward


CLEAR = [0.0, 5.0, 1.0, 0.0]
TIE = [0.0, 5.0, 4.9999, 0.0]
NEAR_TIE = [0.0, 5.0, 4.9992, 0.0]


def test_equal_tokens_pass_and_are_counted(capsys):
    report = check_parity(reference(*[CLEAR] * 20), [Output([1, 2], [1] * 20)] * 2)
    assert (report.num_positions, report.num_excused, report.num_different) == (40, 0, 0)
    assert "40 positions, 0 excused" in capsys.readouterr().out


def test_a_tie_is_excused_and_counted():
    report = check_parity(reference(*[CLEAR] * 19, TIE), [Output([1], [1] * 19 + [2])])
    assert (report.num_excused, report.num_different) == (1, 1)


@pytest.mark.parametrize("other", [0, 2, 3])
def test_another_token_at_a_clear_gap_fails(other):
    with pytest.raises(
        AssertionError, match=f"output 0, generated token 7: chose {other}, the reference chooses 1 by 4"
    ):
        check_parity(reference(*[CLEAR] * 20), [Output([1], [1] * 7 + [other] + [1] * 12)])


def test_a_token_too_far_below_a_tie_fails():
    with pytest.raises(AssertionError, match="whose logit is"):
        check_parity(reference(*[CLEAR] * 19, NEAR_TIE), [Output([1], [1] * 19 + [2])])


def test_too_few_clear_gaps_fail():
    with pytest.raises(AssertionError, match="too few positions"):
        check_parity(reference(*[CLEAR] * 18, TIE, TIE), [Output([1], [1] * 20)])


def test_nothing_generated_fails():
    with pytest.raises(AssertionError, match="no output has a token"):
        check_parity(reference(), [Output([1], [])])
