"""Many clients at once on the integer model, whose every token is known: no mix-up, and no block is lost."""

import asyncio
import random
from dataclasses import dataclass

import httpx
from harness.client import Answer, async_events, body, metric
from harness.launcher import eventually
from harness.models import integer_answer

NUM_STREAMS = 200
# The default of --max-concurrent-requests.
CAP = 128


@dataclass
class Case:
    """One client: what it asks, and after how many tokens it hangs up."""

    prompt: str
    num_tokens: int
    cut_after: int | None


def cases(seed: int) -> list[Case]:
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz    "
    made = []
    for number in range(NUM_STREAMS):
        prompt = "".join(rng.choices(letters, k=rng.randint(1, 300)))
        num_tokens = rng.randint(2, 120)
        made.append(Case(prompt, num_tokens, rng.randint(1, num_tokens) if number % 3 == 0 else None))
    return made


async def run(url: str, case: Case, session: httpx.AsyncClient) -> Answer:
    answer = Answer()
    async for event in async_events(session, url, body(case.prompt, case.num_tokens)):
        answer.take(event)
        if case.cut_after is not None and len(answer.ids) >= case.cut_after:
            break  # leaving the stream's context closes the connection
    return answer


async def run_all(url: str, all_cases: list[Case]) -> list[Answer]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as session:
        return await asyncio.gather(*(run(url, case, session) for case in all_cases))


def test_200_streams_a_third_cut_off(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--max-concurrent-requests", "256", "--fill-kv-with-nan")
    url = launcher.wait_until_ready()
    all_cases = cases(seed=1)
    answers = asyncio.run(run_all(url, all_cases))
    for case, answer in zip(all_cases, answers, strict=True):
        expected = integer_answer(case.prompt, case.num_tokens)
        assert answer.error is None, answer.error
        if case.cut_after is None:
            assert answer.ids == expected
            assert answer.finish_reason is not None
        else:
            assert answer.ids == expected[: len(answer.ids)]
    eventually(lambda: metric(url, "penstock_kv_blocks_used") == 0, 30, "all blocks came back")
    assert metric(url, "penstock_running_requests") == 0
    assert launcher.stop() == 0


async def fill_then_exceed(url: str, all_cases: list[Case]) -> tuple[list[Answer], list[Answer]]:
    """The first CAP clients, and once each of them has a token the others. None of the first has ended by then."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as session:
        has_token = [asyncio.Event() for _ in range(CAP)]

        async def first(case: Case, begun: asyncio.Event) -> Answer:
            answer = Answer()
            async for event in async_events(session, url, body(case.prompt, case.num_tokens)):
                answer.take(event)
                begun.set()
            return answer

        pairs = zip(all_cases[:CAP], has_token, strict=True)
        running = [asyncio.create_task(first(case, begun)) for case, begun in pairs]
        await asyncio.gather(*(begun.wait() for begun in has_token))
        surplus = await asyncio.gather(*(run(url, case, session) for case in all_cases[CAP:]))
        assert not any(task.done() for task in running), "the cap was no longer reached"
        return list(await asyncio.gather(*running)), list(surplus)


def test_the_surplus_over_the_default_cap_is_told_at_once(launch, endless_folder):
    launcher = launch("--model-id", endless_folder)
    url = launcher.wait_until_ready()
    all_cases = [Case(f"client {number}", 1500, None) for number in range(NUM_STREAMS)]
    served, surplus = asyncio.run(fill_then_exceed(url, all_cases))
    for answer in surplus:
        assert answer.error is not None
        assert answer.error["error_type"] == "overloaded"
        assert not answer.ids
    for case, answer in zip(all_cases, served, strict=False):
        assert answer.error is None, answer.error
        assert answer.ids == integer_answer(case.prompt, 1500, eos=None)
    eventually(lambda: metric(url, "penstock_kv_blocks_used") == 0, 30, "all blocks came back")
    assert launcher.stop() == 0
