"""Runs every step size once before the first request, and probes whether a row's results depend on anything but the
row: on the rest of the batch, or on how its prompt is cut into steps.
"""

from collections.abc import Callable

import torch

from penstock_server.engine import Engine
from penstock_server.graphs import MAX_CAPTURED_ROWS
from penstock_server.messages import StepResult
from penstock_server.plan import decode_plan
from penstock_server.plan_checks import PlanLimits
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.registrations import SeatFlag

PROMPT_TOKENS, SAMPLED_TOKENS = 5, 3
PROBE_TOKENS = PROMPT_TOKENS + SAMPLED_TOKENS
PROBE_ROWS = 8
# Longer than a tile of attention, and a multiple of no power of two above 2.
CUT_PROMPT_TOKENS = 110
# Sizes above these run as fast the first time: they are dominated by their work, which has no first-call cost to hide.
LARGEST_WARM_ROWS = {"cpu": 32, "cuda": 1 << 24}
LARGEST_WARM_TOKENS = {"cpu": 64, "cuda": 512}


def warm_up(
    engine: Engine,
    device_type: str,
    progress: Callable[[float], None],
    ended: Callable[[str], None] = lambda phase: None,
) -> bool:
    """`progress` is told the fraction that is done, `ended` the phase that came to its end, or a part of one.

    Leaves the engine clear. Returns whether a row's results were the same, bit for bit, alone and in a batch, and
    with its prompt whole and in pieces. All ranks return the same.
    """
    for index, size in enumerate(sizes := warm_sizes(engine.limits, device_type)):
        engine.warm_up(*size)
        ended("kernels")
        # Several ranks capture together: what NCCL does in a capture takes all of them, and a rank that replays beside
        # one that does not may wait for ever.
        if size[1] or engine.num_ranks > 1:
            engine.capture(*size)
        else:
            engine.capture_later([size])
        ended("graphs")
        progress(index / len(sizes))
    engine.clear()
    run_all_sampling_stages(engine)
    ended("kernels")
    invariant = _is_batch_invariant(engine) and _is_cut_invariant(engine)
    ended("probes")
    progress(1.0)
    return invariant


def warm_sizes(limits: PlanLimits, device_type: str) -> list[tuple[int, bool]]:
    """Padded sizes, each with whether it is one of decode steps, the largest first: the memory that a captured graph
    takes serves the smaller ones too.
    """
    rows = [(size, True) for size in reversed(limits.decode_sizes) if size <= LARGEST_WARM_ROWS[device_type]]
    largest_mixed = LARGEST_WARM_TOKENS[device_type]
    return rows + [(size, False) for size in reversed(limits.mixed_sizes) if 2 <= size <= largest_mixed]


def measure_steps(engine: Engine, device: torch.device) -> int:
    """Bytes of CUDA memory that steps take beside weights, KV cache and fixed buffers, their graphs included.

    Runs the largest step of each kind, and captures the largest that will be; the others use the same memory but for
    the logits that each captured size keeps. No plan may follow: the engine is to be dropped.
    """
    sizes = warm_sizes(engine.limits, device.type)
    decode, mixed = next(size for size in sizes if size[1]), (engine.limits.mixed_sizes[-1], False)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    engine.warm_up(*mixed)
    engine.warm_up(*decode)
    captured = [rows for rows, is_decode in sizes if is_decode and rows <= MAX_CAPTURED_ROWS]
    engine.warm_up(captured[0], True)
    engine.capture(captured[0], True)
    for size in [size for size in sizes if not size[1]][:1]:
        engine.warm_up(*size)
        engine.capture(*size)
    taken = torch.cuda.memory_reserved(device) - before
    return taken + sum(captured[1:]) * engine.limits.vocab_size * torch.float32.itemsize


def run_all_sampling_stages(engine: Engine) -> None:
    """One token from a greedy seat, then one from a seat that asks for everything: a GPU loads an operation's code when
    it is first used.
    """
    limits = engine.limits
    greedy = NewSeat(seat=0, generation=1, prompt_len=1, max_len=limits.max_seq_len)
    has_lane = limits.num_penalty_lanes > 0
    everything = NewSeat(
        seat=0,
        generation=1,
        prompt_len=1,
        max_len=limits.max_seq_len,
        flags=SeatFlag.DO_SAMPLE | SeatFlag.LOGPROBS,
        penalty_lane=0 if has_lane else -1,
        temperature=0.9,
        top_k=2,
        top_p=0.9,
        typical_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1 if has_lane else 1.0,
        frequency_penalty=0.1 if has_lane else 0.0,
        presence_penalty=0.1 if has_lane else 0.0,
        num_top_logprobs=limits.max_top_logprobs,
        min_new_tokens=1,
        bias=((0, 1.0),),
        min_length=(1,),
        history=(0,) if has_lane else (),
    )
    for seat in (greedy, everything):
        draft = PlanDraft(registrations=[seat], appends=[(0, 0, 0, 1)], rows=[PlanRow(seat=0, ids=(0,))])
        engine.collect(engine.launch(decode_plan(1, draft.encode(), None, limits)))
        engine.clear()


def _is_batch_invariant(engine: Engine) -> bool:
    """Generates with one seat alone, then with the same seat among others, and compares its log-probabilities."""
    limits = engine.limits
    blocks_each = -(-PROBE_TOKENS // engine.tokens_per_block)
    num_rows = min(
        PROBE_ROWS, limits.max_rows, (limits.num_blocks - 1) // blocks_each, limits.max_tokens // PROMPT_TOKENS
    )
    if num_rows < 2 or limits.max_seq_len < PROBE_TOKENS:
        return False
    alone, together = _generate(engine, 1, blocks_each), _generate(engine, num_rows, blocks_each)
    return engine.share(all(a.logprobs == b.logprobs[:4] for a, b in zip(alone, together, strict=True)))


def _is_cut_invariant(engine: Engine) -> bool:
    """Feeds one prompt whole, then in two pieces, cut at one place after another until the results differ."""
    limits = engine.limits
    pool_tokens = (limits.num_blocks - 1) * engine.tokens_per_block
    length = min(CUT_PROMPT_TOKENS, limits.max_tokens, limits.max_seq_len - 1, pool_tokens)
    whole = _feed(engine, length, [length])
    cuts = sorted({length // 2, length // 4, length - 1} - {0})
    # Only rank 0 has results; all ranks have to try the same cuts.
    return bool(cuts) and all(engine.share(_feed(engine, length, [cut, length - cut]) == whole) for cut in cuts)


def _feed(engine: Engine, length: int, pieces: list[int]) -> tuple[bytes, bytes]:
    """The log-probabilities after a prompt of `length` tokens fed in pieces, one a plan."""
    limits = engine.limits
    flags = SeatFlag.LOGPROBS | SeatFlag.RAW_LOGPROBS
    seat = NewSeat(0, 1, length, length + 1, flags, num_top_logprobs=limits.max_top_logprobs)
    blocks = range(-(-length // engine.tokens_per_block))
    draft = PlanDraft(registrations=[seat], appends=[(0, 0, index, 1 + index) for index in blocks])
    start, result = 0, None
    for plan_id, count in enumerate(pieces, start=1):
        ids = tuple((3 * position + 1) % limits.vocab_size for position in range(start, start + count))
        start += count
        draft.rows.append(PlanRow(0, start == length, start - count, ids))
        result = engine.collect(engine.launch(decode_plan(plan_id, draft.encode(), None, limits)))
        draft = PlanDraft()
    engine.clear()
    assert result is not None
    return result.logprobs, result.top_logprobs


def _generate(engine: Engine, num_rows: int, blocks_each: int) -> list[StepResult]:
    limits = engine.limits
    seats = range(num_rows)
    first = PlanDraft(
        registrations=[
            NewSeat(seat, 1, PROMPT_TOKENS, PROBE_TOKENS, SeatFlag.LOGPROBS | SeatFlag.RAW_LOGPROBS) for seat in seats
        ],
        appends=[
            (seat, 0, index, 1 + seat * blocks_each + index) for seat in seats for index in range(blocks_each)
        ],
        rows=[
            PlanRow(seat, ids=tuple((seat + 3 * position + 1) % limits.vocab_size for position in range(PROMPT_TOKENS)))
            for seat in seats
        ],
    )  # fmt: skip
    following = PlanDraft(rows=[PlanRow(seat) for seat in seats])
    results = []
    for plan_id, draft in enumerate([first, *[following] * (SAMPLED_TOKENS - 1)], start=1):
        results.append(engine.collect(engine.launch(decode_plan(plan_id, draft.encode(), None, limits))))
    engine.clear()
    return results
