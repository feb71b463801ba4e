"""Sampling through the whole server: greedy with a penalty equals transformers, a seed decides the answer alone."""

import asyncio

import httpx
import pytest
import torch
from harness.client import TIMEOUT_S, Answer, async_events, body, generate
from harness.models import DEMO
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["Once upon a time", "Tell me a story about a fox", "one two three", "The little boat", "What is 3 plus 4?"]
NUM_TOKENS = 48
SAMPLED = {"do_sample": True, "temperature": 1.8, "top_k": 40, "top_p": 0.98}


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), AutoTokenizer.from_pretrained(DEMO)


def test_greedy_with_a_repetition_penalty_equals_transformers(launch, reference):
    url = launch("--model-id", DEMO).wait_until_ready()
    model, tokenizer = reference
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=1.3,
            max_new_tokens=NUM_TOKENS,
        )
        answer = generate(url, body(prompt, NUM_TOKENS, repetition_penalty=1.3))
        assert answer.ids == wanted[0, ids.shape[1] :].tolist(), prompt


async def _all_at_once(url: str, requests: list[dict]) -> list[Answer]:
    async def one(session: httpx.AsyncClient, request: dict) -> Answer:
        answer = Answer()
        async for event in async_events(session, url, request):
            answer.take(event)
        return answer

    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as session:
        return await asyncio.gather(*(one(session, request) for request in requests))


def test_a_seed_decides_alone_and_in_a_full_batch(launch):
    url = launch("--model-id", DEMO).wait_until_ready()
    requests = [body(prompt, NUM_TOKENS, seed=seed, **SAMPLED) for prompt in PROMPTS for seed in (7, 8)]
    alone = [generate(url, request).ids for request in requests]
    others = [body(f"{number} {PROMPTS[number % 5]}", 20 + number, seed=number, **SAMPLED) for number in range(22)]
    together = asyncio.run(_all_at_once(url, others + requests))[len(others) :]
    assert [answer.ids for answer in together] == alone
    # A short answer may be the same twice, however it is drawn.
    pairs = list(zip(alone[::2], alone[1::2], strict=True))
    assert sum(first != second for first, second in pairs) >= len(pairs) - 1
