"""Scene: many sessions at once, and the proof that a session cannot tell.

Owns the scene. Two ways to have many sessions: `client.batch` steps thousands by one array, and any number of
coroutines step their own session each, which the client packs into common messages.

Dimension key: B sessions, F features.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from eddy import Client
from examples import forecast, text
from examples.model import Model
from examples.screen import Picture
from examples.stage import Stage

_PROOF_STEPS = 48


@dataclass
class Count:
    """One way's counters; `ticks` and `steps` are the server's, from /metrics."""

    name: str
    model: str
    num_sessions: int
    client_steps: int = 0
    seconds: float = 0.0
    ticks: float = 0.0
    steps: float = 0.0
    proof: str = ""


class Disagreement(Exception):
    """A session's outputs among others differ from those alone by more than the model's contract allows."""


def choose(stage: Stage) -> list[Model]:
    """A forecaster and a text model."""
    return [forecast.choose(stage)[0], text.choose(stage)[0]]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary.

    Raises:
        Disagreement: the proof failed.
    """
    client, server, screen = stage.client, stage.server, stage.screen
    # A model each and a real series of its inputs, [N, ...]; every session reads it from its own place on.
    sensor = models[0], forecast.read_series(models[0]).values
    writer = models[1], text.Writer(models[1], "").encode(text.read_sample(models[1]))
    num_batch, num_coroutines = (500, 64) if screen.is_quick else (4000, 256)
    duration = 0.5 if screen.is_quick else 4.0
    screen.say(
        f"First [bold]{num_batch:,} sessions[/] of {sensor[0].name}, stepped by one array: "
        "[bold]await batch.step(values)[/]. "
        f"Then [bold]{num_coroutines} coroutines[/], each with a session of {writer[0].name} of its own: "
        "[bold]await session.step(value)[/]. "
        f"One session of each was run alone before, {_PROOF_STEPS} steps; now its outputs must be the same bits."
    )
    counts = [
        Count("client.batch", sensor[0].name, num_batch),
        Count("coroutines", writer[0].name, num_coroutines),
    ]
    alone = [await _run_alone(client, model.name, values) for model, values in (sensor, writer)]
    with screen.picture() as picture:
        for count, (model, values), run, reference in zip(
            counts, (sensor, writer), (_run_batch, _run_coroutines), alone, strict=True
        ):
            before = await asyncio.to_thread(server.metrics)
            proof = await run(client, count, values, duration, picture, counts)
            after = await asyncio.to_thread(server.metrics)
            for name, metric in (("ticks", "eddy_ticks_total"), ("steps", "eddy_steps_total")):
                key = f"{metric}:{count.model}"
                setattr(count, name, after[key] - before[key])
            count.proof = _compare(reference, proof, model)
            picture.show(_table(counts), is_last=True)
    for count, reference in zip(counts, alone, strict=True):
        screen.say(f"{count.name:<12} outputs alone {_digest(reference)}…, among the others [bold]{count.proof}[/]")
    return "; ".join(
        f"{count.client_steps / count.seconds:,.0f} steps/s, {count.num_sessions:,} {kind}"
        for count, kind in zip(counts, ("in a batch", "coroutines"), strict=True)
    )


async def _run_alone(client: Client, model: str, values: np.ndarray) -> bytes:
    """The outputs of a session that has the server to itself."""
    async with client.session(model) as session:
        return b"".join([(await session.step(value)).tobytes() for value in values[:_PROOF_STEPS]])


async def _run_batch(
    client: Client, count: Count, values: np.ndarray, duration: float, picture: Picture, counts: Sequence[Count]
) -> bytes:
    """Steps `count.num_sessions` sessions together; returns the outputs of the one in the middle."""
    rows = np.arange(count.num_sessions)
    chosen = count.num_sessions // 2
    starts = (rows - chosen) * 7
    proof = []
    async with client.batch(count.model, count.num_sessions) as batch:
        begin = time.perf_counter()
        step = 0
        while step < _PROOF_STEPS or time.perf_counter() - begin < duration:
            outputs = await batch.step(values[(starts + step) % len(values)])
            if step < _PROOF_STEPS:
                proof.append(outputs[chosen].tobytes())
            step += 1
            count.client_steps += count.num_sessions
            count.seconds = time.perf_counter() - begin
            picture.show(_table(counts))
    return b"".join(proof)


async def _run_coroutines(
    client: Client, count: Count, values: np.ndarray, duration: float, picture: Picture, counts: Sequence[Count]
) -> bytes:
    """Steps a session in each of `count.num_sessions` coroutines; returns the outputs of the one in the middle."""
    chosen = count.num_sessions // 2
    proof: list[bytes] = []
    begin = time.perf_counter()

    async def live(number: int) -> None:
        start = (number - chosen) * 7
        async with client.session(count.model) as session:
            step = 0
            while step < _PROOF_STEPS or time.perf_counter() - begin < duration:
                output = await session.step(values[(start + step) % len(values)])
                if number == chosen and step < _PROOF_STEPS:
                    proof.append(output.tobytes())
                step += 1
                count.client_steps += 1

    async with asyncio.TaskGroup() as group:
        lives = [group.create_task(live(number)) for number in range(count.num_sessions)]
        while not all(task.done() for task in lives):
            await asyncio.wait(lives, timeout=0.2)
            count.seconds = time.perf_counter() - begin
            picture.show(_table(counts))
    return b"".join(proof)


def _compare(alone: bytes, among: bytes, model: Model) -> str:
    """What to say of two runs of one session.

    Raises:
        Disagreement: they differ by more than the contract's tolerance, and by more than rounding.
    """
    if alone == among:
        return "the same, bit for bit"
    difference = float(np.abs(np.frombuffer(alone, "<f4") - np.frombuffer(among, "<f4")).max())
    if difference > max(model.contract.numerics.tolerance, 1e-4):
        raise Disagreement(f"{model.name}: outputs alone and among others differ by {difference:.3g}")
    # Bits hold for one version of ONNX Runtime and one CPU instruction set: this may be another.
    return f"not the same bits on this CPU, difference at most {difference:.1e}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _table(counts: Sequence[Count]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("", "sessions", "steps", "steps/s", "mean rows a tick", "alone = among?"):
        table.add_column(name, justify="left" if name in ("", "alone = among?") else "right")
    for count in counts:
        rate = f"{count.client_steps / count.seconds:,.0f}" if count.seconds else "-"
        size = f"{count.steps / count.ticks:,.0f}" if count.ticks else "-"
        answer = "-" if not count.proof else "yes" if count.proof.startswith("the same") else "nearly"
        table.add_row(
            f"[bold]{count.name}[/]",
            f"{count.num_sessions:,}",
            f"{count.client_steps:,}",
            f"[green]{rate}[/]",
            size,
            answer,
        )
    return table
