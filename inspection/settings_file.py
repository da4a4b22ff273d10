"""`model.toml`: the settings of a model, as its user writes them beside the model's file.

Owns the keys, their types, and the words of a refusal. Must not know graphs: whether a tensor of the name exists is
found out by whoever has the graph.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from eddy.inspection.errors import InspectionError
from eddy.inspection.external import read_plain_file
from eddy.inspection.settings import Settings

# A page of text; more is no settings file.
_MAX_BYTES = 1 << 20
# The samples of an hour: more is no context of a step.
_MAX_CONTEXT_STEPS = 1 << 28


def read_settings(path: Path) -> Settings:
    """The settings in a file.

    Raises:
        InspectionError: it cannot be read, is no TOML, or a key or value is wrong; the message names file and key.
    """
    raw = read_plain_file(path, _MAX_BYTES)
    try:
        return parse_settings(raw.decode())
    except UnicodeDecodeError as error:
        raise InspectionError(f"{path.name} is not UTF-8 text: {error}") from error
    except InspectionError as error:
        raise InspectionError(f"{path.name}: {error}") from error


def parse_settings(text: str) -> Settings:
    """The settings in `text`; what is not said has its default.

    Raises:
        InspectionError: see `read_settings`.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InspectionError(f"not readable as TOML: {error}") from error
    if unknown := sorted(values.keys() - _READERS.keys()):
        close = get_close_matches(unknown[0], _READERS, 1)
        hint = f", did you mean {close[0]}?" if close else f", expected one of {', '.join(_READERS)}"
        raise InspectionError(f"unknown key {unknown[0]!r}{hint}")
    return Settings(**{key: _READERS[key](key, value) for key, value in values.items()})


def _wrong(key: str, value: object, expected: str) -> InspectionError:
    return InspectionError(f"{key}: got {str(value)[:200]!r}, expected {expected}")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(key, value, "a string")
    return value


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(key, value, "a tensor's name")
    return value


def _seconds(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _wrong(key, value, "a positive number of seconds")
    return float(value)


def _versions(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise _wrong(key, value, 'a list of versions as strings, or ["*"] for all')
    return tuple(value)


def _steps(key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value <= _MAX_CONTEXT_STEPS:
        raise _wrong(key, value, f"a whole number, 1 to {_MAX_CONTEXT_STEPS}")
    return value


def _axes(key: str, value: Any) -> tuple[str | int, ...]:
    is_right = isinstance(value, list) and all(
        axis in ("batch", "time") if isinstance(axis, str) else type(axis) is int and axis > 0 for axis in value
    )
    if not is_right or value.count("batch") > 1 or value.count("time") > 1:
        raise _wrong(key, value, 'a list of "batch", "time" (each once at most) and positive sizes, an axis each')
    return tuple(value)


def _constant(key: str, value: Any) -> np.ndarray:
    expected = "a number, true, false, or lists of them of equal length"
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise _wrong(key, value, expected) from error
    if array.dtype.kind not in "bif" or not array.size:
        raise _wrong(key, value, expected)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _wrong(key, value, "finite numbers")
    return array


def _table(read: Callable[[str, Any], Any]) -> Callable[[str, Any], Mapping[str, Any]]:
    """The reader of a table of tensors' names, whose values `read` reads."""

    def table(key: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(key, value, f"a table: [{key}]")
        return {name: read(f"{key}.{name[:200]}", each) for name, each in value.items()}

    return table


# Every key of the file, in the order of the documents.
_READERS: dict[str, Callable[[str, Any], Any]] = {
    "description": _text,
    "idle_timeout_seconds": _seconds,
    "adopts": _versions,
    "states": _table(_name),
    "context_steps": _table(_steps),
    "constants": _table(_constant),
    "names": _table(_name),
    "axes": _table(_axes),
}
KEYS = tuple(_READERS)
