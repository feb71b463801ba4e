"""Sampling on a GPU chooses what sampling on the CPU chooses from the same logits and seeds."""

import pytest
import torch
from shard_testkit.sampling import CPU, NUM_SEATS, PROMPT_LEN, VOCAB, mixture, random_logits, rows_of, sampler_of

from penstock_kernels.philox import Purpose, uniform

pytestmark = pytest.mark.gpu


def test_random_numbers_are_equal(cuda):
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(0, 2**32, (2, 1000), generator=generator)
    fork, position = torch.randint(0, 2**32, (2, 1000), generator=generator)
    expected = uniform(key, fork, position, Purpose.SAMPLE)
    got = uniform(key.to(cuda), fork.to(cuda), position.to(cuda), Purpose.SAMPLE)
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("vocab", [VOCAB, 128256])
def test_tokens_are_equal_over_several_steps(vocab, cuda):
    """64 rows of every kind, over steps, so that what penalty lanes counted matters; padded rows at the end."""
    requests = mixture(64)
    seats = [*range(64), NUM_SEATS, NUM_SEATS]
    on_cpu, on_gpu = (sampler_of(requests, vocab, device) for device in (CPU, cuda))
    different = 0
    for step in range(4):
        logits = random_logits(len(seats), vocab, seed=step)
        expected = on_cpu.sample(logits, rows_of(seats, PROMPT_LEN + step))
        got = on_gpu.sample(logits.to(cuda), rows_of(seats, PROMPT_LEN + step, cuda))
        assert torch.equal(got.bad.cpu(), expected.bad)
        different += int((got.ids.cpu() != expected.ids)[:64].sum())
        asked = torch.tensor([request.logprobs for request in requests])
        for ours, theirs in zip(got.logprobs, expected.logprobs, strict=True):
            ours, theirs = ours[:64].cpu()[asked], theirs[:64][asked]
            if theirs.dtype == torch.float32:
                torch.testing.assert_close(ours.exp(), theirs.exp(), rtol=0, atol=1e-5)
    # A number that falls between two tokens' sums to the last bit of a softmax may choose either: one in a million.
    assert different == 0


def test_bad_rows_are_bad_on_both(cuda):
    requests = mixture(10)
    logits = random_logits(10)
    logits[2, 5], logits[4, 0], logits[6] = torch.nan, torch.inf, -torch.inf
    expected = sampler_of(requests).sample(logits, rows_of(list(range(10))))
    got = sampler_of(requests, device=cuda).sample(logits.to(cuda), rows_of(list(range(10)), device=cuda))
    assert got.bad.cpu().tolist() == expected.bad.tolist()
    assert expected.bad.sum() == 3
