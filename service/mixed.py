"""Messages whose sessions were of one model once and are of several now, because some were handed over.

Owns the cutting of such a chunk into one a model, and the putting together of what becomes of them. Clients are told
nothing of a handover, and go on sending those sessions together. Must not know the wire.

Dimension key: B rows of the message, n rows of a part.
"""

from __future__ import annotations

import numpy as np

from eddy.service.adoption import have_same_ports
from eddy.service.chunk import Chunk, ChunkResult
from eddy.service.errors import EddyError
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.sessions import MODEL_BITS, MODEL_MASK


def submit_apart(host: Host, model: ServedModel, chunk: Chunk, stream: int) -> bool:
    """Queues the rows of each model by themselves; False, and nothing is queued, where there is one model only.

    Rows of models with other ports stay with those of `model`, the message's first, and are refused there. What is
    refused of one model fails those rows alone.
    """
    table, handles = host.table, np.frombuffer(chunk.handles, "<u8")
    rows = table.rows_of(handles)
    owners = table.route[rows]
    is_own = (table.handle[rows] == handles) & (owners >> MODEL_BITS == stream)
    models = np.where(is_own, owners & MODEL_MASK, model.index)
    served = [host.catalog.served[index] for index in np.unique(models[models != model.index]).tolist()]
    others = [each for each in served if have_same_ports(each.contract, model.contract)]
    if not others:
        return False
    models[~np.isin(models, [each.index for each in others])] = model.index
    places = [np.flatnonzero(models == each.index) for each in (model, *others)]
    parts = _Parts(chunk, places)
    for number, (each, mine) in enumerate(zip((model, *others), places, strict=True)):
        part = Chunk(
            _cut(chunk.handles, chunk.num_rows, mine),
            _cut(chunk.positions, chunk.num_rows, mine),
            chunk.num_steps,
            tuple([_cut(raw, chunk.num_rows, mine) for raw in chunk.inputs]),
            host.route(stream, each),
            parts,
            number,
            each.contract,
            chunk.arrival,
            chunk.deadline,
        )
        try:
            host.submit(each, part)
        except EddyError as error:
            part.fail(error)
    return True


class _Parts:
    """The parts of a message (`chunk.Source`); `places`: which rows of it each has, int64 [n]."""

    # A stream that has ended owns its sessions no more, which their rows are refused for.
    is_gone = False

    def __init__(self, whole: Chunk, places: list[np.ndarray]) -> None:
        self._whole = whole
        self._places = places
        # Changed only by `deliver`.
        self._results: dict[int, ChunkResult] = {}

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes a part's result; with the last one the message is answered."""
        self._results[chunk.tag] = result
        if len(self._results) == len(self._places):
            self._whole.reply(self._together())

    def _together(self) -> ChunkResult:
        found = [(self._places[number], result) for number, result in self._results.items()]
        done = [(places, result) for places, result in found if result.failure is None]
        if not done:
            return found[0][1]
        outputs = []
        for number, first in enumerate(done[0][1].outputs):
            whole = np.zeros((self._whole.num_rows, len(first) // len(done[0][0])), np.uint8)
            for places, result in done:
                whole[places] = np.frombuffer(result.outputs[number], np.uint8).reshape(len(places), -1)
            outputs.append(whole.tobytes())
        errors: dict[int, EddyError] = {}
        replayed: list[int] = []
        for places, result in found:
            if result.failure is not None:
                errors |= dict.fromkeys(places.tolist(), result.failure)
            errors |= {places.item(row): error for row, error in result.errors.items()}
            replayed += [places.item(row) for row in result.replayed]
        return ChunkResult(outputs, errors, sorted(replayed))


def _cut(raw: bytes, num_rows: int, places: np.ndarray) -> bytes:
    """Some rows of a column [B, ...] raw."""
    return bytes(np.frombuffer(raw, np.uint8).reshape(num_rows, -1)[places].tobytes())
