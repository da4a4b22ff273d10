"""A client process of a crash test: `worker.py SPEC` steps sessions until it is told to finish.

Owns the use of the client library: what a user would write, without a word about connections or crashes. It says on
standard output what was answered, a line of JSON each; what it cannot explain ends it with 1 and a line "finding".
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

import numpy as np  # noqa: E402  after the path
from journal import Journal  # noqa: E402
from workload import Call, Kind, Workload, call_of, generator, model_family, num_calls, workloads  # noqa: E402

from eddy import Client  # noqa: E402
from eddy.clients.errors import Disconnected, Fenced, OutOfOrder, ServerBusy  # noqa: E402

T = TypeVar("T")
_THINK = 1 << 20  # A place of random numbers beyond all calls.
_MOVE_SHARE = 0.2


@dataclass(frozen=True)
class Spec:
    """What a client process is told.

    Attributes:
        number: its own; think_seconds: between two calls of a session, on average; patience_seconds: what no call may
            take, whatever happens to servers and connections.
    """

    seed: int
    number: int
    target: str
    journal: str
    is_small: bool
    think_seconds: float
    patience_seconds: float


class Finding(Exception):
    """Something that must not happen did."""


class Worker:
    """All workloads of one process."""

    def __init__(self, spec: Spec, client: Client, rival: Client) -> None:
        self._spec = spec
        self._clients = (client, rival)
        self._journal = Journal(Path(spec.journal))
        # Changed on the event loop only. Sessions that were reset at the end of a life, by workload.
        self._kept: dict[int, Any] = {}
        self.stop = asyncio.Event()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Until told to stop; then ends the lives where they are."""
        plans = workloads(self._spec.number, is_small=self._spec.is_small)
        uses = {
            Kind.SINGLE: self._single,
            Kind.PIPELINED: self._pipelined,
            Kind.BATCH: self._batch,
            Kind.RIVALS: self._rivals,
            Kind.TEXT: self._text,
            Kind.MOVED: self._moved,
        }
        try:
            async with asyncio.TaskGroup() as group:
                for workload in plans:
                    group.create_task(self._lives(workload, uses[workload.kind]))
        finally:
            self._journal.close()

    async def _lives(self, workload: Workload, use: Callable[[Life], Awaitable[None]]) -> None:
        model = model_family(workload.model)
        for number in itertools.count():
            if self.stop.is_set():
                return
            life = Life(self._spec, workload, number, model)
            try:
                await use(life)
            except Exception as error:
                where = f"client {self._spec.number}, {workload}, life {number}, position {life.position}"
                raise Finding(f"{where}: {type(error).__name__}: {error}") from error
            self.counts["lives"] += 1

    # Kinds of sessions

    async def _single(self, life: Life) -> None:
        session = await self._open(lambda: self._clients[0].open(life.workload.model))
        while not self._is_over(life):
            call = life.next()
            outputs = await self._bound(session.flush() if call.is_end else session.step(call.inputs[0][0]))
            self._note(life, call, [[outputs]])
            await self._think(life)
        await self._close(session)

    async def _pipelined(self, life: Life) -> None:
        depth = life.workload.max_in_flight
        session = await self._open(lambda: self._clients[0].open(life.workload.model, max_in_flight=depth))
        under_way: deque[tuple[int, int, Call, asyncio.Task[np.ndarray]]] = deque()
        while not self._is_over(life) or under_way:
            while len(under_way) < depth and not self._is_over(life):
                number, position, call = life.number_of_calls, life.position, life.next()
                step = session.flush() if call.is_end else session.step(call.inputs[0][0])
                under_way.append((number, position, call, asyncio.create_task(self._bound(step))))
                life.moved(call)
            number, position, call, task = under_way.popleft()
            outputs = await task
            self._write(life, number, position, call, [[outputs]])
            await self._think(life)
        await self._close(session)

    async def _batch(self, life: Life) -> None:
        batch = await self._open(lambda: self._clients[0].open_batch(life.workload.model, life.workload.rows))
        while not self._is_over(life):
            call = life.next()
            outputs = await self._bound(batch.flush() if call.is_end else batch.step_ragged(call.inputs[0]))
            self._note(life, call, [outputs])
            await self._think(life)
        await self._close(batch)

    async def _rivals(self, life: Life) -> None:
        """Two clients of one session: whoever attaches last has it, and the other is fenced."""
        opened = await self._open(lambda: self._clients[0].open(life.workload.model))
        writers: list[Any] = [opened, None]
        dice = life.random(_THINK + 1)
        while not self._is_over(life):
            who = int(dice.random() < 0.5) if dice.random() < 0.2 else life.holder
            if writers[who] is None or life.is_fenced[who]:
                writers[who] = await self._open(lambda who=who: self._attach(who, opened))  # type: ignore[misc]
                life.go_to(writers[who].position)
                life.is_fenced = [who != 0, who != 1]
                life.holder = who
            call = life.next()
            try:
                outputs = await self._bound(writers[who].step(call.inputs[0][0]))
            except (Fenced, OutOfOrder) as error:
                self.counts[type(error).__name__.lower()] += 1
                life.is_fenced[who] = True
                continue
            self._note(life, call, [[outputs]])
            await self._think(life)
            # A fenced writer that tries all the same: what it sends is what the session gets there anyhow.
            other = writers[1 - who]
            if other is not None and dice.random() < 0.05:
                with contextlib.suppress(Fenced, OutOfOrder):
                    await self._bound(other.step(life.at(other.position).inputs[0][0]))
                    life.is_fenced[who] = True
                self.counts["fenced tries"] += 1
        await self._close(writers[life.holder])

    async def _moved(self, life: Life) -> None:
        """A session that others go on for: copies of it, by way of the server or of bytes; the next life is a reset."""
        session = self._kept.pop(life.workload.number, None)
        if session is None:
            session = await self._open(lambda: self._clients[0].open(life.workload.model))
        dice = life.random(_THINK + 1)
        while not self._is_over(life):
            origin = None
            if dice.random() < _MOVE_SHARE:
                origin, session = session, await self._copy(session, life.workload.model, dice)
                if session.position != life.position:
                    raise Finding(f"a copy stands at {session.position}")
            call = life.next()
            outputs = await self._bound(session.step(call.inputs[0][0]))
            if origin is not None:  # Which goes on, too.
                twin = await self._bound(origin.step(call.inputs[0][0]))
                if _bytes(twin) != _bytes(outputs):
                    raise Finding("a session and its copy go on in other ways")
                await self._close(origin)
            self._note(life, call, [[outputs]])
            await self._think(life)
        if self.stop.is_set():
            await self._close(session)
        else:
            await self._open(lambda: self._bound(session.reset()))
            self._kept[life.workload.number] = session

    async def _copy(self, session: Any, model: str, dice: np.random.Generator) -> Any:
        client = self._clients[0]
        # Integers of any value are not taken from bytes.
        if model == "history" or dice.random() < 0.5:
            self.counts["forks"] += 1
            return await self._open(lambda: client.fork(session))
        self.counts["snapshots"] += 1
        data = await self._open(lambda: client.snapshot(session))
        return await self._open(lambda: client.restore(data))

    async def _attach(self, who: int, opened: Any) -> Any:
        return await self._clients[who].attach(opened.id, opened.resume_token)

    async def _text(self, life: Life) -> None:
        """A text, drawn by the server: its seed decides it."""
        dice = life.random(0)
        prompt = [int(token) for token in dice.integers(1, 90, 8)]
        options: Any = {"max_tokens": life.workload.max_steps, "seed": int(dice.integers(1 << 30)), "temperature": 1.0}
        while True:
            completion = await self._open(lambda: self._clients[0].complete(life.workload.model, prompt, **options))
            if str(completion.finished.reason) != "draining":
                break
            self.counts["texts that a drain cut short"] += 1
        tokens = np.array([token.id for token in completion.tokens], np.int64)
        self._journal.write((life.workload.number, life.number, 0), 0, [[tokens]])
        self._tell(len(tokens))
        await self._think(life)

    # Parts of all

    def _is_over(self, life: Life) -> bool:
        return self.stop.is_set() or life.is_over

    async def _bound(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout(self._spec.patience_seconds):
            return await work

    async def _open(self, begin: Callable[[], Awaitable[T]]) -> T:
        """Openings have no session yet that could be gone on with, so they are asked for again."""
        async with asyncio.timeout(self._spec.patience_seconds):
            while True:
                try:
                    return await begin()
                except (Disconnected, ServerBusy):
                    self.counts["opened again"] += 1
                    await asyncio.sleep(0.05)

    async def _close(self, session: Any) -> None:
        with contextlib.suppress(Disconnected, ServerBusy, Fenced):
            await self._bound(session.close())

    async def _think(self, life: Life) -> None:
        await asyncio.sleep(life.think.exponential(self._spec.think_seconds))

    def _note(self, life: Life, call: Call, outputs: list[list[np.ndarray]]) -> None:
        self._write(life, life.number_of_calls - 1, life.position, call, outputs)
        life.moved(call)

    def _write(self, life: Life, number: int, position: int, call: Call, outputs: list[list[np.ndarray]]) -> None:
        self._journal.write((life.workload.number, life.number, number), position, outputs)
        self._tell(life.workload.rows * call.num_positions)

    def _tell(self, num_steps: int) -> None:
        self.counts["calls"] += 1
        self.counts["steps"] += num_steps
        tell({"calls": self.counts["calls"], "steps": self.counts["steps"]})


class Life:
    """One session, or one batch of them, from opening to end."""

    def __init__(self, spec: Spec, workload: Workload, number: int, model: Any) -> None:
        self.workload = workload
        self.number = number
        self.position = 0
        self.number_of_calls = 0
        self.holder = 0
        self.is_fenced = [False, False]
        self._spec = spec
        self._model = model
        self._starts = [0]
        self._num_calls = num_calls(spec.seed, spec.number, workload, number)
        self.think = self.random(_THINK)

    @property
    def is_over(self) -> bool:
        """All calls were made."""
        return self.number_of_calls >= self._num_calls

    def random(self, place: int) -> np.random.Generator:
        """Random numbers of this life."""
        return generator(self._spec.seed, self._spec.number, self.workload.number, self.number, place)

    def next(self) -> Call:
        """The next call."""
        call = self._call(self.number_of_calls)
        self.number_of_calls += 1
        return call

    def moved(self, call: Call) -> None:
        """The session stands behind that call."""
        self.position += call.num_positions

    def at(self, position: int) -> Call:
        """The call that begins at `position`, which must be between two calls."""
        return self._call(self._number_at(position))

    def go_to(self, position: int) -> None:
        """The session stands at `position`, which must be between two calls."""
        self.position, self.number_of_calls = position, self._number_at(position)

    def _number_at(self, position: int) -> int:
        while self._starts[-1] < position:
            self._starts.append(self._starts[-1] + self._call(len(self._starts) - 1).num_positions)
        if position not in self._starts:
            raise Finding(f"the session stands at {position}, within a call: {self._starts[-3:]}")
        return self._starts.index(position)

    def _call(self, number: int) -> Call:
        return call_of(self._model, self._spec.seed, self._spec.number, self.workload, self.number, number)


def _bytes(outputs: Any) -> list[bytes]:
    return [np.asarray(values).tobytes() for values in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def tell(event: dict[str, Any]) -> None:
    """A line for whoever started this."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def _main(spec: Spec) -> int:
    async with Client(spec.target) as client, Client(spec.target) as rival:
        worker = Worker(spec, client, rival)

        def told() -> None:
            os.read(sys.stdin.fileno(), 1024)  # A word, or the end of whoever started this.
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            worker.stop.set()

        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), told)
        try:
            await worker.run()
        except ExceptionGroup as group:
            findings = [str(error) for error in group.exceptions]
            tell({"findings": findings, "trace": "".join(traceback.format_exception(group))[-8000:]})
            return 1
        tell({"counts": dict(worker.counts)})
        return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(Spec(**json.loads(sys.argv[1])))))
