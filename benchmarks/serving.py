"""End to end against `transformers serve --continuous-batching`: tokens/s, time to first token and inter-token latency
of 1, 8 and 32 streams, in alternating rounds on the same cores; and the share of a step outside the forward pass."""

import argparse
import asyncio
import statistics
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import client
import models
import record
import servers

PROMPT = " ".join(["Tell me a story about a fox, a lantern and the long way home through the quiet forest."] * 4)
STREAMS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Case:
    """One model, under the name that results carry."""

    name: str
    folder: Path
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """One server, one number of streams, once."""

    tokens_per_s: float
    ttft_ms: list[float]
    gap_ms: list[float]


def measure(case: Case, rounds: int) -> None:
    """Both servers run at once; only one has work at a time, and each is idle while the other is measured."""
    with servers.penstock(case.folder) as ours, servers.transformers_serve(case.folder) as theirs:
        ports = {"penstock": ours, "transformers": theirs}
        names = {"penstock": "tgi", "transformers": str(case.folder)}
        for streams in STREAMS:
            results: dict[str, list[Round]] = {name: [] for name in ports}
            for number in range(rounds + 1):
                if number <= 1:
                    before = counters(ours)
                for name, port in ports.items():
                    # No two rounds of any case ask the same, so that no server can answer from a cache.
                    prompt = f"{streams} {number} {PROMPT}"
                    result = _round(client.Load(port, names[name], prompt, case.max_tokens), streams)
                    if number:  # round 0 warms both up
                        results[name].append(result)
            _report(case, streams, results)
            _report_outside(case, streams, before, counters(ours))


def _round(load: client.Load, streams: int) -> Round:
    seconds, answers = asyncio.run(client.run(load, streams))
    tokens = sum(answer.tokens for answer in answers)
    if tokens != streams * load.max_tokens:
        raise RuntimeError(f"expected {streams} x {load.max_tokens} tokens, got {tokens}")
    return Round(
        tokens / seconds,
        [answer.time_to_first_token * 1000 for answer in answers],
        [gap * 1000 for answer in answers for gap in answer.gaps],
    )


def _report(case: Case, streams: int, results: dict[str, list[Round]]) -> None:
    figures: dict[str, tuple[str, Callable[[Round], float]]] = {
        "tokens_per_s": ("tokens/s", lambda r: r.tokens_per_s),
        "ttft_p50": ("ms", lambda r: statistics.median(r.ttft_ms)),
        "ttft_p99": ("ms", lambda r: _p99(r.ttft_ms)),
        "itl_p50": ("ms", lambda r: statistics.median(r.gap_ms)),
        "itl_p99": ("ms", lambda r: _p99(r.gap_ms)),
    }
    for figure, (unit, of) in figures.items():
        ours, theirs = (statistics.median(of(r) for r in results[name]) for name in ("penstock", "transformers"))
        caps = f"{servers.PEER_KV_BLOCKS} KV blocks, {servers.PEER_BATCH_TOKENS} tokens a batch"
        peer = record.Peer(f"transformers serve ({caps})", theirs)
        record.report("serving", f"{case.name}/{streams}/{figure}", ours, unit, peer)


def _report_outside(case: Case, streams: int, before: dict[str, float], after: dict[str, float]) -> None:
    """The decode steps of the counted rounds, by the router's counters: their part outside the model's layers, and how
    many had their successor waiting when they ended."""
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    steps = spent['tgi_batch_inference_success{method="decode"}']
    step_us = spent['penstock_step_microseconds_total{method="decode"}']
    forward_us = spent['penstock_forward_microseconds_total{method="decode"}']
    name = f"{case.name}/{streams}/outside_forward"
    outside_ms = (step_us - forward_us) / steps / 1000
    record.report("serving", name, outside_ms, "ms/step", record.Peer("whole decode step", step_us / steps / 1000))
    overlapped, followed = (spent[f"penstock_{name}_total"] for name in ("steps_overlapped", "decode_steps_followed"))
    name = f"{case.name}/{streams}/next_plan_waiting"
    record.report("serving", name, overlapped, "steps", record.Peer("decode steps with a successor", followed))


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def counters(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("demo", "135m"))
    arguments = parser.parse_args()
    if arguments.only != "135m":
        measure(Case("demo", models.demo(), 128), arguments.rounds)
    if arguments.only != "demo":
        measure(Case("135m", models.random_135m(), 64), arguments.rounds)


if __name__ == "__main__":
    main()
