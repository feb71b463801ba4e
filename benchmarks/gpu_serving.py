"""A model of the 8B shape in bf16 on one GPU, end to end through launcher, router and HTTP: the mean decode step beside
the roofline of this card, tokens/s beside the engine's own rate, and how often the next plan was there in time. A part
of `gpu_report.py`."""

import asyncio
import statistics

import client
import gpu_bed
import gpu_models
import record
import servers
from gpu_bed import Bed
from serving import counters

STREAMS = (1, 8, 32, 128, 256)
PROMPT_TOKENS = 1000
NEW_TOKENS = 1000
# Tokens/s end to end of what the engine would give if all streams decoded all the time.
TARGET = 0.9


def main() -> None:
    bed = gpu_bed.bed(gpu_bed.parser(__doc__).parse_args())
    gpu_models.describe(bed.shape, bed.model)
    flags = ["--load-format", "dummy", "--max-concurrent-requests", "512", "--dtype", bed.dtype]
    flags += ["--max-input-tokens", "1024", "--max-total-tokens", "2048", "--device", bed.device.type]
    streams, prompt, new = ((1, 2), 100, 20) if bed.dry else (STREAMS, PROMPT_TOKENS, NEW_TOKENS)
    with servers.penstock(bed.model, *flags) as port:
        # What the first requests set up is not counted.
        _round(port, streams[0], prompt, min(new, 32), turn=0)
        for turn, count in enumerate(streams, start=1):
            before = counters(port)
            seconds, answers = _round(port, count, prompt, new, turn)
            _report(bed, count, (prompt, new), (seconds, answers), (before, counters(port)))


def _round(port: int, streams: int, prompt: int, new: int, turn: int) -> tuple[float, list[client.Stream]]:
    # The client puts its number first: the prompts of two turns differ from the second word on.
    load = client.Load(port, "tgi", f"w{turn} {gpu_models.prompt(prompt - 2)}", new)
    return asyncio.run(client.run(load, streams))


def _report(
    bed: Bed,
    streams: int,
    lengths: tuple[int, int],
    load: tuple[float, list[client.Stream]],
    counts: tuple[dict[str, float], dict[str, float]],
) -> None:
    (prompt, new), (seconds, answers), (before, after) = lengths, load, counts

    def spent(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    steps = spent('tgi_batch_inference_success{method="decode"}')
    floor = record.Peer("weights and KV at the card's bandwidth", bed.decode_floor(streams, prompt + new / 2) * 1e3)
    means = {}
    for part in ("step", "forward"):
        means[part] = spent(f'penstock_{part}_microseconds_total{{method="decode"}}') / steps / 1e3
        record.report("gpu_serving", f"{streams}/decode_{part}", means[part], "ms", floor)
    tokens = sum(answer.tokens for answer in answers)
    own = record.Peer("its own decode steps, back to back", streams / means["step"] * 1e3)
    # Prompts are left out of the time: from the last first token on, all streams decode.
    begun = max(answer.arrivals[0] for answer in answers)
    decoded = sum(sum(arrival > begun for arrival in answer.arrivals) for answer in answers)
    span = max(answer.arrivals[-1] for answer in answers) - begun
    record.report("gpu_serving", f"{streams}/decode_tokens_per_s", decoded / span, "tokens/s", own, TARGET)
    record.report("gpu_serving", f"{streams}/tokens_per_s", tokens / seconds, "tokens/s")
    gaps = [gap * 1000 for answer in answers for gap in answer.gaps]
    record.report("gpu_serving", f"{streams}/itl_p50", statistics.median(gaps), "ms")
    record.report("gpu_serving", f"{streams}/itl_p99", sorted(gaps)[int(0.99 * len(gaps))], "ms")
    first = [answer.time_to_first_token * 1000 for answer in answers]
    record.report("gpu_serving", f"{streams}/ttft_p50", statistics.median(first), "ms")
    # Of the steps after which there was more to do, those that found the next plan already there.
    followed = spent("penstock_decode_steps_followed_total")
    waiting = spent("penstock_steps_overlapped_total")
    if followed:
        record.report("gpu_serving", f"{streams}/next_plan_was_there", waiting / followed, "share")


if __name__ == "__main__":
    main()
