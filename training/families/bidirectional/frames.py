"""Frames: which of a row's input steps a call completes blocks with, and which go on waiting.

Owns: the counts, the states `pending` and `count`, and the alignment of frames. Must not know layers.

A call of T steps, to rows with `count` frames pending: known = count + length frames are there from the row's next
block on; floor((known - R) / Nc) blocks are complete, or ceil(known / Nc) where the stream ends. Rows differ in all of
these, so frames are aligned by index: pending and new frames of all rows are laid flat, P + T a row, and each row's
frame number t is looked up in it.
"""

import numpy as np

from eddy.training.builder import GraphBuilder
from eddy.training.families.bidirectional.spec import COUNT, EMITTED, FLUSH, LENGTH, PENDING, BidirectionalSpec
from eddy.training.spec import TokenInput


def write_counts(build: GraphBuilder, spec: BidirectionalSpec) -> None:
    """How many there are: `known` frames, complete `blocks`, `consumed` frames, `emitted` outputs, int64 [B].

    Also `num_blocks`, the most blocks of a row, and the frames of so many, `block_frames`: scalars.
    """
    block = build.scalar(spec.block_steps)
    build.node("Add", [COUNT, LENGTH], "known")
    build.node("Sub", ["known", build.scalar(spec.look_ahead_steps)], "beyond_look_ahead")
    build.node("Max", ["beyond_look_ahead", build.scalar(0)], "rounded_down")  # division truncates towards 0
    build.node("Add", ["known", build.scalar(spec.block_steps - 1)], "rounded_up")
    build.node("Where", [FLUSH, "rounded_up", "rounded_down"], "dividend")
    build.node("Div", ["dividend", block], "blocks")
    build.node("Mul", ["blocks", block], "consumed")
    build.node("Min", ["consumed", "known"], EMITTED)
    build.node("ReduceMax", ["blocks"], "num_blocks", keepdims=0)
    _write_active(build)
    build.node("Mul", ["num_blocks", block], "block_frames")


def _write_active(build: GraphBuilder) -> None:
    """The rows that complete a block: `active` int64 [A], `num_active` A, their `active_blocks`, `_known`, `_count`.

    Layers run on these alone: where streams stand at different places of their blocks, most calls of few steps complete
    blocks of few rows.
    """
    found = build.node("NonZero", ["blocks"], "active_found")
    build.node("Squeeze", [found, build.shape(0)], "active")
    build.node("Squeeze", [build.node("Shape", ["active"], "num_active_axis"), build.shape(0)], "num_active")
    for name, source in (("blocks", "blocks"), ("known", "known"), ("count", COUNT)):
        build.node("Gather", [source, "active"], f"active_{name}")


def write_pending(build: GraphBuilder, spec: BidirectionalSpec) -> None:
    """`pending_next` and `count_next`: the frames that follow the consumed ones, zero from the count on.

    Where the stream ends everything is consumed, and both are zero.
    """
    _write_flat(build, spec)
    numbers = build.constant("pending_numbers", np.arange(spec.pending_steps, dtype=np.int64)[:, None])
    position = build.node("Add", [numbers, "consumed"], "waiting")
    index, is_known = _write_index(build, spec, position, COUNT, "known", "row_starts")
    build.node("Gather", ["flat", build.node("Transpose", [index], "waiting_rows", perm=[1, 0])], "waiting_frames")
    mask, zero = build.node("Transpose", [is_known], "is_waiting", perm=[1, 0]), build.scalar(0)
    if not isinstance(spec.input, TokenInput):
        mask, zero = build.node("Unsqueeze", [mask, build.shape(2)], "is_waiting_wide"), build.zero()
    build.node("Where", [mask, "waiting_frames", zero], f"{PENDING}_next")
    build.node("Sub", ["known", EMITTED], f"{COUNT}_next")


def write_aligned(build: GraphBuilder, spec: BidirectionalSpec) -> str:
    """The raw frames of active rows' blocks and their look-ahead, [K * Nc + R, A, ...] for K blocks, none for K = 0."""
    build.node("Min", ["num_blocks", build.scalar(1)], "any_block")
    build.node("Mul", ["any_block", build.scalar(spec.look_ahead_steps)], "ahead_frames")
    build.node("Add", ["block_frames", "ahead_frames"], "num_frames")
    build.node("Range", [build.scalar(0), "num_frames", build.scalar(1)], "frame_numbers")
    position = build.node("Unsqueeze", ["frame_numbers", build.shape(1)], "aligned")
    build.node("Gather", ["row_starts", "active"], "active_starts")
    index, _ = _write_index(build, spec, position, "active_count", "active_known", "active_starts")
    return build.node("Gather", ["flat", index], "aligned_frames")


def _write_flat(build: GraphBuilder, spec: BidirectionalSpec) -> None:
    """`flat` [B * (P + T), ...]; `stride` P + T and `batch` B, scalars; `row_starts` int64 [B], the rows' places."""
    build.node("Concat", [PENDING, spec.input.name], "joined", axis=1)
    rest = () if isinstance(spec.input, TokenInput) else (spec.input.width,)
    build.node("Reshape", ["joined", build.shape(-1, *rest)], "flat")
    build.node("Shape", ["joined"], "joined_shape")
    build.node("Gather", ["joined_shape", build.scalar(0)], "batch")
    build.node("Gather", ["joined_shape", build.scalar(1)], "stride")
    build.node("Range", [build.scalar(0), "batch", build.scalar(1)], "rows")
    build.node("Mul", ["rows", "stride"], "row_starts")


def _write_index(
    build: GraphBuilder, spec: BidirectionalSpec, position: str, count: str, known: str, starts: str
) -> tuple[str, str]:
    """Where some rows' frames number `position` (int64 [N, 1] or [N, B]) lie in `flat`, and whether they are known.

    count, known, starts: int64 [B] of these rows. Both results [N, B]. A frame that is not known is looked up as the
    row's first pending one: a value that the model accepts, and the row's own, so that nothing of another row or of the
    call's padding is ever read.
    """
    build.node("Less", [position, count], f"{position}_is_old")
    build.node("Less", [position, known], f"{position}_is_known")
    build.node("Add", [position, build.scalar(spec.pending_steps)], f"{position}_shifted")
    build.node("Sub", [f"{position}_shifted", count], f"{position}_as_new")
    build.node("Where", [f"{position}_is_known", f"{position}_as_new", build.scalar(0)], f"{position}_or_first")
    build.node("Where", [f"{position}_is_old", position, f"{position}_or_first"], f"{position}_in_row")
    index = build.node("Add", [f"{position}_in_row", starts], f"{position}_index")
    return index, f"{position}_is_known"
