"""A long prompt arrives under 16 running streams: how much longer the gaps between their tokens become.

Compared with a server without the objective. With a tiny real model and 4,000 tokens, and with a fake shard that takes
10 ms a step and 200 us for each prompt token, and 10,000 tokens.
"""

import asyncio
import contextlib
import statistics
from collections.abc import Callable, Iterator

import client
import models
import record
import router_rig
import servers

STREAMS = 16
OBJECTIVE_MS = 50
# Without an objective: none is as long.
NO_OBJECTIVE = ["--target-itl-ms", "60000"]
WORD = "fox "


@contextlib.contextmanager
def real(flags: list[str]) -> Iterator[int]:
    # Memory that nothing has touched yet can take 100 us a page in a virtual machine: touch the cache first.
    with servers.penstock(models.long_demo(), "--max-total-tokens", "8192", "--fill-kv-with-nan", *flags) as port:
        yield port


@contextlib.contextmanager
def fake(flags: list[str]) -> Iterator[int]:
    shard = ["--step-ms", "10", "--fed-token-us", "200", "--max-positions", "16384", "--num-blocks", "4096"]
    with router_rig.router(shard, ["--max-batch-prefill-tokens", "512", *flags]) as server:
        yield int(server.address.rpartition(":")[2])


async def _gaps(port: int, long_tokens: int, answer_tokens: int) -> tuple[list[float], list[float]]:
    """Milliseconds between tokens of the streams, without and with the long prompt beside them."""
    load = client.Load(port, "tgi", "Once upon a time", answer_tokens)
    await client.chat(client.Load(port, "tgi", "warm up " + WORD * 200, 8), 0)
    _, quiet = await client.run(load, STREAMS)
    running = asyncio.create_task(client.run(load, STREAMS))
    await asyncio.sleep(1)
    disturbance = await client.chat(client.Load(port, "tgi", WORD * long_tokens, 2), 0)
    _, streams = await running
    first, last = disturbance.started, disturbance.arrivals[0]
    during = [
        (after - before) * 1000
        for stream in streams
        for before, after in zip(stream.arrivals, stream.arrivals[1:], strict=False)
        if after > first and before < last
    ]
    return [gap * 1000 for stream in quiet for gap in stream.gaps], during


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def measure(name: str, server: Callable, long_tokens: int, answer_tokens: int) -> None:
    rises = {}
    for variant, flags in (("objective", []), ("control", NO_OBJECTIVE)):
        with server(flags) as port:
            quiet, during = asyncio.run(_gaps(port, long_tokens, answer_tokens))
        rises[variant] = p99(during) - p99(quiet)
    control = record.Peer("without an objective", rises["control"])
    record.report("long_prompt", f"{name} rise of p99", rises["objective"], "ms", control)


def main() -> None:
    router_rig.build()
    measure("real model, 4000 tokens", real, 4000, 400)
    measure("fake shard, 10000 tokens", fake, 10_000, 400)


if __name__ == "__main__":
    main()
