"""Records of sessions: what goes in comes out, and nothing else is taken."""

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import INPUTS, MODEL, OUTPUTS, STATES, batch, checkpoint

from eddy.service import record_log
from eddy.service.errors import ClientError, Reason
from eddy.service.instruction_set import describe, instruction_set
from eddy.service.kept import StoredReply
from eddy.service.ports import State
from eddy.service.record import HEAD, VERSION, Record, as_snapshot, decode, encode
from eddy.service.record_format import REPLY
from eddy.service.record_model import check_fits, layout_of, ports_of
from eddy.service.replies import ReplyStore


def _sealed(body: bytes) -> bytes:
    """`body` with the checksum that it should have."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def _refused(data: bytes) -> Reason:
    with pytest.raises(ClientError) as caught:
        decode(data)
    return caught.value.reason


@settings(max_examples=100)
@given(num_sessions=st.integers(1, 40), seed=st.integers(0, 1 << 30), budget=st.sampled_from([100, 1 << 20]))
def test_what_is_written_is_read(num_sessions: int, seed: int, budget: int) -> None:
    """All columns of all sessions, with kept replies of any number and length, some of them forgotten."""
    draw = np.random.default_rng(seed)
    rings = ReplyStore(INPUTS, OUTPUTS, budget)
    sizes = draw.integers(1, 4, num_sessions)
    starts = np.concatenate([rings.open_rings(1, size) for size in sizes.tolist()])
    expected: list[list[int]] = [[] for _ in range(num_sessions)]
    for turn in range(int(draw.integers(0, 4))):
        rows = np.flatnonzero((draw.random(num_sessions) < 0.7) & (turn < sizes))
        steps = int(draw.integers(1, 5))
        parts = tuple(draw.bytes(len(rows) * port.row_bytes(steps)) for port in (*INPUTS, *OUTPUTS))
        if len(rows):
            rings.keep(starts[rows] + turn, np.full(len(rows), 10 * turn), parts, steps)
        for row in rows.tolist():
            expected[row].append(10 * turn)
    written = checkpoint(num_sessions, seed, rings.export_rings(starts, sizes))
    records = encode(written)
    assert records.offsets.tolist() == (np.cumsum(records.sizes) - records.sizes).tolist()
    for row in range(num_sessions):
        record = decode(records.record(row))
        assert record.epoch == written.epochs.item(row)
        assert record.next_position == written.next_positions.item(row)
        assert record.idle_timeout_seconds == written.idle_timeout_seconds.item(row)
        assert record.expires_at == written.expires_at.item(row)
        assert record.has_own_start == written.has_own_start.item(row)
        assert record.is_initial == written.is_initial.item(row)
        assert (record.session_id, record.resume_token) == (
            written.session_ids[row].tobytes(),
            written.resume_tokens[row].tobytes(),
        )
        assert (record.model, record.writer, record.written_at) == (MODEL, written.writer, written.written_at)
        assert record.max_in_flight == written.max_in_flight.item(row)
        if record.is_initial:
            assert record.states == ()
        else:
            for mine, theirs in zip(record.states, written.states, strict=True):
                assert mine.dtype == theirs.dtype
                assert np.array_equal(mine, theirs[row])
        assert [reply.position for reply in record.replies] == expected[row]
        for reply in record.replies:
            found = rings.find(int(starts[row]), int(sizes[row]), reply.position)
            assert found is not None
            assert (found.num_steps, b"".join((*found.inputs, *found.outputs))) == (reply.num_steps, reply.data)


def test_the_format_is_what_the_documents_say() -> None:
    """One record, put together by hand."""
    rings = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    start = int(rings.open_rings(1, 2)[0])
    rings.keep_one(start + 1, 5, (b"x" * 12, b"y" * 16, b"last!"), 1)
    written = checkpoint(1, 3, rings.export_rings(np.array([start]), np.array([2])))
    written = replace(
        written,
        epochs=np.array([9], np.uint32),
        max_in_flight=np.array([2], np.uint32),
        next_positions=np.array([6]),
        idle_timeout_seconds=np.array([60.0]),
        expires_at=np.array([4e9]),
        holders=np.array([1 << 63], np.uint64),
        has_own_start=np.array([True]),
    )
    model = b"".join(
        struct.pack(f"<H{len(text)}s", len(text), text)
        for text in (b"lstm", b"3", b"ab" * 32, b"1.32.0", b"x86_64 avx2")
    )
    model += ports_of((*INPUTS, *OUTPUTS))
    model += struct.pack("<HBBH1s2qBBH5s", 2, 1, 2, 1, b"h", 2, 4, 5, 0, 5, b"count")
    states = written.states[0].tobytes() + written.states[1].tobytes()
    reply = struct.pack("<qII", 5, 1, 33) + b"x" * 12 + b"y" * 16 + b"last!"
    size = 120 + len(model) + len(states) + len(reply) + 4
    head = struct.pack(
        "<8sHHIIIQ16s16sqdddQIIII",
        *(b"EDDYSESS", 1, 1, size, 9, 2, 77, written.session_ids.tobytes(), written.resume_tokens.tobytes()),
        *(6, 60.0, 4e9, 1.5e9, 1 << 63, len(model), len(states), 1, 0),
    )
    assert encode(written).record(0) == _sealed(head + model + states + reply)


def test_the_page_has_the_fields_of_the_head() -> None:
    """Offset, size and name of each, in order; of records, and of a batch in the SQLite store's log."""
    page = (Path(__file__).parents[2] / "docs" / "state.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    for title, head in (("Records, byte by byte", HEAD), ("The SQLite store's log, byte by byte", record_log.HEAD)):
        (section,) = (section for section in sections if section.startswith(title))
        rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
        fields = head.fields
        assert fields is not None
        told = [(fields[name][1], fields[name][0].itemsize, name) for name in head.names or ()]
        assert [(int(offset), int(size), name) for offset, size, name in rows] == told


def _one() -> bytes:
    data = batch([b"s" * 16], [4], [0], seed=2).record(0)
    assert decode(data).replies
    assert decode(data).states
    return data


def test_a_snapshot_of_a_record_names_nobody() -> None:
    """Everything else is as it was; without replies it is shorter by those."""
    data = batch([b"s" * 16], [4], [0], seed=2, writer=5).record(0)
    record = decode(data)
    assert record.expires_at
    bare = replace(record, session_id=bytes(16), resume_token=bytes(16), writer=0, epoch=0, expires_at=0.0, holder=0)
    for has_replies, wanted in ((True, bare), (False, replace(bare, replies=()))):
        made = as_snapshot(data, has_replies=has_replies)
        assert _same(decode(made), wanted)
        num_bytes = sum(len(reply.data) for reply in record.replies) + len(record.replies) * REPLY.itemsize
        assert len(data) - len(made) == (0 if has_replies else num_bytes)


def _same(one: Record, other: Record) -> bool:
    states = [(array.dtype, array.tobytes()) for array in one.states]
    return replace(one, states=()) == replace(other, states=()) and states == [
        (array.dtype, array.tobytes()) for array in other.states
    ]


def test_every_flipped_bit_is_refused() -> None:
    """As damage, wherever it is, the version's included."""
    data = _one()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert _refused(bytes(flipped)) is Reason.SNAPSHOT_CORRUPT


def test_every_cut_is_refused() -> None:
    """And whatever has more at its end."""
    data = _one()
    for length in range(len(data)):
        assert _refused(data[:length]) is Reason.SNAPSHOT_CORRUPT
    assert _refused(data + b"\0") is Reason.SNAPSHOT_CORRUPT
    assert _refused(data + data) is Reason.SNAPSHOT_CORRUPT


@settings(max_examples=300)
@given(data=st.binary(max_size=400), has_magic=st.booleans())
def test_random_bytes_are_refused(data: bytes, has_magic: bool) -> None:
    """Whether or not they begin as a record does."""
    assert _refused(b"EDDYSESS" * has_magic + data) is Reason.SNAPSHOT_CORRUPT


@settings(max_examples=1500)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
def test_a_forged_record_does_no_harm(changes: list[tuple[int, bytes]], seed: int) -> None:
    """With a right checksum it is read or refused, and what is read is no larger than what came."""
    body = bytearray(batch([b"s" * 16], [4], [0], seed=seed).record(0)[:-4])
    for at, piece in changes:
        at %= len(body)
        body[at : at + len(piece)] = piece
    body[12:16] = struct.pack("<I", len(body) + 4)
    record: Record | None = None
    reason = Reason.SNAPSHOT_CORRUPT
    try:
        record = decode(_sealed(bytes(body)))
    except ClientError as refusal:
        reason = refusal.reason
    assert reason in (Reason.SNAPSHOT_CORRUPT, Reason.SNAPSHOT_VERSION)
    if record:
        assert sum(state.nbytes for state in record.states) <= len(body)
        assert sum(len(reply.data) for reply in record.replies) <= len(body)


@pytest.mark.parametrize(
    ("at", "value"),
    [(10, b"\x04"), (12, b"\x01\x01"), (20, bytes(4)), (64, b"\xff" * 8), (72, b"\xff" * 8), (108, b"\x01")],
    ids=["unknown flag", "another size", "no reply kept", "negative position", "no number", "reserved"],
)
def test_values_that_no_session_has_are_refused(at: int, value: bytes) -> None:
    """Even with a right checksum."""
    body = bytearray(_one()[:-4])
    body[at : at + len(value)] = value
    assert _refused(_sealed(bytes(body))) is Reason.SNAPSHOT_CORRUPT


def test_states_that_are_not_as_long_as_their_layout_are_refused() -> None:
    """One float too few, and one too many."""
    for count in (39, 41):
        wrong = replace(checkpoint(1), states=(np.zeros((1, count), "u1"),))
        assert _refused(encode(wrong).record(0)) is Reason.SNAPSHOT_CORRUPT


@pytest.mark.parametrize("rank", [2, 65, 255])
def test_a_state_of_any_shape_is_no_surprise(rank: int) -> None:
    """Shapes that no array has, or that claim more than came, are damage."""
    sizes = ([1 << 40] * 2) if rank == 2 else [1] * rank
    layout = struct.pack(f"<HBBH1s{rank}q", 1, 1, rank, 1, b"h", *sizes)
    forged = encode(replace(checkpoint(1), model=replace(MODEL, layout=layout), states=(np.zeros((1, 1), "<f4"),)))
    assert _refused(forged.record(0)) is Reason.SNAPSHOT_CORRUPT


def test_another_version_is_refused_with_both_numbers() -> None:
    """What came and what is read; only then does it count that the bytes are whole."""
    body = bytearray(_one()[:-4])
    body[8:10] = struct.pack("<H", VERSION + 1)
    with pytest.raises(ClientError) as caught:
        decode(_sealed(bytes(body)), "session.snapshot")
    assert caught.value.reason is Reason.SNAPSHOT_VERSION
    assert (caught.value.detail.received, caught.value.detail.expected) == ("format version 2", "version 1")
    assert caught.value.detail.field == "session.snapshot"


def _with_shape(shape: tuple[int, ...]) -> bytes:
    return layout_of((State("h", "n", np.dtype("<f4"), 1, shape, np.zeros(shape, np.float32), 4), STATES[1]))


@pytest.mark.parametrize(
    ("theirs", "is_adopted", "word"),
    [
        (replace(MODEL, name="gru"), True, "gru"),
        (replace(MODEL, digest="cd" * 32), False, "cdcdcd"),
        (replace(MODEL, layout=_with_shape((2, 5))), True, "h float32 [2, 5]"),
        (replace(MODEL, layout=layout_of(STATES[:1])), True, "count int64 []"),
    ],
    ids=["name", "digest", "shape", "number of states"],
)
def test_another_model_is_refused_with_what_differs(theirs: object, is_adopted: bool, word: str) -> None:
    """The error says what the record has and what the model wants."""
    with pytest.raises(ClientError) as caught:
        check_fits(theirs, MODEL, is_adopted=is_adopted)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.SNAPSHOT_MISMATCH
    assert word in caught.value.message


def test_the_same_states_fit() -> None:
    """The same file under another version's number, and another file of a version that is adopted."""
    check_fits(replace(MODEL, version="4", runtime="2.0", instruction_set="arm64"), MODEL)
    check_fits(replace(MODEL, version="4", digest="cd" * 32), MODEL, is_adopted=True)


def test_replies_go_back_into_a_ring() -> None:
    """They are found as before, the forgotten one included, and the oldest is the first to be replaced."""
    rings = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    start = int(rings.open_rings(1, 3)[0])
    replies = (
        StoredReply(2, 1, b"a" * 33),
        StoredReply(3, 4, b""),
        StoredReply(7, 2, b"x" * 24 + b"y" * 32 + b"zzzzz"),
    )
    assert rings.import_ring(start, 3, replies) == 0
    found = [rings.find(start, 3, position) for position in (2, 3, 7, 8)]
    assert found[0] is not None and (found[0].num_steps, found[0].outputs) == (1, (b"a" * 16, b"a" * 5))
    assert found[1] is not None and (found[1].num_steps, found[1].is_forgotten) == (4, True)
    assert found[2] is not None and (found[2].inputs, found[2].outputs) == ((b"x" * 24,), (b"y" * 32, b"zzzzz"))
    assert found[3] is None
    third = int(rings.open_rings(1, 5)[0])
    assert rings.import_ring(third, 5, replies) == 3, "the next one goes behind them"
    other = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    begin = int(other.open_rings(1, 2)[0])
    assert other.import_ring(begin, 2, replies) == 0, "a smaller ring keeps the last ones"
    assert [other.find(begin, 2, position) is None for position in (2, 3, 7)] == [True, False, False]
    exported = rings.export_rings(np.array([start]), np.array([3]))
    assert decode(encode(checkpoint(1, replies=exported)).record(0)).replies == replies


def test_a_ring_that_went_round_is_exported_by_position() -> None:
    """Its newest reply lies before older ones."""
    rings = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    start = int(rings.open_rings(1, 3)[0])
    for turn in range(5):
        rings.keep_one(start + turn % 3, turn, (bytes([turn]) * 12, b"y" * 16, b"last!"), 1)
    exported = rings.export_rings(np.array([start]), np.array([3]))
    replies = decode(encode(checkpoint(1, replies=exported)).record(0)).replies
    assert [(reply.position, reply.data[0]) for reply in replies] == [(2, 2), (3, 3), (4, 4)]


def test_a_reply_of_another_model_is_not_put_back() -> None:
    """Its bytes are not those of this model's ports; the ring stays empty."""
    rings = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    start = int(rings.open_rings(1, 2)[0])
    with pytest.raises(ClientError, match="position 3: got 32 bytes, expected 33 bytes"):
        rings.import_ring(start, 2, (StoredReply(2, 1, b"a" * 33), StoredReply(3, 1, b"b" * 32)))
    assert rings.find(start, 2, 2) is None
    assert rings.held_bytes == 0


def test_an_export_stays_as_it_was() -> None:
    """What is kept, compacted or forgotten afterwards does not reach it."""
    draw = np.random.default_rng(1)
    rings = ReplyStore(INPUTS, OUTPUTS, 33 * 8)
    starts, sizes = rings.open_rings(8, 1), np.ones(8, np.int64)
    parts = tuple(draw.bytes(8 * port.row_bytes(1)) for port in (*INPUTS, *OUTPUTS))
    rings.keep(starts, np.zeros(8, np.int64), parts, 1)
    exported = rings.export_rings(starts, sizes)
    for turn in range(1, 4):
        rings.keep(starts[:5], np.full(5, turn), tuple(draw.bytes(len(part) // 8 * 5) for part in parts), 1)
    assert rings.num_compactions
    rows = [b"".join(part[len(part) // 8 * row :][: len(part) // 8] for part in parts) for row in range(8)]
    assert exported.gather().tobytes() == b"".join(rows)


def test_the_instruction_set_is_told_by_its_kernels() -> None:
    """The machine, and of its extensions those that matter, in an order of ours."""
    assert describe("x86_64", "flags\t\t: fpu avx2 avx sse4_2 fma\nflags: avx512f") == "x86_64 sse4_2 avx fma avx2"
    assert describe("aarch64", "Features\t: fp asimd sve") == "aarch64 asimd sve"
    assert describe("riscv64", "") == "riscv64"
    assert instruction_set().split()[0]
