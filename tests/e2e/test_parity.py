"""Greedy answers of the demo model over HTTP against transformers: alone, and among 32 others, on 1 and 2 ranks."""

import asyncio
import random

import httpx
import pytest
import torch
from harness.client import TIMEOUT_S, Answer, async_events, body, generate
from harness.models import DEMO
from model_testkit.parity import Output, check_parity
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_PROMPTS = 50
IN_FLIGHT = 32
NUM_TOKENS = 32
WORDS = [
    "the",
    "fox",
    "and",
    "a",
    "small",
    "lantern",
    "went",
    "over",
    "old",
    "hill",
    "to",
    "find",
    "quiet",
    "river",
    "with",
    "bread",
    "for",
    "every",
    "friend",
    "7",
    "12",
    "?",
]


def prompts() -> list[str]:
    """Mixed lengths, one to some hundred tokens."""
    rng = random.Random(5)
    return ["Once upon a time, " + " ".join(rng.choices(WORDS, k=rng.randint(1, 300))) for _ in range(NUM_PROMPTS)]


async def _in_flight(url: str, requests: list[dict]) -> list[Answer]:
    """All requests, never more than IN_FLIGHT at once, each replaced as soon as it ends."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(session: httpx.AsyncClient, request: dict) -> Answer:
        answer = Answer()
        async with gate:
            async for event in async_events(session, url, request):
                answer.take(event)
        return answer

    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as session:
        return await asyncio.gather(*(one(session, request) for request in requests))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_answers_equal_transformers(launch, num_ranks):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    reference = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    url = launch("--model-id", DEMO, "--num-shard", num_ranks, "--fill-kv-with-nan").wait_until_ready()
    texts = prompts()
    requests = [body(text, NUM_TOKENS) for text in texts]
    alone = [generate(url, request) for request in requests]
    together = asyncio.run(_in_flight(url, requests))
    assert not any(answer.error for answer in alone + together)
    ids = [tokenizer(text).input_ids for text in texts]
    for answers in (alone, together):
        check_parity(reference, [Output(prompt, answer.ids) for prompt, answer in zip(ids, answers, strict=True)])
