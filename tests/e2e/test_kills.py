"""Violent ends: whoever is killed, nobody and nothing is left, clients learn of it, and the next start works."""

import asyncio
import os
import signal
import time

import httpx
import pytest
from harness.client import Answer, async_events, body, generate
from harness.launcher import alive, eventually
from harness.models import integer_answer

# How long after a shard's death every stream must have its error and /health be 503; asserted with a wide margin,
# because two cores also run the test.
NOTICE_LIMIT_S = 5


def health(url: str) -> int:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code
    except httpx.TransportError:
        return 0


def test_a_killed_router_ends_the_server(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--num-shard", "2")
    url = launcher.wait_until_ready()
    family = launcher.family()
    os.kill(launcher.router(), signal.SIGKILL)
    assert launcher.wait() == 1
    assert "the router was ended by SIGKILL" in launcher.log
    assert not any(map(alive, family))
    assert health(url) == 0
    assert launcher.leftovers() == []


def test_a_killed_launcher_takes_all_with_it_and_the_next_start_sweeps(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--num-shard", "2")
    url = launcher.wait_until_ready()
    family = launcher.family()
    assert len(family) == 3
    port = url.rsplit(":", 1)[1]
    launcher.process.kill()
    launcher.wait()
    eventually(lambda: not any(map(alive, family)), 10, "shards and router died with their launcher")
    assert health(url) == 0
    [stale] = launcher.leftovers()
    second = launch("--model-id", integer_folder, "--port", port)
    assert second.wait_until_ready() == url
    assert stale not in second.leftovers()
    assert generate(url, body("again", 5)).ids == integer_answer("again", 5)
    assert second.stop() == 0
    assert second.leftovers() == []


def test_a_launcher_killed_during_the_start_leaves_nobody(launch, llama_folder):
    launcher = launch("--model-id", llama_folder, "--num-shard", "2")
    eventually(lambda: len(launcher.family()) == 3, 20, "shards and router were started")
    family = launcher.family()
    launcher.process.kill()
    launcher.wait()
    eventually(lambda: not any(map(alive, family)), 10, "nobody survived")


@pytest.mark.parametrize("victim", [0, 1], ids=["rank0", "rank1"])
def test_a_killed_shard_fails_its_streams_and_is_replaced(launch, endless_folder, victim):
    launcher = launch("--model-id", endless_folder, "--num-shard", "2")
    url = launcher.wait_until_ready()
    shards = launcher.shards()
    answers, noticed_after = asyncio.run(kill_under_streams(url, shards[victim]))
    assert all(answer.error for answer in answers), "a stream ended without an error event"
    assert not any(answer.finish_reason for answer in answers)
    assert noticed_after < NOTICE_LIMIT_S
    launcher.wait_for_line("serving .* again")
    eventually(lambda: health(url) == 200, 60, "health is back")
    assert not set(shards) & set(launcher.shards()), "the whole group was replaced"
    assert generate(url, body("after", 20)).ids == integer_answer("after", 20, eos=None)
    assert launcher.stop() == 0
    assert launcher.leftovers() == []


def test_a_shard_killed_while_idle_takes_its_group_with_it(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--num-shard", "2")
    url = launcher.wait_until_ready()
    first, second = launcher.shards()
    os.kill(first, signal.SIGKILL)
    # By itself an idle rank would notice only when no stream has come for 30 s.
    eventually(lambda: not alive(second), 10, "the other rank was ended")
    launcher.wait_for_line("serving .* again")
    assert generate(url, body("after", 20)).ids == integer_answer("after", 20)
    assert launcher.stop() == 0


async def kill_under_streams(url: str, pid: int, num_streams: int = 8) -> tuple[list[Answer], float]:
    """Streams under which a process is killed, and the seconds until each had its end and /health was 503."""
    answers = [Answer() for _ in range(num_streams)]
    all_started = asyncio.Event()
    killed_at = 0.0

    async def stream(session: httpx.AsyncClient, answer: Answer) -> None:
        async for event in async_events(session, url, body("endless", 4000)):
            answer.take(event)
            if all(other.ids for other in answers):
                all_started.set()

    async def killed(session: httpx.AsyncClient) -> None:
        nonlocal killed_at
        await all_started.wait()
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        while (await session.get(f"{url}/health")).status_code != 503:
            assert time.monotonic() < killed_at + 60
            await asyncio.sleep(0.005)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as session:
        await asyncio.gather(killed(session), *(stream(session, answer) for answer in answers))
    return answers, time.monotonic() - killed_at


@pytest.mark.slow
def test_a_shard_that_keeps_dying_ends_the_server(launch, integer_folder):
    launcher = launch("--model-id", integer_folder)
    launcher.wait_until_ready()
    for _ in range(5):
        [shard] = launcher.shards()
        os.kill(shard, signal.SIGKILL)
        launcher.wait_for_line("serving .* again")
    family = launcher.family()
    [shard] = launcher.shards()
    os.kill(shard, signal.SIGKILL)
    assert launcher.wait() == 1
    assert "giving up" in launcher.log
    assert not any(map(alive, family))
