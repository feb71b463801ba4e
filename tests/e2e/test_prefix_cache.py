"""The prefix cache and preemption with real shards: work that is saved is counted in tokens, and no answer changes."""

import asyncio
import random
from itertools import takewhile
from operator import eq

import httpx
import pytest
import torch
from harness.client import TIMEOUT_S, body, metric
from harness.models import DEMO, NUM_HEADS, NUM_LAYERS, VOCAB_SIZE
from model_testkit.parity import Output, check_parity
from shard_testkit.integer import IntegerReference
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCK = 16
PREFILL = "penstock_prefill_tokens_total"
PREEMPTIONS = "penstock_preemptions_total"
LONG = 200
INTEGER = IntegerReference(VOCAB_SIZE, NUM_LAYERS, NUM_HEADS)
WORDS = ["the", "fox", "and", "a", "small", "lantern", "went", "over", "old", "hill", "to", "find", "quiet", "river"]


def letters(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(97, 123) for _ in range(count)]


def post_all(url: str, requests: list[dict]) -> list[dict]:
    """All at once."""

    async def post(session: httpx.AsyncClient, request: dict) -> dict:
        response = await session.post(url, json=request)
        assert response.status_code == 200, response.text
        return response.json()

    async def run() -> list[dict]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as session:
            return await asyncio.gather(*(post(session, request) for request in requests))

    return asyncio.run(run())


def complete_all(url: str, prompts: list[list[int]], num_tokens: int, **fields) -> list[dict]:
    requests = [
        {"model": "m", "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, **fields} for prompt in prompts
    ]
    return post_all(f"{url}/v1/completions", requests)


def test_sixteen_clients_compute_a_shared_prefix_once(launch, endless_folder):
    url = launch("--model-id", endless_folder, "--served-model-name", "m", "--fill-kv-with-nan").wait_until_ready()
    rng = random.Random(1)
    prefix = letters(rng, 1024)
    prompts = [prefix + letters(rng, rng.randint(1, 16)) for _ in range(16)]
    before = metric(url, PREFILL)
    complete_all(url, [letters(rng, 1040)], 8)
    alone = metric(url, PREFILL) - before
    answers = complete_all(url, prompts, 8)
    together = metric(url, PREFILL) - before - alone
    print(f"{together} tokens for sixteen, {alone} for one")
    assert alone == 1040
    assert together <= 1.5 * alone
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert sorted(cached)[1] >= 1024, "all but the first find the whole prefix"


def test_a_chat_computes_what_is_new_and_one_block_at_most(launch, endless_folder):
    url = launch("--model-id", endless_folder, "--served-model-name", "m", "--fill-kv-with-nan").wait_until_ready()
    rng = random.Random(2)
    history = letters(rng, 300)
    fresh = len(history)
    for turn in range(6):
        before = metric(url, PREFILL)
        complete_all(url, [history], 40)
        work = metric(url, PREFILL) - before
        assert work <= fresh + BLOCK, f"turn {turn}: {work} tokens for {fresh} new ones"
        ids = INTEGER.generate(history, 40)
        question = letters(rng, rng.randint(5, 60))
        history = history + ids + question
        # The last token of an answer has never been computed.
        fresh = len(question) + 1


def test_a_chat_in_text_computes_what_follows_where_its_ids_diverge(launch):
    """The text of an answer may come back as other ids than were generated: from there on nothing can be shared."""
    url = launch("--model-id", DEMO, "--fill-kv-with-nan").wait_until_ready()
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    text, known, divergences = "Once upon a time there was a small fox", [], 0
    for turn in range(12):
        prompt = tokenizer(text).input_ids
        agreed = sum(takewhile(bool, map(eq, known, prompt)))
        before = metric(url, PREFILL)
        [answer] = post_all(f"{url}/generate", [body(text, 30, seed=turn, temperature=3.0, ignore_eos=True)])
        work = metric(url, PREFILL) - before
        print(f"turn {turn}: ids agree for {agreed} of {len(known)}; {work} of {len(prompt)} tokens were computed")
        divergences += agreed < len(known)
        # The last token of an answer has never been computed.
        assert work <= len(prompt) - min(agreed, max(len(known) - 1, 0)) + BLOCK
        known = prompt + [token["id"] for token in answer["details"]["tokens"]]
        text = f"{text}{answer['generated_text']} Then the fox asked"
    assert divergences, "no answer came back as other ids: nothing was tried"


def test_salts_share_nothing(launch, endless_folder):
    url = launch("--model-id", endless_folder, "--served-model-name", "m").wait_until_ready()
    prompt = letters(random.Random(3), 320)
    work = []
    for salt in ("one", "two", "one"):
        before = metric(url, PREFILL)
        complete_all(url, [prompt], 4, cache_salt=salt)
        work.append(metric(url, PREFILL) - before)
    assert work[:2] == [320, 320]
    assert work[2] <= BLOCK


FLAGS = {
    "cache": [],
    "no cache": ["--prefix-caching", "false"],
    "pressure": ["--max-batch-total-tokens", "640", "--max-total-tokens", "320"],
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_answers_are_the_same_with_and_without_cache_and_under_pressure(launch, flags):
    url = launch("--model-id", DEMO, "--fill-kv-with-nan", *flags).wait_until_ready()
    rng = random.Random(4)
    shared = rng.choices(WORDS, k=24)
    texts = [" ".join(shared[: rng.choice((0, 12, 24))] + rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(12)]
    # Short answers first, so that short ones are expected, and then long ones: the blocks cannot suffice.
    post_all(f"{url}/generate", [body(text, LONG, stop=["e", "a", "o", " "]) for text in texts])
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    outputs = []
    for _ in range(2):
        answers = post_all(f"{url}/generate", [body(text, LONG, ignore_eos=True) for text in texts])
        for text, answer in zip(texts, answers, strict=True):
            ids = [token["id"] for token in answer["details"]["tokens"]]
            assert len(ids) == LONG
            outputs.append(Output(tokenizer(text).input_ids, ids))
    preemptions = metric(url, PREEMPTIONS)
    print(f"{preemptions} preemptions")
    assert (preemptions > 0) == ("--max-batch-total-tokens" in flags)
    check_parity(AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval(), outputs)
