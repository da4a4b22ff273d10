"""Fields: how many a message has, before it is parsed.

Owns a walk over a message's bytes. A parser makes an object of every field, so that bytes which say "an empty tensor"
eight million times become half a gigabyte and half a second in which nobody else is served. Messages of ours have a
few dozen fields. Must not know what the fields mean beyond what their descriptors say.
"""

from __future__ import annotations

from typing import Any

from eddy.service.errors import ClientError, Detail, Reason

# Kinds of fields, https://protobuf.dev/programming-guides/encoding/.
VARINT, FIXED64, BYTES, _BEGIN_GROUP, _END_GROUP, FIXED32 = range(6)
_MAX_FIELDS = 4096
# Of a tensor's shape, written packed.
_MAX_SHAPE_BYTES = 640
_MAX_INTEGER = (1 << 64) - 1
# Parsing less than this takes no time worth saving.
_FEW_BYTES = 16 << 10


def check_fields(data: bytes, message: Any) -> None:
    """`data` has no more fields than a message of ours may have. Says nothing of bytes that do not parse.

    Args:
        message: the descriptor of what `data` should be.

    Raises:
        ClientError: MALFORMED_MESSAGE.
    """
    if len(data) <= _FEW_BYTES:
        return
    try:
        _walk(data, 0, len(data), message, _MAX_FIELDS)
    except (IndexError, NotAMessageError):  # The parser will say so.
        return


def leading_integer(data: bytes, number: int) -> int:
    """The value of an integer field `number`, if `data` begins with that; otherwise 0."""
    if data[:1] != bytes((number << 3,)):
        return 0
    try:
        return read_varint(data, 1)[0] & _MAX_INTEGER
    except (IndexError, NotAMessageError):
        return 0


class NotAMessageError(Exception):
    """The bytes do not parse."""


def _walk(data: bytes, at: int, end: int, message: Any, left: int) -> int:
    """How many of `left` fields are left after those in `data[at:end]`."""
    while at < end:
        if not left:
            expected = f"at most {_MAX_FIELDS} fields"
            raise ClientError(
                Reason.MALFORMED_MESSAGE,
                f"the message has more fields than any {message.full_name} needs: {expected}",
                Detail(received=f"more than {_MAX_FIELDS} fields", expected=expected),
            )
        left -= 1
        key, at = read_varint(data, at)
        kind = key & 7
        if kind == VARINT:
            at = read_varint(data, at)[1]
        elif kind == FIXED64:
            at += 8
        elif kind == FIXED32:
            at += 4
        elif kind == BYTES:
            size, at = read_varint(data, at)
            if size > end - at:
                raise NotAMessageError
            field = message.fields_by_number.get(key >> 3)
            if field is not None and field.message_type is not None:
                left = _walk(data, at, at + size, field.message_type, left)
            elif field is not None and field.name == "shape" and size > _MAX_SHAPE_BYTES:
                expected = f"at most {_MAX_SHAPE_BYTES} bytes"
                raise ClientError(
                    Reason.INVALID_SHAPE,
                    f"inputs.shape: got {size} bytes, expected {expected}",
                    Detail("inputs.shape", f"{size} bytes", expected),
                )
            at += size
        elif kind not in (_BEGIN_GROUP, _END_GROUP):  # A group's fields are counted as if they were the message's.
            raise NotAMessageError
    return left


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends; IndexError or `NotAMessageError` where none does."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    raise NotAMessageError
