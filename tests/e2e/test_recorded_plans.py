"""The histories of the scheduler's state machine, replayed to the real shard's engine with the integer model.

Whatever the scheduler shares, stops, evicts and resumes, every token is the one that the strict fake computed.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from harness.launcher import ROOT
from shard_testkit.engines import EngineSizes, LocalEngine, integer_model
from shard_testkit.integer import IntegerReference

# The world of `router/src/scheduler/tests/world.rs` with one KV group.
REFERENCE = IntegerReference(vocab_size=23, num_layers=2, num_kv_heads=1)
SIZES = {
    "num_seats": 5,
    "num_blocks": 13,
    "tokens_per_block": 2,
    "max_rows": 4,
    "max_tokens": 8,
    "max_seq_len": 64,
    "num_penalty_lanes": 1,
}


@pytest.fixture(scope="module")
def histories(tmp_path_factory) -> list[dict]:
    path = tmp_path_factory.mktemp("record") / "plans.jsonl"
    # With the flags of `make test`, which has built it.
    command = ["cargo", "test", "--release", "--quiet", "--workspace", "--lib", "record_histories", "--"]
    run = subprocess.run(
        [*command, "--ignored", "--nocapture"],
        cwd=ROOT,
        env=os.environ | {"PENSTOCK_RECORD": str(path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    print(run.stdout)
    assert run.returncode == 0
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def replay(engine: LocalEngine, plans: list[dict], depth: int) -> int:
    """Sends as many plans ahead as the scheduler did at most; returns the tokens compared."""
    num_tokens = 0
    for index, plan in enumerate(plans):
        engine.submit(plan["id"], bytes.fromhex(plan["blob"]))
        if len(engine.tickets) == depth or index == len(plans) - 1:
            while engine.tickets:
                expected = plans[index + 1 - len(engine.tickets)]
                result = engine.receive()
                rows = [[row.seat, row.generation, row.status.name] for row in result.rows]
                assert rows == expected["rows"], f"plan {expected['id']}"
                tokens = [token for row in result.rows for token in row.tokens]
                assert tokens == expected["token_ids"], f"plan {expected['id']}"
                num_tokens += len(tokens)
                if index < len(plans) - 1:
                    break
    return num_tokens


def test_the_real_shard_computes_every_token(histories, tmp_path):
    engines: list[tuple[int, list[dict]]] = []
    for line in histories:
        if "depth" in line:
            engines.append((line["depth"], []))
        else:
            engines[-1][1].append(line)
    num_tokens = 0
    for depth, plans in engines:
        engine = LocalEngine(integer_model(REFERENCE, tmp_path), EngineSizes(**SIZES, depth=depth))
        try:
            num_tokens += replay(engine, plans, depth)
        finally:
            engine.close()
    print(f"{len(engines)} engines, {num_tokens} tokens")
    assert num_tokens > 500
