"""Layouts of step messages: what is cut out of the bytes is what the parser finds, or nothing is cut."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from graphs import family
from hypothesis import given
from hypothesis import strategies as st
from loopback import chunk, configure, serve, write_model

from eddy.service.chunk import ChunkResult
from eddy.service.codec import StepResponses
from eddy.service.contract import read_contract
from eddy.service.layout import Layouts, StepLayout
from eddy.service.ports import Port
from eddy.v1 import errors_pb2, inference_pb2

MODEL = 3
TAGS = st.sampled_from([0, 1, 127, 128, 300, 16383, 16384, 1 << 32, (1 << 64) - 1])


def _port(name: str, size: int) -> Port:
    return Port(name, np.dtype(np.uint8), 1, (size,), size, None, None)


def _message(
    tag: int, num_rows: int, ports: Sequence[Port], seed: int, timeout: int = 0
) -> inference_pb2.StreamRequest:
    """A step of one time step; the order of the inputs is the ports' reversed."""
    random = np.random.default_rng(seed)
    request = inference_pb2.StreamRequest(tag=tag)
    step = request.step
    step.handles, step.positions = random.bytes(8 * num_rows), random.bytes(8 * num_rows)
    step.num_steps, step.timeout_milliseconds = 1, timeout
    for port in reversed(ports):
        step.inputs.add(
            name=port.name, dtype=1, shape=(num_rows, 1, *port.shape), data=random.bytes(num_rows * port.step_bytes)
        )
    return request


def _learned(request: inference_pb2.StreamRequest, ports: Sequence[Port]) -> Layouts:
    layouts = Layouts()
    data = request.SerializeToString()
    for _ in range(2):
        layouts.learn(data, request.step, MODEL, ports)
    return layouts


def _assert_agrees(layout: StepLayout, data: bytes, names: Sequence[str]) -> None:
    """What is cut out of `data` is what the parser finds in it."""
    request = inference_pb2.StreamRequest.FromString(data)
    step = request.step
    assert layout.read_tag(data) == request.tag
    assert (data[slice(*layout.handles)], data[slice(*layout.positions)]) == (step.handles, step.positions)
    assert (layout.num_steps, layout.timeout_milliseconds) == (step.num_steps, step.timeout_milliseconds)
    found = {tensor.name: tensor.data for tensor in step.inputs}
    assert [data[slice(*window)] for window in layout.inputs] == [found[name] for name in names]


@given(
    tag=TAGS,
    other_tag=TAGS,
    num_rows=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    timeout=st.sampled_from([0, 1, 4000]),
)
def test_columns_are_cut_where_the_parser_finds_them(
    tag: int, other_tag: int, num_rows: int, sizes: list[int], timeout: int
) -> None:
    """A message with other tag, handles, positions and data has the layout exactly when its length is the same."""
    ports = [_port(f"x{number}", size) for number, size in enumerate(sizes)]
    first = _message(tag, num_rows, ports, 1, timeout)
    layouts = _learned(first, ports)
    second = _message(other_tag, num_rows, ports, 2, timeout).SerializeToString()
    layout = layouts.find(second)
    assert (layout is not None) == (len(second) == len(first.SerializeToString()))
    if layout is not None:
        assert layout.models == {MODEL}
        _assert_agrees(layout, second, [port.name for port in ports])


@given(
    tag=TAGS,
    num_rows=st.integers(1, 3),
    size=st.integers(1, 9),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=1)), min_size=1, max_size=4),
)
def test_a_damaged_message_that_fits_says_what_the_parser_says(
    tag: int, num_rows: int, size: int, damage: list[tuple[float, bytes]]
) -> None:
    """Whatever bytes are changed: either the layout no longer fits, or cutting and parsing agree."""
    ports = [_port("x", size)]
    request = _message(tag, num_rows, ports, 1)
    layouts = _learned(request, ports)
    data = bytearray(request.SerializeToString())
    for place, value in damage:
        at = min(int(place * len(data)), len(data) - 1)
        data[at : at + 1] = value
    layout = layouts.find(bytes(data))
    if layout is not None:
        _assert_agrees(layout, bytes(data), ["x"])


def test_the_tag_of_a_message_that_fits_is_as_long() -> None:
    """A tag whose first byte ends it early shifts what follows: the layout does not fit."""
    ports = [_port("x", 4)]
    request = _message(300, 1, ports, 1)
    layouts = _learned(request, ports)
    data = request.SerializeToString()
    assert layouts.find(data) is not None
    assert layouts.find(data[:1] + b"\x05" + data[2:]) is None
    assert layouts.find(data[:2] + b"\x85" + data[3:]) is None


def test_messages_written_unusually_are_not_learned() -> None:
    """A field twice, fields we do not know, a step in two parts: such messages are parsed every time."""
    ports = [_port("x", 4)]
    plain = _message(5, 1, ports, 1)
    data = plain.SerializeToString()
    step = plain.step.SerializeToString()
    twice = inference_pb2.StreamRequest(tag=5).SerializeToString()
    twice_handles = step + b"\x0a\x08" + bytes(8)
    unknown_inside = step + b"\x7a\x01a"
    group_inside = step + b"\x7b\x7c"
    for unusual in (
        data + twice,
        data + b"\x12\x00",
        data + b"\x7a\x01a",
        b"\x12" + bytes([len(twice_handles)]) + twice_handles,
        b"\x12" + bytes([len(unknown_inside)]) + unknown_inside,
        b"\x12" + bytes([len(group_inside)]) + group_inside,
    ):
        request = inference_pb2.StreamRequest.FromString(unusual)
        layouts = Layouts()
        for _ in range(3):
            layouts.learn(unusual, request.step, MODEL, ports)
        assert layouts.find(unusual) is None, unusual


def test_a_field_of_another_kind_is_no_such_field() -> None:
    """Numbers where bytes belong and bytes where numbers do: the parser skips them, and no layout is learned."""
    ports = [_port("x", 4)]
    for number, place in ((1, 0), (2, 0), (1, 1), (2, 1), (4, 1), (3, 1), (5, 1), (1, 2), (4, 2), (2, 2)):
        request = _message(0, 1, ports, 1)
        is_bytes = {0: number == 2, 1: number in (1, 2, 4), 2: number in (1, 3, 4)}[place]
        stray = bytes((number << 3, 0x7F)) if is_bytes else bytes((number << 3 | 2, 2, 0xFF, 0xFF))
        step = request.step.SerializeToString()
        if place == 2:
            tensor = request.step.inputs[0].SerializeToString() + stray
            request.step.ClearField("inputs")
            step = request.step.SerializeToString() + b"\x22" + bytes((len(tensor),)) + tensor
        if place == 1:
            step += stray
        data = b"\x12" + bytes((len(step),)) + step + (stray if place == 0 else b"")
        parsed = inference_pb2.StreamRequest.FromString(data)
        assert parsed.step.inputs[0].data, "the stray field is skipped"
        layouts = Layouts()
        for _ in range(3):
            layouts.learn(data, parsed.step, MODEL, ports)
        assert layouts.find(data) is None, (number, place)


def test_what_is_learned_is_bounded() -> None:
    """Clients choose the lengths: neither many lengths nor many layouts of one length stay."""
    layouts = Layouts()
    for name in "abcdefgh":
        ports = [_port(name, 4)]
        request = _message(5, 1, ports, 1)
        for _ in range(2):
            layouts.learn(request.SerializeToString(), request.step, MODEL, ports)
    found = [layouts.find(_message(5, 1, [_port(name, 4)], 2).SerializeToString()) for name in "abcdefgh"]
    assert [layout is not None for layout in found] == [False] * 4 + [True] * 4
    for size in range(5, 1100):
        request = _message(5, 1, [_port("x", size)], 1)
        for _ in range(2):
            layouts.learn(request.SerializeToString(), request.step, MODEL, [_port("x", size)])
    assert layouts.find(_message(5, 1, [_port("h", 4)], 2).SerializeToString()) is None


def test_a_layout_of_one_model_is_checked_again_for_another(tmp_path: Path) -> None:
    """A message that one model's checks have passed is refused by a model with other inputs, again and again."""
    write_model(tmp_path, "history")
    write_model(tmp_path, "lstm")

    async def check() -> None:
        history, lstm = family("history"), family("lstm")
        async with serve(configure(tmp_path)) as running, running.stream() as stream:
            mine, others = await stream.handles("history"), await stream.handles("lstm")
            for position in range(4):
                digit = [np.full((1, 1, *port.shape), 1) for port in history.inputs]
                await stream.step(history, mine, [position], *digit)
                wrong = chunk(history, others, [position], *digit)
                refused = await stream.refusal(step=wrong)
                assert refused.reason != errors_pb2.ERROR_REASON_UNSPECIFIED
                assert refused.field.startswith("inputs"), refused
                right = [np.zeros((1, 1, *port.shape)) for port in lstm.inputs]
                await stream.step(lstm, others, [position], *right)

    asyncio.run(check())


@given(tag=TAGS, value=st.integers(0, 1000))
def test_answers_are_what_the_parser_reads(tag: int, value: int) -> None:
    """An answer joined from its parts parses to tag and outputs."""
    model = family("history")
    contract = read_contract(model.model())
    data = np.full((1, 1, *model.outputs[0].shape), value, model.outputs[0].dtype).tobytes()
    encoded = StepResponses().encode(contract, tag, 1, 1, ChunkResult([data]))
    response = inference_pb2.StreamResponse.FromString(encoded)
    assert response.tag == tag
    assert [tensor.data for tensor in response.step.outputs] == [data]
    assert response.step.outputs[0].name == model.outputs[0].name
