"""Values: which of them a port accepts.

Owns the checks of finiteness and range, and the error for what fails them. Must not know messages or sessions.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from eddy.service.errors import ClientError, Detail, Reason
from eddy.service.ports import Port, State

# About where numpy's machinery begins to be worth it.
_FEW_BYTES = 128


def is_acceptable(port: Port, raw: bytes) -> bool:
    """All values in `raw` are finite and in the port's range; False also where only a closer look can tell.

    A few values are checked as Python numbers: numpy's machinery takes longer than they do, and a stream of one
    session waits for it at every step.
    """
    values = np.frombuffer(raw, port.dtype)
    if len(raw) <= _FEW_BYTES and port.dtype.kind != "b":
        numbers: list[float] = values.tolist()
        if port.dtype.kind == "f" and not isfinite(sum(numbers)):  # Of finite float64 it may overflow: look closer.
            return False
        return (port.minimum is None or min(numbers) >= port.minimum) and (
            port.maximum is None or max(numbers) <= port.maximum
        )
    if port.dtype.kind == "f" and b"\0" in np.isfinite(values).tobytes():
        return False
    if port.dtype.kind == "b":
        return bool(values.view(np.uint8).max() <= 1)
    if port.minimum is not None and values.min() < port.minimum:
        return False
    return port.maximum is None or bool(values.max() <= port.maximum)


def bad_rows(port: Port | State, values: np.ndarray) -> np.ndarray:
    """Rows of `values` [B, ...] that are not acceptable, bool [B]."""
    flat = values.reshape(len(values), -1)
    if port.dtype.kind == "b":
        return np.asarray(flat.view(np.uint8).max(axis=1) > 1)
    bad = np.zeros(len(values), np.bool_)
    if port.dtype.kind == "f":
        bad |= ~np.isfinite(flat).all(axis=1)
    if port.minimum is not None:
        bad |= flat.min(axis=1) < port.minimum
    if port.maximum is not None:
        bad |= flat.max(axis=1) > port.maximum
    return bad


def value_error(port: Port | State, values: np.ndarray, where: str) -> ClientError:
    """Why `values` [T, ...], a row that is not acceptable, is refused; `where`: the field."""
    if port.dtype.kind == "f" and not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0].tolist()
        came = str(values[tuple(place)])
        at = f" at step {place[0]}" if place else ""
        return ClientError(
            Reason.NON_FINITE, f"{where}: {came}{at}, expected finite values", Detail(where, came, "finite values")
        )
    wanted = "0 or 1" if port.dtype.kind == "b" else f"{port.minimum:g} to {port.maximum:g}"
    if port.dtype.kind == "b":
        came = str(values.view(np.uint8).max())
    else:
        came = str(values.min() if values.min() < (port.minimum or 0) else values.max())
    return ClientError(Reason.OUT_OF_RANGE, f"{where}: got {came}, expected {wanted}", Detail(where, came, wanted))


def check_rows(port: Port | State, values: np.ndarray, where: str) -> None:
    """All of `values` [B, ...] is acceptable.

    Raises:
        ClientError: NON_FINITE or OUT_OF_RANGE, of the first row that is not.
    """
    bad = np.flatnonzero(bad_rows(port, values))
    if len(bad):
        raise value_error(port, values[int(bad[0])], f"{where}, row {int(bad[0])}")
