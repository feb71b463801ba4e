"""An 8B-shaped model in bf16 on one GPU, end to end through launcher, router and HTTP: the mean decode step beside the
memory roofline of this card, tokens/s beside transformers' continuous batching, and the time until ready.

`PYTHONPATH=kernels/benches python benchmarks/gpu_serving.py --folder /dev/shm/8b`; the folder takes 16 GB.
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import client
import gpu_models
import record
import servers
import torch
from cuda_timing import copy_bandwidth
from serving import counters

STREAMS = (1, 8, 32, 128, 256)
PROMPT_TOKENS = 1000
NEW_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("flags", nargs="*", help="for the launcher, after --")
    options = parser.parse_args()
    shape = gpu_models.Shape(layers=options.layers)
    if not (options.folder / "config.json").exists():
        gpu_models.write(shape, options.folder)
    bandwidth = copy_bandwidth()
    record.report("gpu_serving", "copy_bandwidth", bandwidth / 1e12, "TB/s")
    speeds = measure(options, shape, bandwidth)
    if not options.no_peer:
        compare(options, speeds)


def measure(options: argparse.Namespace, shape: gpu_models.Shape, bandwidth: float) -> dict[int, float]:
    """Tokens/s of our server by number of streams."""
    speeds = {}
    begin = time.monotonic()
    flags = ["--max-concurrent-requests", "512", *options.flags]
    with servers.penstock(options.folder, *flags) as port:
        record.report("gpu_serving", "ready", time.monotonic() - begin, "s")
        for streams in options.streams:
            for turn in range(2):  # the first warms up
                before = counters(port)
                # The client puts its number first: the prompts of two turns differ from the second word on.
                load = client.Load(port, "tgi", f"w{turn} {gpu_models.prompt(PROMPT_TOKENS - 2)}", NEW_TOKENS)
                seconds, answers = asyncio.run(client.run(load, streams))
            after = counters(port)
            speeds[streams] = sum(answer.tokens for answer in answers) / seconds
            if options.no_peer:  # with a peer, `compare` reports both
                record.report("gpu_serving", f"{streams}/tokens_per_s", speeds[streams], "tokens/s")
            _report_steps(streams, before, after, _floor(shape, streams, bandwidth))
            gaps = [gap * 1000 for answer in answers for gap in answer.gaps]
            record.report("gpu_serving", f"{streams}/itl_p50", statistics.median(gaps), "ms")
            first = [answer.time_to_first_token * 1000 for answer in answers]
            record.report("gpu_serving", f"{streams}/ttft_p50", statistics.median(first), "ms")
    return speeds


def _floor(shape: gpu_models.Shape, streams: int, bandwidth: float) -> float:
    """Milliseconds that a decode step needs at least to read the weights and the keys and values of its rows."""
    kv_bytes = streams * (PROMPT_TOKENS + NEW_TOKENS / 2) * shape.kv_bytes_per_token
    return (shape.step_weight_bytes + kv_bytes) / bandwidth * 1000


def _report_steps(streams: int, before: dict[str, float], after: dict[str, float], floor_ms: float) -> None:
    def spent(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    steps = spent('tgi_batch_inference_success{method="decode"}')
    for part in ("step", "forward"):
        mean_ms = spent(f'penstock_{part}_microseconds_total{{method="decode"}}') / steps / 1000
        peer = record.Peer("weights and KV at copy bandwidth", floor_ms)
        record.report("gpu_serving", f"{streams}/decode_{part}", mean_ms, "ms", peer)


def compare(options: argparse.Namespace, ours: dict[int, float]) -> None:
    """The same prompts and lengths through transformers' continuous batching in this process."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = (
        AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.bfloat16, attn_implementation="paged|sdpa")
        .to("cuda")
        .eval()
    )
    text = gpu_models.prompt(PROMPT_TOKENS - 1)
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for streams in options.streams:
        manager = model.init_continuous_batching(generation_config=config)
        manager.start()
        # What it sets up with its first requests is not counted; the prompts differ from the first word on.
        for turn in range(2):
            prompts = [tokenizer(f"w{turn * streams + number} {text}").input_ids for number in range(streams)]
            seconds, tokens = _peer_round(manager, prompts)
        manager.stop(block=True)
        peer = record.Peer("transformers continuous batching, in process", tokens / seconds)
        record.report("gpu_serving", f"{streams}/tokens_per_s", ours[streams], "tokens/s", peer)


def _peer_round(manager: Any, prompts: list[list[int]]) -> tuple[float, int]:
    """Seconds from the first request to the last answer, and the tokens of all answers."""
    begin = time.monotonic()
    for prompt in prompts:
        manager.add_request(prompt, max_new_tokens=NEW_TOKENS)
    tokens, waiting = 0, len(prompts)
    while waiting:
        output = manager.get_result(timeout=60)
        if output is None:
            raise RuntimeError(f"transformers left {waiting} requests without an answer for a minute")
        if output.is_finished():
            tokens += len(output.generated_tokens)
            waiting -= 1
    return time.monotonic() - begin, tokens


if __name__ == "__main__":
    main()
