"""The same shape, prompts and answers in another engine on the same card, in a process of its own: transformers'
continuous batching, or vLLM where it is installed. Tokens/s over all, prompts included. A part of `gpu_report.py`."""

import importlib.util
import time
from typing import Any

import gpu_bed
import gpu_models
import record
import torch
from gpu_bed import Bed

SKIPPED = 75
STREAMS = (1, 32)
PROMPT_TOKENS, NEW_TOKENS = 1000, 128


def main() -> None:
    parser = gpu_bed.parser(__doc__)
    parser.add_argument("--peer", choices=("transformers", "vllm"), required=True)
    options = parser.parse_args()
    bed = gpu_bed.bed(options)
    if importlib.util.find_spec(options.peer) is None:
        print(f"skipped: {options.peer} is not installed")
        raise SystemExit(SKIPPED)
    gpu_models.describe(bed.shape, bed.model)
    run = _transformers if options.peer == "transformers" else _vllm
    streams, prompt, new = ((2,), 50, 5) if bed.dry else (STREAMS, PROMPT_TOKENS, NEW_TOKENS)
    for count, seconds, tokens in run(bed, streams, prompt, new):
        record.report("gpu_peers", f"{options.peer}/{count}/tokens_per_s", tokens / seconds, "tokens/s")


def _prompts(streams: int, tokens: int, turn: int) -> list[list[int]]:
    """Different from the first token on."""
    return [[(turn * streams + row) % 1000, *((37 * i) % 1000 for i in range(tokens - 1))] for row in range(streams)]


def _transformers(bed: Bed, streams: tuple[int, ...], prompt: int, new: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    dtype = getattr(torch, bed.dtype)
    with torch.device(bed.device):
        config = AutoConfig.from_pretrained(bed.model)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="paged|sdpa").eval()
    generation = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for count in streams:
        manager = model.init_continuous_batching(generation_config=generation)
        manager.start()
        # What it sets up with its first requests is not counted.
        for turn in range(2):
            begin, tokens, waiting = time.monotonic(), 0, count
            for ids in _prompts(count, prompt, turn):
                manager.add_request(ids, max_new_tokens=new)
            while waiting:
                output = manager.get_result(timeout=60)
                if output is None:
                    raise RuntimeError(f"transformers left {waiting} requests without an answer for a minute")
                if output.is_finished():
                    tokens += len(output.generated_tokens)
                    waiting -= 1
            seconds = time.monotonic() - begin
        manager.stop(block=True)
        yield count, seconds, tokens


def _vllm(bed: Bed, streams: tuple[int, ...], prompt: int, new: int) -> Any:
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(bed.model), load_format="dummy", skip_tokenizer_init=True, dtype=bed.dtype, max_model_len=2048,
        enable_prefix_caching=False, compilation_config={"cudagraph_capture_sizes": list(streams)},
    )  # fmt: skip
    wish = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False)
    for count in streams:
        for turn in range(2):
            begin = time.monotonic()
            prompts = [{"prompt_token_ids": ids} for ids in _prompts(count, prompt, turn)]
            outputs = engine.generate(prompts, wish, use_tqdm=False)
            seconds = time.monotonic() - begin
        yield count, seconds, sum(len(output.outputs[0].token_ids) for output in outputs)


if __name__ == "__main__":
    main()
