"""A run of a crash test: servers under load that are killed again and again, and what must hold in the end.

Owns the order of a run: what is killed when, and the report. A kill waits for something that clients or the store do
(so many answers, a write of the store), not for an hour: the seed decides what, the machine how long it takes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from client_process import PATIENCE_SECONDS, ClientProcess
from journal import read
from judge import Judgement, judge
from loopback import configure, serve
from processes import RedisProcess, ServerProcess, StoreWatch
from proxy import Proxy, Weather
from worker import Spec
from workload import TEXT_MODEL, Kind, batch_rows, generator, model_family, workloads, write_repository

from eddy import Client

_WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.002
_SETTINGS = """
[state]
checkpoint_seconds = 0.1
host_bytes = {host_bytes}
[session]
idle_timeout_seconds = 600
[model]
max_slots = {num_slots}
"""
# Slots for all sessions of a model; or hardly for the largest batch, so that the others are in the host's memory, where
# there is a store with as little of that as ticks need and a few sessions, so that some are in the store only.
_ROOMY_SLOTS = 4096
_ROOMY_BYTES = 1 << 28


class Moment(StrEnum):
    """When a server is killed."""

    ANSWERED = "answered"  # after so many answers to one client
    STORED = "stored"  # the store was written, and no client can have learnt of it
    STARTING = "starting"  # before it serves
    DRAINING = "draining"  # told to end, and not yet ended


_MOMENTS = {Moment.ANSWERED: 11, Moment.STORED: 5, Moment.STARTING: 2, Moment.DRAINING: 2}


@dataclass(frozen=True)
class Run:
    """What is asked for.

    Attributes:
        store: memory, sqlite or redis; with memory nothing is killed, only connections suffer.
        kills, steps: at least so many.
    """

    store: str
    seed: int
    kills: int
    steps: int
    num_clients: int = 3
    is_small: bool = False
    think_seconds: float = 0.06
    weather: Weather = field(default_factory=Weather)


@dataclass
class Report:
    """What a run was."""

    run: Run
    seconds: float
    counts: Counter[str]
    judgement: Judgement
    findings: list[str]

    @property
    def is_good(self) -> bool:
        """Nothing lost, nothing doubled, nothing different, nobody stuck."""
        return not self.findings and not self.judgement.differences

    def __str__(self) -> str:
        run, judgement = self.run, self.judgement
        kills = sum(self.counts[f"kills {moment}"] for moment in Moment)
        what = f"{judgement.num_steps} steps of {judgement.num_sessions} sessions"
        lines = [
            f"{run.store}: {kills} kills, {what} in {self.seconds:.0f} s, seed {run.seed}",
            f"{judgement.num_outputs} values compared bit for bit: "
            + ", ".join(f"{judgement.count(verdict)} {verdict}" for verdict in ("lost", "doubled", "different")),
            ", ".join(f"{name}: {count}" for name, count in sorted(self.counts.items())),
        ]
        lines += [str(each) for each in (judgement.differences or [])[:5]] + self.findings
        if not self.is_good:
            lines.append(f"again: make chaos STORE={run.store} SEED={run.seed} KILLS={run.kills} STEPS={run.steps}")
        return "\n".join(lines)


class Chaos:
    """One run in `folder`."""

    def __init__(self, run: Run, folder: Path, tell: Callable[[str], None]) -> None:
        self._run = run
        self._folder = folder
        self._tell = tell
        self._dice = random.Random(f"kills/{run.seed}")
        self._repository = write_repository(folder / "models")
        self._proxy = Proxy(run.seed, run.weather)
        # Changed on the event loop only.
        self._redis: RedisProcess | None = None
        self._servers: list[ServerProcess] = []
        self._workers: list[ClientProcess] = []
        self._counts: Counter[str] = Counter()

    async def go(self) -> Report:
        """The whole run, and the judgement."""
        begin = time.monotonic()
        findings: list[str] = []
        try:
            await self._start()
            try:
                await self._storm()
                await self._calm()
            except (AssertionError, TimeoutError) as error:
                findings.append(f"the harness: {type(error).__name__}: {error}")
        finally:
            await self._end()
        findings += [worker.finding for worker in self._workers if worker.finding]
        findings += [complaint for server in self._servers if (complaint := server.complaints())]
        seconds = time.monotonic() - begin
        journals = [Path(worker.spec.journal) for worker in self._workers]
        texts = await self._texts(journals)
        judgement = judge(self._run.seed, journals, texts, is_small=self._run.is_small)
        for source in (*self._workers, *self._servers):
            self._counts.update({name: count for name, count in source.counts.items() if name in _TOLD})
        self._counts["connections"] = self._proxy.num_connections
        self._counts["connections cut"] = self._proxy.num_cut
        self._counts["connections refused"] = self._proxy.num_refused
        return Report(self._run, seconds, self._counts, judgement, findings)

    # Beginning and end

    async def _start(self) -> None:
        run, store = self._run, "memory"
        if run.store == "redis":
            self._redis = RedisProcess(self._folder)
            await self._redis.start()
            store = self._redis.url
        elif run.store == "sqlite":
            store = f"sqlite:{self._folder / 'state.db'}"
        self._watch = StoreWatch(self._redis, self._folder / "state.db")
        names = ("a", "b") if run.store == "redis" else ("a",)
        self._servers = [ServerProcess(self._folder, name, self._repository, store, self._settings) for name in names]
        for server in self._servers:
            await server.spawn()
        for server in self._servers:
            await server.ready()
        await self._proxy.start()
        self._route()
        target = f"127.0.0.1:{self._proxy.port}"
        for number in range(run.num_clients):
            journal = str(self._folder / f"client-{number}.journal")
            spec = Spec(run.seed, number, target, journal, run.is_small, run.think_seconds, PATIENCE_SECONDS)
            self._workers.append(ClientProcess(spec))
            await self._workers[-1].start()

    def _settings(self, life: int) -> str:
        """Of a server's life, which has room for all sessions or hardly for those that are stepped together."""
        rows = batch_rows(is_small=self._run.is_small)
        if (self._run.seed + life) % 2:
            return _SETTINGS.format(num_slots=_ROOMY_SLOTS, host_bytes=_ROOMY_BYTES)
        num_slots, host_bytes = rows + rows // 8, _ROOMY_BYTES
        if self._run.store != "memory":
            models = {workload.model for workload in workloads(0, is_small=True)} - {TEXT_MODEL}
            state_bytes = sum(state.initial_rows(1).nbytes for name in models for state in model_family(name).states)
            host_bytes = state_bytes * (2 * num_slots + rows // 2)
        return _SETTINGS.format(num_slots=num_slots, host_bytes=host_bytes)

    async def _calm(self) -> None:
        """Everybody comes to an end with servers that stay."""
        self._proxy.calm()
        self._route()
        await asyncio.gather(*(worker.finish() for worker in self._workers))
        for server in self._servers:
            await server.read_metrics()
            code = await server.drain()
            assert code == 0, f"a server ended with {code} on SIGTERM"

    async def _end(self) -> None:
        for worker in self._workers:
            await worker.kill()
        for server in self._servers:
            await server.kill()
        await self._proxy.close()
        if self._redis is not None:
            await self._redis.kill()

    async def _texts(self, journals: list[Path]) -> dict[tuple[int, int], list[int]]:
        """The texts again, by a server in this process that nothing happens to."""
        asked = [
            (client, entry.life, plan)
            for client, path in enumerate(journals)
            for plan in workloads(client, is_small=self._run.is_small)
            if plan.kind is Kind.TEXT
            for entry in read(path)
            if entry.workload == plan.number
        ]
        found: dict[tuple[int, int], list[int]] = {}
        async with serve(configure(self._repository)) as server, Client(f"127.0.0.1:{server.server.port}") as client:
            for number, life, plan in asked:
                dice = generator(self._run.seed, number, plan.number, life, 0)
                prompt = [int(token) for token in dice.integers(1, 90, 8)]
                completion = await client.complete(
                    TEXT_MODEL, prompt, max_tokens=plan.max_steps, seed=int(dice.integers(1 << 30)), temperature=1.0
                )
                found[number, life] = [token.id for token in completion.tokens]
        return found

    # The storm

    @property
    def _num_kills(self) -> int:
        return sum(self._counts[f"kills {moment}"] for moment in Moment)

    @property
    def _num_steps(self) -> int:
        return sum(worker.num_steps for worker in self._workers)

    def _check(self) -> None:
        for worker in self._workers:
            assert not worker.finding, "a client came to an end"

    def _route(self) -> None:
        self._proxy.backends = [server.grpc_port for server in self._servers if server.is_running]

    async def _storm(self) -> None:
        told, begin = 0, time.monotonic()
        while self._num_kills < self._run.kills or self._num_steps < self._run.steps:
            self._check()
            if self._run.store == "memory":
                await self._answers(self._dice.randint(20, 80))
                if self._run.weather.cut_share:
                    self._proxy.cut_all()
                    self._counts["cuts of all"] += 1
            else:
                await self._one_more()
            if self._num_kills >= told + 20:
                told = self._num_kills
                self._tell(
                    f"{self._run.store}, {time.monotonic() - begin:.0f} s: {told} kills, {self._num_steps} steps"
                )

    async def _one_more(self) -> None:
        """One kill, or one of the other things that happen to servers."""
        dice = self._dice
        moment = dice.choices(list(_MOMENTS), list(_MOMENTS.values()))[0]
        is_all = len(self._servers) == 1 or dice.random() < 0.5
        victims = list(self._servers) if is_all else [dice.choice(self._servers)]
        if self._redis is not None and dice.random() < 0.05:
            await self._trouble_store()
        if dice.random() < 0.1:  # Sessions move to another replica, or come back to the same one.
            await self._answers(dice.randint(1, 20))
            self._proxy.cut_all()
            self._counts["cuts of all"] += 1
        if dice.random() < 0.05:
            await self._upgrade(dice.choice(self._servers))
        if moment is Moment.STARTING:
            await self._answers(dice.randint(1, 40))
            await self._kill(victims, Moment.ANSWERED)
            for server in victims:
                await server.spawn()
            await asyncio.sleep(dice.random() * 0.8)
            await self._kill(victims, moment)
        elif moment is Moment.STORED:
            await self._answers(dice.randint(1, 30))
            self._proxy.hold()
            await self._store_write()
            await asyncio.sleep(dice.choice((0.0, 0.003, 0.02)))
            await self._kill(victims, moment)
            self._proxy.cut_all()
            self._proxy.release()
        elif moment is Moment.DRAINING:
            await self._answers(dice.randint(1, 40))
            for server in victims:
                await server.read_metrics()
                server.terminate()
            await asyncio.sleep(dice.random() * 0.1)
            await self._kill(victims, moment)
        else:
            await self._answers(dice.randint(1, 60))
            await self._kill(victims, moment)
        for server in victims:
            await server.spawn()
        for server in victims:
            await server.ready()
        self._route()

    async def _kill(self, victims: list[ServerProcess], moment: Moment) -> None:
        if moment in (Moment.ANSWERED,):
            for server in victims:
                await server.read_metrics()
        for server in victims:
            await server.kill()
            self._counts[f"kills {moment}"] += 1
        self._route()

    async def _upgrade(self, server: ServerProcess) -> None:
        """SIGTERM, and the next process goes on."""
        await server.read_metrics()
        code = await server.drain()
        assert code == 0, f"a server ended with {code} on SIGTERM"
        self._counts["drains"] += 1
        self._route()
        await server.spawn()
        await server.ready()
        self._route()

    async def _trouble_store(self) -> None:
        """Redis is killed, or stands still; nothing that it has acknowledged is lost."""
        assert self._redis is not None
        if self._dice.random() < 0.5:
            await self._redis.kill()
            await asyncio.sleep(self._dice.random() * 0.5)
            await self._redis.start()
            self._counts["kills of redis"] += 1
        else:
            self._redis.pause()
            await asyncio.sleep(0.2 + self._dice.random())
            self._redis.resume()
            self._counts["pauses of redis"] += 1
        await self._store_write()

    async def _answers(self, number: int) -> None:
        """Waits until one client has had so many answers more, and every client one.

        Without the latter a client that comes back slowly would be starved by kills that others' answers decide.
        """
        worker = self._dice.choice(self._workers)
        until, begin = worker.num_calls + number, time.monotonic()
        before = [each.num_calls for each in self._workers]
        while worker.num_calls < until or any(
            each.num_calls == count for each, count in zip(self._workers, before, strict=True)
        ):
            self._check()
            assert time.monotonic() < begin + 2 * PATIENCE_SECONDS, f"client {worker.spec.number} is not answered"
            await asyncio.sleep(_LOOK_SECONDS)

    async def _store_write(self) -> None:
        before, begin = await self._watch.mark(), time.monotonic()
        while (now := await self._watch.mark()) == before or not now:
            assert time.monotonic() < begin + _WAIT_SECONDS, "nothing was written to the store"
            await asyncio.sleep(_LOOK_SECONDS)


# Of all that is counted, what a report tells.
_TOLD = (
    "lives",
    "fenced",
    "fenced tries",
    "outoforder",
    "forks",
    "snapshots",
    "opened again",
    "texts that a drain cut short",
    "eddy_replayed_chunks_total",
    "eddy_steps_total",
    "eddy_page_ins_total",
    "eddy_recalled_sessions_total",
    "eddy_refusals_total/FENCED",
)


def run(wanted: Run, folder: Path, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(Chaos(wanted, folder, tell).go())
