"""Time of one sampling step: on the CPU beside transformers' processors and torch.multinomial on the same rows; on a
GPU beside one read of the logits and beside the operations of torch that the CPU's form is made of.

Prints one JSON line per case: {"bench", "case", "value", "unit", "peer", "peer_value", "ratio"}; the ratio is our time
over the peer's. Rounds alternate between the two, and each reports its fastest: what else the machine does only
ever adds time.

    PYTHONPATH=kernels/benches python server/benches/bench_sample.py [--vocab-size 49152] [--rounds 15] [--threads 1]
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from cuda_timing import copy_bandwidth, seconds_each
from shard_testkit.limits import LIMITS
from transformers.generation import logits_process as reference

from penstock_kernels.warpers import Warper
from penstock_server import sampling
from penstock_server.plan_encoding import NewSeat
from penstock_server.plan_records import parse_registrations
from penstock_server.registrations import SeatFlag
from penstock_server.sampling import Sampler, SampleRows, SamplerSizes

CPU = torch.device("cpu")
PEER = "transformers processors + torch.multinomial"
CASES: dict[str, dict[Warper, float]] = {
    "greedy": {},
    "temperature": {Warper.TEMPERATURE: 0.7},
    "top_k": {Warper.TOP_K: 50},
    "top_p": {Warper.TOP_P: 0.9},
    "min_p": {Warper.MIN_P: 0.05},
    "typical_p": {Warper.TYPICAL_P: 0.9},
    "temperature+top_k+top_p": {Warper.TEMPERATURE: 0.7, Warper.TOP_K: 50, Warper.TOP_P: 0.9},
}


def ours(logits: torch.Tensor, settings: dict[Warper, float]) -> Callable[[], object]:
    """One step of the sampler, every row with a seat of its own."""
    num_rows, vocab_size = logits.shape
    flags = SeatFlag.DO_SAMPLE if settings else 0
    values = {warper.name.lower(): value for warper, value in settings.items()}
    records = [NewSeat(seat, 1, 1, 8, flags, seed=seat, **values).words() for seat in range(num_rows)]
    limits = dataclasses.replace(LIMITS, num_seats=num_rows, vocab_size=vocab_size)
    sampler = Sampler(SamplerSizes(num_rows, 0, vocab_size, num_rows, 20), logits.device)
    sampler.register(parse_registrations(np.array(records, np.int32).reshape(-1), num_rows, limits))
    host_seats = np.arange(num_rows)
    ones = torch.ones(num_rows, dtype=torch.int64, device=logits.device)
    rows = SampleRows(torch.from_numpy(host_seats).to(logits.device), ones, host_seats)
    return lambda: sampler.sample(logits, rows)


def transformers_step(logits: torch.Tensor, settings: dict[Warper, float]) -> Callable[[], object]:
    """The same step as `generate` of transformers does it."""
    if not settings:
        return lambda: logits.argmax(-1)
    makers = {
        Warper.TEMPERATURE: reference.TemperatureLogitsWarper,
        Warper.TOP_K: reference.TopKLogitsWarper,
        Warper.TOP_P: reference.TopPLogitsWarper,
        Warper.MIN_P: reference.MinPLogitsWarper,
        Warper.TYPICAL_P: reference.TypicalLogitsWarper,
    }
    processors = reference.LogitsProcessorList([makers[warper](value) for warper, value in settings.items()])
    ids = torch.zeros((logits.shape[0], 1), dtype=torch.int64)
    return lambda: torch.multinomial(torch.softmax(processors(ids, logits), -1), 1)


def fastest_ms(steps: list[Callable[[], object]], rounds: int) -> list[float]:
    """Each step's fastest round, in milliseconds."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = [[0.0] * rounds for _ in steps]
    for round_index in range(-1, rounds):  # one round to warm up
        for index, step in enumerate(steps):
            start = clock()
            step()
            if round_index >= 0:
                times[index][round_index] = (clock() - start) * 1e3
    return [min(series) for series in times]


def report(case: str, value: float, unit: str, peer: tuple[str, float]) -> None:
    """Prints one figure; the ratio is to the peer's."""
    name, theirs = peer
    figure = {
        "bench": "sample",
        "case": case,
        "value": round(value, 3),
        "unit": unit,
        "peer": name,
        "peer_value": round(theirs, 3),
        "ratio": round(value / theirs, 3),
    }
    print(json.dumps(figure), flush=True)


def on_gpu(vocab_size: int) -> None:
    """Two lines per case and number of rows, in microseconds of a captured step."""
    for num_rows in (1, 32, 128, 256):
        logits = torch.randn((num_rows, vocab_size), device="cuda") * 3
        floor = ("one read of the logits", logits.nbytes / copy_bandwidth() * 1e6)
        for name, settings in CASES.items():
            case = f"{name}, {num_rows} rows, vocabulary {vocab_size}, on a GPU"
            value = seconds_each([ours(logits, settings)]) * 1e6
            report(case, value, "us", floor)
            uses_triton, sampling.uses_triton = sampling.uses_triton, lambda tensor: False
            plain = seconds_each([ours(logits, settings)]) * 1e6
            sampling.uses_triton = uses_triton
            report(case, value, "us", ("torch's operations", plain))


def main() -> None:
    """Prints a line per case and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab-size", type=int, default=128_256 if torch.cuda.is_available() else 49_152)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        on_gpu(arguments.vocab_size)
        return
    torch.set_num_threads(arguments.threads)
    for num_rows in (1, 8, 32):
        logits = torch.randn((num_rows, arguments.vocab_size), generator=torch.Generator().manual_seed(0)) * 3
        for name, settings in CASES.items():
            value, peer = fastest_ms([ours(logits, settings), transformers_step(logits, settings)], arguments.rounds)
            case = f"{name}, {num_rows} rows, vocabulary {arguments.vocab_size}, {arguments.threads} threads"
            report(case, value, "ms", (PEER, peer))


if __name__ == "__main__":
    main()
