"""Float parity of generated tokens with transformers, by one teacher-forced pass of the reference per output.

A greedy token of another implementation need not equal the reference's: sums are rounded in another order, and where
two logits are nearly equal either may win. The rule: every chosen token's reference logit lies within
1e-4 * max(1, |logit|) of the maximum; the tokens are equal wherever the reference's two best differ by more than 1e-3;
and at least 95 % of positions must have such a gap, or the comparison would prove nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

NEAR = 1e-4
GAP = 1e-3
MIN_DECIDED_SHARE = 0.95


@dataclass(frozen=True)
class Output:
    """What was generated greedily from `prompt`."""

    prompt: list[int]
    generated: list[int]


@dataclass(frozen=True)
class ParityReport:
    """Over all outputs."""

    num_positions: int
    num_excused: int  # gap of at most GAP, whichever token was chosen
    num_different: int  # excused positions where the reference would have chosen another token

    def __str__(self) -> str:
        return (
            f"parity: {self.num_positions} positions, {self.num_excused} excused by a gap of at most {GAP}, "
            f"{self.num_different} of them different"
        )


def check_parity(reference: Any, outputs: Sequence[Output]) -> ParityReport:
    """Prints the report and returns it. Raises AssertionError that names the first offending output and position.

    `reference`: a transformers causal model in float32, in eval mode.
    """
    excused = different = total = 0
    for number, output in enumerate(outputs):
        if not output.generated:
            continue
        logits = _teacher_forced(reference, output)
        best = logits.topk(2, dim=-1)
        chosen = logits.gather(1, torch.tensor(output.generated)[:, None])[:, 0]
        near = best.values[:, 0] - chosen <= NEAR * best.values[:, 0].abs().clamp_min(1.0)
        gaps = best.values[:, 0] - best.values[:, 1]
        equal = best.indices[:, 0] == torch.tensor(output.generated)
        for position in range(len(output.generated)):
            where = f"output {number}, generated token {position}: chose {output.generated[position]}"
            wanted = f"the reference chooses {int(best.indices[position, 0])} by {float(gaps[position]):.3g}"
            assert equal[position] or gaps[position] <= GAP, f"{where}, {wanted}"
            assert near[position], (
                f"{where}, whose logit is {float(best.values[position, 0] - chosen[position]):.3g} below"
            )
        total += len(output.generated)
        excused += int((gaps <= GAP).sum())
        different += int((~equal).sum())
    report = ParityReport(total, excused, different)
    print(report)
    assert total, "no output has a token"
    assert excused <= (1 - MIN_DECIDED_SHARE) * total, f"{report}: too few positions decide anything"
    return report


def _teacher_forced(reference: Any, output: Output) -> torch.Tensor:
    """float32 [generated, V]: the logits from which each generated token was chosen."""
    ids = torch.tensor([output.prompt + output.generated[:-1]])
    with torch.no_grad():
        logits: torch.Tensor = reference(ids).logits[0]
    return logits[len(output.prompt) - 1 :].float()
