"""The integer model in real shard processes: exact on 1, 2 and 4 ranks, at depths 1, 2 and 3, in every size of chunk.

Two schedulers drive them: one that does what it likes within the protocol's rules, and the router's own.
"""

import os
import random
import re
import subprocess
from collections.abc import Iterator

import pytest
from harness.launcher import ROOT
from shard_testkit.integer import IntegerReference
from shard_testkit.process import DEFAULTS, ShardGroup
from shard_testkit.scheduler import Request, TestScheduler, World, check_answers, make_requests

REFERENCE = IntegerReference()
CHUNKS = range(1, 65)
NUM_STREAMS = 200
# The router's scheduler in a program that checks every token. `cargo test` builds it.
DRIVE_INTEGER = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "examples" / "drive_integer"
# A hang guard, many times what a run takes.
LIMIT_S = 120


@pytest.fixture(
    scope="module",
    params=[
        *((num_ranks, 3) for num_ranks in (1, 2, 4)),
        *(pytest.param((ranks, depth), marks=pytest.mark.slow) for ranks in (1, 2, 4) for depth in (1, 2)),
    ],
    ids=lambda param: "{} ranks of depth {}".format(*param),
)
def group(request, tmp_path_factory) -> Iterator[ShardGroup]:
    """Shards that run up to so many plans at once; a scheduler may send fewer ahead, or more."""
    num_ranks, depth = request.param
    with ShardGroup(REFERENCE.write_config(tmp_path_factory.mktemp("model")), num_ranks, step_depth=depth) as group:
        yield group


def requests_of_every_chunk(seed: int) -> list[Request]:
    """Each size is that of a request which shows it: no NaN, no client that leaves, a prompt longer than the chunk.

    The others are of every kind, in chunks of sizes by chance.
    """
    rng = random.Random(seed)
    requests = make_requests(REFERENCE, NUM_STREAMS - len(CHUNKS), seed)
    for request in requests:
        request.chunk = rng.choice(CHUNKS)
    for chunk in CHUNKS:
        prompt = [rng.randrange(REFERENCE.nan_token) for _ in range(chunk + rng.randint(1, 20))]
        requests.append(Request(prompt, num_new=rng.randint(1, 8), chunk=chunk))
    rng.shuffle(requests)
    return requests


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_two_hundred_streams_at_every_chunk_size(group, depth):
    """With cancellations, NaN rows and preemptions. A second Step stream finds nothing of the first one."""
    requests = requests_of_every_chunk(seed=10 * len(group.ranks) + depth)
    world = World(
        num_seats=DEFAULTS["num_seats"],
        num_blocks=DEFAULTS["num_blocks"],
        tokens_per_block=DEFAULTS["tokens_per_block"],
        max_rows=DEFAULTS["max_rows"],
        max_tokens=DEFAULTS["max_step_tokens"],
        depth=depth,
        chunk=CHUNKS[-1],
        preempt_share=0.1,
    )
    chunk_sizes, num_preempted = set(), 0
    for part in (requests[:120], requests[120:]):
        group.open()
        scheduler = TestScheduler(world, REFERENCE, group.submit, group.receive, seed=depth)
        scheduler.run(part)
        group.half_close()
        chunk_sizes |= scheduler.chunk_sizes
        num_preempted += scheduler.num_preempted
    check_answers(REFERENCE, requests)
    assert chunk_sizes == set(CHUNKS)
    assert num_preempted > 5
    assert sum(request.left for request in requests) > 30
    assert sum(request.failed is not None for request in requests) == (NUM_STREAMS - len(CHUNKS)) // 8


@pytest.mark.parametrize(("depth", "chunk"), [(1, 64), (2, 33), (3, 17)])
def test_the_routers_own_scheduler(group, depth, chunk):
    """Its chunk is the most prompt tokens of a step."""
    assert DRIVE_INTEGER.exists(), f"{DRIVE_INTEGER} is not there: cargo build --release --examples"
    sockets = [f"--shard-socket={group.config(rank)['socket_path']}" for rank in range(len(group.ranks))]
    numbers = {"depth": depth, "chunk": chunk, "requests": NUM_STREAMS, "max-len": 120, "seed": depth}
    run = subprocess.run(
        [DRIVE_INTEGER, *sockets, *(f"--{name}={number}" for name, number in numbers.items())],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{NUM_STREAMS} requests are right; ")
    counts = {name: int(number) for name, number in re.findall(r"(\w+): (\d+)\b", run.stdout)}
    assert counts["finished"] + counts["failed"] + counts["cancelled"] == NUM_STREAMS
    assert min(counts["finished"], counts["failed"], counts["cancelled"]) > 0
    assert counts["prompt_tokens"] <= counts["prefill_steps"] * chunk
    assert counts["generated_tokens"] > NUM_STREAMS
