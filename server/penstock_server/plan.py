"""A plan's blob -> checked numpy columns, on the host and without a Python loop over rows.

The layout is the comment on `Plan.blob` in `proto/shard/v1/shard.proto`. What depends on the state of the seats is
checked in `seats.py` and `batch.py`; nothing here knows of tensors.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from penstock_server.plan_checks import PlanError, PlanLimits, check_distinct, check_range
from penstock_server.plan_records import parse_registrations
from penstock_server.registrations import SeatRegistrations

LAYOUT_VERSION = 1
HEADER_WORDS = 14

PLAN_FLAG_SAME_ROWS = 1 << 0
ROW_FLAG_MASKED = 1 << 28
ROW_FLAG_FEED = 1 << 29
ROW_FLAG_SAMPLE = 1 << 30
ROW_SEAT_MASK = (1 << 24) - 1

Words = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows of one plan, N of them. Kept until the next plan, which may repeat them with SAME_ROWS."""

    seats: np.ndarray  # int64 [N]
    samples: np.ndarray  # bool [N]
    feeds: np.ndarray  # bool [N]

    @property
    def repeatable(self) -> bool:
        """Whether the next plan may say SAME_ROWS."""
        return bool(self.samples.all()) and not self.feeds.any()


NO_ROWS = RowSet(np.empty(0, np.int64), np.empty(0, bool), np.empty(0, bool))


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's orders, in the order in which they take effect. Fed ids are not checked yet: a row fails alone."""

    plan_id: int
    checksum: int  # CRC-32 of the blob
    frees: Words  # [F, 2] seat, generation
    registrations: SeatRegistrations
    appends: Words  # [A, 4] seat, group, index, block
    rows: RowSet
    extents: Words  # [M, 2] start, count of each feed row
    feed_ids: Words  # [K]
    num_tokens: int
    padded_rows: int  # 0: the shard chooses
    padded_tokens: int


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    flags: int
    num_rows: int
    num_feed_rows: int
    num_feed_ids: int
    num_frees: int
    num_registrations: int
    num_registration_words: int
    num_appends: int
    num_copies: int
    padded_rows: int
    padded_tokens: int
    repeat: int
    weight_version: int

    @property
    def same_rows(self) -> bool:
        return bool(self.flags & PLAN_FLAG_SAME_ROWS)


def decode_plan(plan_id: int, blob: bytes, previous: RowSet | None, limits: PlanLimits) -> Plan:
    """Decodes and checks one blob. `previous` are the rows of the stream's last plan. Raises PlanError."""
    if len(blob) % 4 or len(blob) < 4 * HEADER_WORDS:
        raise PlanError(f"plan of {len(blob)} bytes: not a whole number of 32-bit words, or shorter than the header")
    words = np.frombuffer(blob, dtype="<i4")
    header = _decode_header(words, limits)
    sections = _split(words, header)
    rows = _same_rows(header, previous) if header.same_rows else _decode_rows(sections["rows"], header, limits)
    extents = sections["extents"].reshape(-1, 2)
    _check_extents(extents, header.num_feed_ids)
    num_tokens = header.num_feed_ids + header.num_rows - header.num_feed_rows
    if num_tokens > limits.max_tokens:
        raise PlanError(f"plan computes {num_tokens} tokens, limit {limits.max_tokens}")
    _check_padding(header, num_tokens, limits)
    frees, appends = sections["frees"].reshape(-1, 2), sections["appends"].reshape(-1, 4)
    _check_frees(frees, limits)
    _check_appends(appends, limits)
    registrations = parse_registrations(sections["registrations"], header.num_registrations, limits)
    return Plan(
        plan_id=plan_id,
        checksum=zlib.crc32(blob),
        frees=frees,
        registrations=registrations,
        appends=appends,
        rows=rows,
        extents=extents,
        feed_ids=sections["feed_ids"],
        num_tokens=num_tokens,
        padded_rows=header.padded_rows,
        padded_tokens=header.padded_tokens,
    )


def _decode_header(words: Words, limits: PlanLimits) -> _Header:
    header = _Header(*words[:HEADER_WORDS].tolist())
    if header.version != LAYOUT_VERSION:
        raise PlanError(f"plan layout version {header.version}, this shard speaks {LAYOUT_VERSION}")
    if header.flags & ~PLAN_FLAG_SAME_ROWS:
        raise PlanError(f"unknown plan flags {header.flags & ~PLAN_FLAG_SAME_ROWS:#x}")
    for name in _Header.__slots__[2:]:
        if getattr(header, name) < 0:
            raise PlanError(f"{name} {getattr(header, name)} is negative")
    if header.num_copies:
        raise PlanError("block copies are refused: this shard has no FEATURE_BLOCK_COPIES")
    if header.repeat > 1:
        raise PlanError(f"repeat {header.repeat} is refused: this shard has no FEATURE_REPEAT")
    if header.weight_version:
        raise PlanError(f"weight_version {header.weight_version} is refused: this shard has no FEATURE_WEIGHT_UPDATE")
    if header.num_rows > limits.max_rows:
        raise PlanError(f"plan of {header.num_rows} rows, limit {limits.max_rows}")
    if header.num_feed_rows > header.num_rows:
        raise PlanError(f"num_feed_rows {header.num_feed_rows} exceeds num_rows {header.num_rows}")
    return header


def _split(words: Words, header: _Header) -> dict[str, Words]:
    """Cuts the blob into its sections. Raises PlanError when it is longer or shorter than the header says."""
    sizes = {
        "header": HEADER_WORDS,
        "frees": 2 * header.num_frees,
        "registrations": header.num_registration_words,
        "appends": 4 * header.num_appends,
        "rows": 0 if header.same_rows else header.num_rows,
        "extents": 2 * header.num_feed_rows,
        "feed_ids": header.num_feed_ids,
    }
    expected = sum(sizes.values())
    if words.size != expected:
        raise PlanError(f"plan of {words.size} words, its header describes {expected}")
    sections, start = {}, 0
    for name, size in sizes.items():
        sections[name] = words[start : start + size]
        start += size
    return sections


def _same_rows(header: _Header, previous: RowSet | None) -> RowSet:
    if previous is None:
        raise PlanError("SAME_ROWS in the first plan of a stream")
    if header.num_feed_rows or header.num_feed_ids:
        raise PlanError("SAME_ROWS together with feed rows")
    if not previous.repeatable:
        raise PlanError("SAME_ROWS after a plan with feed rows or rows without SAMPLE")
    if header.num_rows != previous.seats.size:
        raise PlanError(f"SAME_ROWS with num_rows {header.num_rows}, the previous plan had {previous.seats.size}")
    return previous


def _decode_rows(words: Words, header: _Header, limits: PlanLimits) -> RowSet:
    known = ROW_FLAG_SAMPLE | ROW_FLAG_FEED | ROW_FLAG_MASKED | ROW_SEAT_MASK
    # A set sign bit makes the word negative; `& ~known` keeps it, so it is refused as an unknown flag.
    unknown = words & np.int32(~known)
    if unknown.any():
        raise PlanError(f"unknown row flags {int(unknown[unknown != 0][0]) & 0xFFFFFFFF:#x}")
    if (words & ROW_FLAG_MASKED).any():
        raise PlanError("masked rows are refused: this shard has no FEATURE_GRAMMAR_MASKS")
    seats = (words & ROW_SEAT_MASK).astype(np.int64)
    check_range("row seat", seats, 0, limits.num_seats - 1)
    check_distinct("row seat", seats)
    feeds = (words & ROW_FLAG_FEED) != 0
    if int(feeds.sum()) != header.num_feed_rows:
        raise PlanError(f"num_feed_rows {header.num_feed_rows}, but {int(feeds.sum())} rows have the FEED flag")
    return RowSet(seats=seats, samples=(words & ROW_FLAG_SAMPLE) != 0, feeds=feeds)


def _check_extents(extents: Words, num_feed_ids: int) -> None:
    if not extents.size:
        if num_feed_ids:
            raise PlanError(f"num_feed_ids {num_feed_ids} without feed rows")
        return
    check_range("feed start", extents[:, 0], 0, np.iinfo(np.int32).max)
    check_range("feed count", extents[:, 1], 1, np.iinfo(np.int32).max)
    total = int(extents[:, 1].sum(dtype=np.int64))
    if total != num_feed_ids:
        raise PlanError(f"feed counts add up to {total}, num_feed_ids is {num_feed_ids}")


def _check_padding(header: _Header, num_tokens: int, limits: PlanLimits) -> None:
    rows, tokens = header.padded_rows, header.padded_tokens
    if rows and (rows not in limits.decode_sizes or rows < header.num_rows):
        raise PlanError(f"padded_rows {rows} for {header.num_rows} rows is not a decode size {limits.decode_sizes}")
    if tokens and (tokens not in limits.mixed_sizes or tokens < num_tokens):
        raise PlanError(f"padded_tokens {tokens} for {num_tokens} tokens is not a mixed size {limits.mixed_sizes}")


def _check_frees(frees: Words, limits: PlanLimits) -> None:
    if frees.size:
        check_range("freed seat", frees[:, 0], 0, limits.num_seats - 1)
        check_distinct("freed seat", frees[:, 0])


def _check_appends(appends: Words, limits: PlanLimits) -> None:
    if not appends.size:
        return
    check_range("append seat", appends[:, 0], 0, limits.num_seats - 1)
    check_range("append group", appends[:, 1], 0, 0)
    check_range("append index", appends[:, 2], 0, limits.blocks_per_seat - 1)
    check_range("append block", appends[:, 3], 1, limits.num_blocks - 1)
    check_distinct("append seat * blocks_per_seat + index", append_targets(appends, limits.blocks_per_seat))


def append_targets(appends: Words, blocks_per_seat: int) -> np.ndarray:
    """int64 [A]: where each append lands in a flat table of [seats, blocks_per_seat]."""
    return appends[:, 0].astype(np.int64) * blocks_per_seat + appends[:, 2]
