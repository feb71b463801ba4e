"""Saved Llamas of awkward shapes whose generation_config lists three end tokens: answers end at the second of them, and
are greedy whatever sampling it recommends.
"""

import json
import random
import string

import httpx
import pytest
import torch
from harness.client import TIMEOUT_S, body, generate
from harness.models import awkward_llama
from transformers import AutoTokenizer

NUM_TOKENS = 48
# Would change every answer.
RECOMMENDED = {"do_sample": True, "temperature": 50.0, "repetition_penalty": 9.0}
# Far above what rounding can do to a logit, so the answer is the same in every implementation.
CLEAR_GAP = 0.01


def greedy(reference, prompt: list[int]) -> list[int]:
    """Transformers' answer as far as it is beyond doubt, at most NUM_TOKENS."""
    answer = []
    while len(answer) < NUM_TOKENS:
        with torch.no_grad():
            best = reference(torch.tensor([prompt + answer])).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < CLEAR_GAP:
            break
        answer.append(int(best.indices[0]))
    return answer


def end_ids(answer: list[int]) -> list[int] | None:
    """Three ids that the answer holds, the second before the others. None if it has too few for that."""
    new = [answer.index(token) for token in dict.fromkeys(answer)]
    following = [place for place in new if place >= 4]
    if len(following) < 3:
        return None
    second, third, first = following[:3]
    return [answer[first], answer[second], answer[third]]


def prompt_and_ends(reference, tokenizer) -> tuple[str, list[int], list[int]]:
    """A prompt, the answer if nothing ended it, and end ids for it."""
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choices(string.ascii_letters, k=rng.randint(3, 40)))
        answer = greedy(reference, tokenizer(text).input_ids)
        if ends := end_ids(answer):
            return text, answer, ends
    raise AssertionError("no prompt has an answer with enough different tokens")


def write_ends(folder, ends: list[int]) -> None:
    """As published checkpoints do: config.json knows one of the three; the other recommends sampling."""
    known = {"config.json": {"eos_token_id": ends[0]}, "generation_config.json": {"eos_token_id": ends} | RECOMMENDED}
    for name, fields in known.items():
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("case", "num_ranks"),
    [
        ("untied", 1),
        ("biases", 2),
        *(
            pytest.param(case, num_ranks, marks=pytest.mark.slow)
            for case, num_ranks in [
                ("tied", 2),
                ("tied-bfloat16", 1),
                ("many-heads", 4),
                ("one-kv-head", 2),
                ("two-kv-heads", 4),
                ("rope-linear", 1),
                ("rope-dynamic", 1),
                ("rope-llama3", 2),
            ]
        ),
    ],
)
def test_the_second_of_three_end_tokens_ends_an_answer(launch, tmp_path, case, num_ranks):
    folder = tmp_path / "model"
    reference = awkward_llama(folder, case)
    prompt, endless, ends = prompt_and_ends(reference, AutoTokenizer.from_pretrained(folder))
    write_ends(folder, ends)
    expected = endless[: endless.index(ends[1]) + 1]
    url = launch("--model-id", folder, "--num-shard", num_ranks, "--dtype", "float32").wait_until_ready()

    streamed = generate(url, body(prompt, NUM_TOKENS))
    assert (streamed.ids, streamed.finish_reason) == (expected, "eos_token")
    details = post(f"{url}/generate", body(prompt, NUM_TOKENS))["details"]
    assert [token["id"] for token in details["tokens"]] == expected
    assert (details["finish_reason"], details["generated_tokens"]) == ("eos_token", len(expected))

    request = {"max_tokens": NUM_TOKENS, "temperature": 0}
    messages = [{"role": "user", "content": prompt}]
    for route, asked in (("completions", {"prompt": prompt}), ("chat/completions", {"messages": messages})):
        answer = post(f"{url}/v1/{route}", request | asked)
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == len(expected)

    # Nothing else ended it.
    ignoring = generate(url, body(prompt, len(endless), ignore_eos=True))
    assert (ignoring.ids, ignoring.finish_reason) == (endless, "length")


def post(url: str, request: dict) -> dict:
    response = httpx.post(url, json=request, timeout=TIMEOUT_S)
    assert response.status_code == 200, response.text
    return response.json()
