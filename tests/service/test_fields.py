"""Fields are counted before a message is parsed, and what is counted is what the parser would make objects of."""

from contextlib import suppress

import pytest
import raw
from hypothesis import given
from hypothesis import strategies as st

from eddy.service.errors import ClientError, Reason
from eddy.service.fields import check_fields, leading_integer
from eddy.v1 import generation_pb2, inference_pb2

STREAM = inference_pb2.StreamRequest.DESCRIPTOR


def _step(payload: bytes) -> bytes:
    return b"\x12" + raw.varint(len(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        _step(b"\x22\x00" * 20_000),
        b"\x12\x00" * 20_000,
        b"\x08\x01" * 20_000,
        b"\x0b\x0c" * 20_000,
        b"\x4d1234" * 20_000,
        b"\x4912345678" * 20_000,
        _step(b"\x22\x06\x0a\x00\x10\x00\x18\x00" * 20_000),
    ],
)
def test_messages_of_too_many_fields_are_refused(data: bytes) -> None:
    """Whatever the fields are: empty messages, numbers, groups, within others or not."""
    with pytest.raises(ClientError) as caught:
        check_fields(data, STREAM)
    assert caught.value.reason is Reason.MALFORMED_MESSAGE
    assert "4096" in caught.value.detail.expected


def test_a_shape_of_many_axes_is_refused() -> None:
    """It would become a list of as many numbers, and a sentence that quotes them."""
    shape = b"\x1a" + raw.varint(50_000) + b"\x01" * 50_000
    with pytest.raises(ClientError) as caught:
        check_fields(_step(b"\x22" + raw.varint(len(shape)) + shape), STREAM)
    assert caught.value.reason is Reason.INVALID_SHAPE


def test_large_messages_of_few_fields_are_not_refused() -> None:
    """Megabytes of data, of token ids and of text are what such messages are for."""
    tensor = inference_pb2.Tensor(name="x", dtype=1, shape=[64, 1, 4096], data=bytes(1 << 20))
    step = inference_pb2.StepChunk(handles=bytes(512), positions=bytes(512), num_steps=1, inputs=[tensor] * 8)
    check_fields(inference_pb2.StreamRequest(tag=1 << 63, step=step).SerializeToString(), STREAM)
    ids = generation_pb2.TokenIds(ids=range(200_000))
    request = generation_pb2.GenerateRequest(tokens=ids, stop=["a"] * 16)
    check_fields(request.SerializeToString(), generation_pb2.GenerateRequest.DESCRIPTOR)


@given(data=st.binary(max_size=300), times=st.integers(1, 200))
def test_bytes_that_do_not_parse_are_left_to_the_parser(data: bytes, times: int) -> None:
    """Nothing but a refusal with a reason ever comes out, whatever the bytes are."""
    with suppress(ClientError):
        check_fields(data * times + bytes(16 << 10), STREAM)


@given(tag=st.integers(1, (1 << 64) - 1), rest=st.binary(max_size=20))
def test_the_tag_that_a_message_begins_with(tag: int, rest: bytes) -> None:
    """It is found without parsing; bytes that begin otherwise have none."""
    assert leading_integer(inference_pb2.StreamRequest(tag=tag).SerializeToString() + rest, 1) == tag
    assert leading_integer(b"\x10" + rest, 1) == 0
    assert leading_integer(b"\x08" + b"\xff" * 11, 1) == 0
    assert leading_integer(b"\x08", 1) == 0
