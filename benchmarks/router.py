"""The router alone: real gRPC to a fake shard in one process, real sockets to a client in another. What a token costs,
beside a bare epoll loop that writes events of the same size; what it waits inside; what a stream and a client that does
not read take in memory; and what becomes of ten times as many requests as there is room for. Of several rounds the one
counts that other programs disturbed least; `others_cores` says how much of the machine they used."""

import argparse
import resource
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import record
import router_rig as rig

Window = dict[str, float]

TOKENS = 256
ROUNDS = 4
# Rows of a step come together, so the 99th percentile is one of steps: in 2 s at 20 a second it would be the slowest.
SATURATED_S, PACED_S = 2, 10
SATURATED = (64, 256)
OPEN_STREAMS = 1000
# Of every 20 ms step, 64 rows; an answer takes 25 steps.
OVERLOAD_SEATS, OVERLOAD_STEP_MS, OVERLOAD_TOKENS = 64, 20, 25
# All of an answer that is not read is there before the window ends.
READING, SLOW, SLOW_TOKENS, SLOW_STEP_MS, SLOW_WINDOW_S = 32, 8, 2000, 4, 10


def report(figure: str, case: str, value: float, unit: str, peer: record.Peer | None = None) -> None:
    record.report("router", f"{figure}, {case} ({rig.PLACEMENT.words})", value, unit, peer)


def target(value: float) -> record.Peer:
    return record.Peer("target", value)


def paced(streams: int, steps_per_s: int, p99_target: float | None, flags: list[str]) -> int:
    """How long a token takes from the shard's send to the client's read, less what the bare loop's take from its write;
    and what it costs when it comes alone. Returns the bytes of an event, which has a write of its own here."""
    stamped = ["--tokens", "1000", "--stamped"]
    shard = ["--stamped", "--step-ms", str(1000 / steps_per_s), "--num-blocks", "32769"]
    with rig.router(shard, ["--max-concurrent-requests", "512", *flags]) as server:
        first = window(rig.client(server, ["closed", "--streams", str(streams), "--seconds", "1"], *stamped))
        event_bytes = round(first["bytes"] / first["tokens"])
        with rig.bare_loop(event_bytes, 1000, "--steps-per-s", str(steps_per_s)) as bare_server:
            least = itemgetter("others_cores")
            ours, bare = alternate(server, bare_server, (streams, PACED_S), least, *stamped)
    case = f"{streams} streams at {steps_per_s} steps/s"
    for share in ("p50", "p99"):
        peer = record.Peer("bare epoll loop, write to read", bare[f"latency_{share}_ms"])
        report(f"shard_to_client_{share}_ms", case, ours[f"latency_{share}_ms"], "ms", peer)
    added = ours["latency_p99_ms"] - bare["latency_p99_ms"]
    report("added_latency_p99_ms", case, added, "ms", target(p99_target) if p99_target else None)
    report_costs(case, ours, bare, "bare epoll loop")
    return event_bytes


def saturated(event_bytes: int, streams: int, flags: list[str]) -> None:
    """As many tokens as go through. The router writes together what gathers while a stream waits for its turn; the bare
    loop writes every event for itself. So writes are compared, too."""
    with (
        rig.router(["--num-blocks", "16385"], ["--max-concurrent-requests", "512", *flags]) as server,
        rig.bare_loop(event_bytes, TOKENS) as bare_server,
    ):
        ours, bare = alternate(
            server, bare_server, (streams, SATURATED_S), lambda window: -tokens_per_s(window), "--tokens", str(TOKENS)
        )
    case = f"{streams} streams at saturation"
    words = f"bare epoll loop, {event_bytes} bytes an event"
    for figure, of in (("tokens", "tokens"), ("writes", "chunks")):
        peer = record.Peer(words, bare[of] / bare["seconds"])
        report(f"{figure}_per_s", case, ours[of] / ours["seconds"], f"{figure}/s", peer)
    report_costs(case, ours, bare, words)


def report_costs(case: str, ours: Window, bare: Window, words: str) -> None:
    """Of the server's core less than all of it: something else ran there, or there was nothing to do."""
    mine, peer = (window["cpu_seconds"] / window["tokens"] * 1e6 for window in (ours, bare))
    report("cpu_us_per_token", case, mine, "us", record.Peer(words, peer))
    report("cpu_us_per_token", case, mine, "us", target(40.0))
    report("tokens_per_write", case, ours["tokens"] / ours["chunks"], "tokens")
    mine, peer = (window["cpu_seconds"] / window["seconds"] for window in (ours, bare))
    report("server_cores", case, mine, "cores", record.Peer(words, peer))
    mine, peer = (max(0.0, window["others_cores"]) for window in (ours, bare))
    report("others_cores", case, mine, "cores", record.Peer(words, peer))


def alternate(
    ours: rig.Server, bare: rig.Server, load: tuple[int, int], disturbance: Callable[[Window], float], *flags: str
) -> tuple[Window, Window]:
    """`load`: streams and seconds. Both in turn, each idle in the other's rounds: whatever else runs meets both. Of
    each the round that was disturbed least."""
    rounds: tuple[list[Window], list[Window]] = ([], [])
    streams, seconds = load
    command = ["closed", "--streams", str(streams), "--seconds", str(seconds)]
    for _ in range(ROUNDS):
        for server, windows in zip((ours, bare), rounds, strict=True):
            windows.append(window(rig.client(server, command, *flags)))
    mine, peer = (min(windows, key=disturbance) for windows in rounds)
    return mine, peer


def tokens_per_s(window: Window) -> float:
    return window["tokens"] / window["seconds"]


def open_streams(flags: list[str]) -> None:
    """Memory of a thousand streams that run at once, each once to its end."""
    shard = ["--num-seats", "1024", "--num-blocks", "16385", "--step-ms", "100"]
    load = ["closed", "--streams", str(OPEN_STREAMS)]
    with rig.router(shard, ["--max-concurrent-requests", "1100", *flags]) as server:
        # The first requests pay for what stays.
        rig.client(server, ["closed", "--streams", "16"], "--tokens", "8")
        result = rig.client(server, load, "--tokens", "64")
    case = f"{OPEN_STREAMS} streams open"
    report("whole_streams", case, result["whole"], "streams", target(OPEN_STREAMS))
    grown = window(result)["most_kib"] - result["idle_kib"]
    report("kib_per_stream", case, grown / OPEN_STREAMS, "KiB", target(32.0))


def slow_reader(flags: list[str]) -> None:
    """Clients that do not read, beside others: what they take in memory, and whether the others notice."""
    load = ["closed", "--streams", str(READING), "--seconds", str(SLOW_WINDOW_S), "--slow", str(SLOW)]
    shard = ["--step-ms", str(SLOW_STEP_MS), "--num-blocks", "16385", "--max-positions", "16384"]
    with rig.router(shard, flags) as server:
        result = rig.client(server, [*load, "--slow-tokens", str(SLOW_TOKENS)], "--tokens", str(TOKENS))
    before, beside = map(tokens_per_s, result["windows"])
    case = f"slow_reader: {SLOW} that do not read, {READING} that do"
    report("others_cores", case, result["windows"][1]["others_cores"], "cores")
    report("others_tokens_per_s", case, beside, "tokens/s", record.Peer("the same before", before))
    slow = result["slow"]
    report("grown_kib", case, slow["grown_kib"], "KiB", record.Peer("the text not read", slow["bytes"] / 1024))
    report("whole_streams", case, slow["whole"], "streams", target(SLOW))


def overload(flags: list[str]) -> None:
    """Ten times as many requests as the shard can serve, on a connection each, for 20 s; then half as many."""
    capacity = OVERLOAD_SEATS / (OVERLOAD_TOKENS * OVERLOAD_STEP_MS / 1000)
    phases = ((1.5, 2), (1.5, 4), (10, 20), (0.5, 4))
    load = ["open"]
    for share, seconds in phases:
        load += ["--phase", f"{share * capacity}:{seconds}"]
    shard = ["--num-seats", str(OVERLOAD_SEATS), "--step-ms", str(OVERLOAD_STEP_MS)]
    limits = ["--max-concurrent-requests", str(2 * OVERLOAD_SEATS), "--stream-error-status"]
    with rig.router(shard, [*limits, *flags]) as server:
        result = rig.client(server, load, "--tokens", str(OVERLOAD_TOKENS))
    _, plateau, over, after = result["phases"]
    case = f"overload: 10 x {capacity:.0f} requests/s for 20 s"
    rate, before = (phase["tokens"] / phase["seconds"] for phase in (over, plateau))
    report("goodput", case, rate, "tokens/s", record.Peer("plateau at 1.5 x before", before))
    report("server_errors", case, sum(phase["server_errors"] for phase in result["phases"]), "requests", target(0))
    broken = sum(phase["broken"] for phase in result["phases"]) + result["unanswered"]
    report("broken", case, broken, "requests", target(0))
    report("refused", case, over["refused"], "requests", record.Peer("offered", over["offered"]))
    report("refused_without_retry_after", case, over["without_retry_after"], "requests", target(0))
    report("refusal_p99_ms", case, over["refusal_p99_ms"], "ms", target(100.0))
    report("slowest_refusal_ms", case, over["refusal_most_ms"], "ms", target(100.0))
    report("first_token_p99_ms", case, over["first_token_p99_ms"], "ms")
    report("others_cores", case, result["others_cores"], "cores")
    report("recovery_s", case, after["bad_for_s"], "s", target(2.0))


def window(result: dict[str, Any]) -> Window:
    if result["broken"]:
        raise RuntimeError(f"{result['broken']} streams were cut")
    only: Window = result["windows"][0]
    return only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("paced", "saturated", "open", "slow", "overload"))
    parser.add_argument("--router-flag", action="append", default=[], help="passed on to the router; may be repeated")
    arguments = parser.parse_args()
    rig.build()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flags, only = arguments.router_flag, arguments.only
    if only in (None, "paced", "saturated"):
        event_bytes = paced(64, 20, 3.0, flags)
        paced(256, 50, None, flags)
        for streams in SATURATED if only != "paced" else ():
            saturated(event_bytes, streams, flags)
    if only in (None, "open"):
        open_streams(flags)
    if only in (None, "slow"):
        slow_reader(flags)
    if only in (None, "overload"):
        overload(flags)


if __name__ == "__main__":
    main()
