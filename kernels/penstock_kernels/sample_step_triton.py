"""Launches of `sample_step`. Shapes: S rows of a slice, V vocabulary, C chunks."""

import torch

from penstock_kernels.overlap import launch_options
from penstock_kernels.sample_cut_kernel import cut_kernel
from penstock_kernels.sample_step import SampleBuffers, StepRows
from penstock_kernels.sample_step_kernels import choose_kernel, edit_kernel, weigh_kernel
from penstock_kernels.sample_tables import CUTTING, LOGPROBS, SampleTables, Stage
from penstock_kernels.triton_support import power_of_two

# Scores that a program of the cut takes at a time.
CUT_BLOCK = 1024
EDIT_WARPS, WEIGH_WARPS, CHOOSE_WARPS, CUT_WARPS = 4, 4, 4, 16


def launch_slice(
    logits: torch.Tensor,
    rows: StepRows,
    tables: SampleTables,
    wanted: Stage,
    place: tuple[SampleBuffers, slice],
) -> None:
    """Samples the rows of one slice into their places of the buffers."""
    buffers, part = place
    assert logits.stride(1) == 1
    assert rows.seats.is_contiguous()
    assert rows.positions.is_contiguous()
    num_rows = part.stop - part.start
    staged = bool(wanted) or rows.masks is not None
    logits, seats, positions = logits[part], rows.seats[part], rows.positions[part]
    # Pointers that are not read are some that are there.
    alias = tables.ints if rows.state is None else rows.state.alias
    last_token = tables.ints if rows.state is None else rows.state.last_token
    masks = tables.history if rows.masks is None else rows.masks[part]
    best, best_id = buffers.best[part], buffers.best_id[part]
    num_seats = tables.ints.shape[1]
    shape = {"vocab": buffers.vocab_size, "num_chunks": buffers.num_chunks, "chunk": buffers.chunk}
    chunks = {"chunks": power_of_two(buffers.num_chunks)}
    kind = {"has_alias": rows.state is not None, "has_masks": rows.masks is not None, **launch_options(logits.device)}
    cells = (num_rows, buffers.num_chunks)
    edit_kernel[cells](
        logits, seats, positions, alias, masks, tables.ints, tables.floats,
        tables.edits.ids, tables.edits.values, tables.min_length.ids, tables.min_length.values, tables.history,
        buffers.scores, best, best_id, buffers.raw_best, buffers.raw_sum,
        logits.stride(0), num_seats, tables.edits.ids.shape[1], tables.min_length.ids.shape[1],
        # Products are rounded before they are subtracted, as torch does it.
        **shape, staged=staged, num_warps=EDIT_WARPS, enable_fp_fusion=False, **kind,
    )  # fmt: skip
    if wanted & CUTTING:
        cut_kernel[(num_rows,)](
            logits, seats, alias, tables.ints, tables.floats, buffers.scores, best, buffers.scratch,
            buffers.cuts, buffers.ties, logits.stride(0), num_seats,
            vocab=buffers.vocab_size, num_chunks=buffers.num_chunks, block=min(CUT_BLOCK, power_of_two(buffers.chunk)),
            num_warps=CUT_WARPS, **chunks, **kind,
        )  # fmt: skip
    if wanted & (Stage.SAMPLE | LOGPROBS):
        weigh_kernel[cells](
            logits, seats, alias, tables.ints, tables.floats, buffers.scores, best, buffers.cuts, buffers.ties,
            buffers.weights, buffers.top, logits.stride(0), num_seats,
            **shape, **chunks, top_width=buffers.top_width, num_warps=WEIGH_WARPS, **kind,
        )  # fmt: skip
    choose_kernel[(num_rows,)](
        logits, seats, positions, alias, last_token, tables.ints, tables.floats, tables.history,
        buffers.scores, best, best_id, buffers.raw_best, buffers.raw_sum, buffers.cuts, buffers.ties,
        buffers.weights, buffers.top, buffers.ids[part], buffers.bad[part], buffers.chosen[part],
        buffers.top_ids[part], buffers.top_logprobs[part], logits.stride(0), num_seats, num_seats - 1,
        **shape, **chunks, top_width=buffers.top_width,
        top_block=power_of_two(buffers.num_chunks * buffers.top_width), staged=staged, num_warps=CHOOSE_WARPS, **kind,
    )  # fmt: skip
