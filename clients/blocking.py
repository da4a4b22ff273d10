"""Sessions, batches and generations with blocking calls, as the synchronous client gives them.

Must add nothing to the asyncio ones: every call runs on the client's event loop and waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.batch import SessionBatch
from eddy.clients.generation import Completion, Generation
from eddy.clients.loop import LoopThread
from eddy.clients.pieces import Finished, KeptSession, Piece, Started
from eddy.clients.session import Session
from eddy.clients.tensors import Inputs, Outputs, RaggedOutputs
from eddy.v1 import contract_pb2


class _Block(ABC):
    """What is closed at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Ends it."""


class SyncSession(_Block):
    """As `Session`, with blocking calls; `session` is the asyncio one."""

    def __init__(self, loop: LoopThread, session: Session) -> None:
        self._loop = loop
        self.session = session

    @property
    def id(self) -> bytes:
        """As `Session.id`."""
        return self.session.id

    @property
    def resume_token(self) -> bytes:
        """As `Session.resume_token`."""
        return self.session.resume_token

    @property
    def model(self) -> str:
        """As `Session.model`."""
        return self.session.model

    @property
    def version(self) -> str:
        """As `Session.version`."""
        return self.session.version

    @property
    def max_in_flight(self) -> int:
        """As `Session.max_in_flight`."""
        return self.session.max_in_flight

    @property
    def epoch(self) -> int:
        """As `Session.epoch`."""
        return self.session.epoch

    @property
    def position(self) -> int:
        """As `Session.position`."""
        return self.session.position

    @property
    def vocabulary(self) -> contract_pb2.Vocabulary:
        """As `Session.vocabulary`."""
        return self.session.vocabulary

    @property
    def is_open(self) -> bool:
        """As `Session.is_open`."""
        return self.session.is_open

    def step(self, inputs: Inputs) -> np.ndarray:
        """As `Session.step`."""
        return self._loop.call(lambda: self.session.step(inputs))

    def step_outputs(self, inputs: Inputs) -> Outputs:
        """As `Session.step_outputs`."""
        return self._loop.call(lambda: self.session.step_outputs(inputs))

    def flush(self) -> np.ndarray:
        """As `Session.flush`."""
        return self._loop.call(self.session.flush)

    def flush_outputs(self) -> Outputs:
        """As `Session.flush_outputs`."""
        return self._loop.call(self.session.flush_outputs)

    def reset(self) -> None:
        """As `Session.reset`."""
        self._loop.call(self.session.reset)

    def close(self) -> None:
        """As `Session.close`."""
        self._loop.call(self.session.close)


class SyncBatch(_Block):
    """As `SessionBatch`, with blocking calls; `batch` is the asyncio one."""

    def __init__(self, loop: LoopThread, batch: SessionBatch) -> None:
        self._loop = loop
        self.batch = batch

    @property
    def model(self) -> str:
        """As `SessionBatch.model`."""
        return self.batch.model

    @property
    def version(self) -> str:
        """As `SessionBatch.version`."""
        return self.batch.version

    @property
    def ids(self) -> list[bytes]:
        """As `SessionBatch.ids`."""
        return self.batch.ids

    @property
    def resume_tokens(self) -> list[bytes]:
        """As `SessionBatch.resume_tokens`."""
        return self.batch.resume_tokens

    @property
    def handles(self) -> np.ndarray:
        """As `SessionBatch.handles`."""
        return self.batch.handles

    @property
    def positions(self) -> np.ndarray:
        """As `SessionBatch.positions`."""
        return self.batch.positions

    def __len__(self) -> int:
        return len(self.batch)

    def step(self, inputs: Inputs, rows: ArrayLike | None = None) -> np.ndarray:
        """As `SessionBatch.step`."""
        return self._loop.call(lambda: self.batch.step(inputs, rows))

    def step_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> Outputs:
        """As `SessionBatch.step_outputs`."""
        return self._loop.call(lambda: self.batch.step_outputs(inputs, rows))

    def step_ragged(self, inputs: Inputs, rows: ArrayLike | None = None) -> list[np.ndarray]:
        """As `SessionBatch.step_ragged`."""
        return self._loop.call(lambda: self.batch.step_ragged(inputs, rows))

    def step_ragged_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> RaggedOutputs:
        """As `SessionBatch.step_ragged_outputs`."""
        return self._loop.call(lambda: self.batch.step_ragged_outputs(inputs, rows))

    def flush(self, rows: ArrayLike | None = None) -> list[np.ndarray]:
        """As `SessionBatch.flush`."""
        return self._loop.call(lambda: self.batch.flush(rows))

    def flush_outputs(self, rows: ArrayLike | None = None) -> RaggedOutputs:
        """As `SessionBatch.flush_outputs`."""
        return self._loop.call(lambda: self.batch.flush_outputs(rows))

    def reset(self) -> None:
        """As `SessionBatch.reset`."""
        self._loop.call(self.batch.reset)

    def close(self) -> None:
        """As `SessionBatch.close`."""
        self._loop.call(self.batch.close)


class SyncGeneration:
    """As `Generation`, with blocking calls, to be used within `with`; `generation` is the asyncio one."""

    def __init__(self, loop: LoopThread, generation: Generation) -> None:
        self._loop = loop
        self.generation = generation

    def __enter__(self) -> Self:
        self._loop.call(self.generation.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call(lambda: self.generation.__aexit__(kind, value, trace))

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._loop.call(self._next)) is not None:
            yield piece

    async def _next(self) -> Piece | None:
        return await anext(self.generation, None)

    @property
    def started(self) -> Started:
        """As `Generation.started`."""
        return self.generation.started

    @property
    def finished(self) -> Finished | None:
        """As `Generation.finished`."""
        return self.generation.finished

    @property
    def session(self) -> KeptSession | Session:
        """As `Generation.session`."""
        return self.generation.session

    def read(self) -> Completion:
        """As `Generation.read`."""
        return self._loop.call(self.generation.read)

    def cancel(self) -> None:
        """As `Generation.cancel`."""
        self._loop.call(self._cancel)

    async def _cancel(self) -> None:
        self.generation.cancel()
