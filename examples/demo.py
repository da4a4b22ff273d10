"""The demo: `make demo`, or `python -m examples.demo`. Real input through a real server, in a minute and a half.

Owns the order of the scenes, the arguments and the exit code. Needs no torch. The server process is ended on every
way out: at the end, on an error, on Ctrl-C (exit code 130) and on SIGTERM (143).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eddy import Client
    from examples.model import Model
    from examples.screen import Screen
    from examples.server import ServerProcess


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="Eddy in a minute and a half.")
    parser.add_argument("--models", type=Path, metavar="DIR", help="another model repository than the shipped models")
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds without pauses")
    parser.add_argument("--record", type=Path, metavar="FILE.svg", help="nothing moves; a picture of all is written")
    options = parser.parse_args(arguments)
    exits = _Exits()
    try:
        return _run(exits, models=options.models, is_quick=options.quick, picture=options.record)
    except ModuleNotFoundError as error:
        print(f"demo: the package {error.name!r} is not installed; run `make demo`, which installs it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted, the server has ended", file=sys.stderr)
        return 128 + signal.SIGINT


class _Exits:
    """Leaves in order on SIGTERM and when the terminal is closed, as Python does by itself on Ctrl-C.

    While the scenes play only their task is cancelled, so that sessions are closed over a client that still works.
    """

    def __init__(self) -> None:
        # Changed only by `play` and by the signal handler, both on the main thread.
        self._task: asyncio.Task[dict[str, str]] | None = None
        self._number = 0
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._leave)

    def _leave(self, number: int, _: FrameType | None) -> None:
        self._number = number
        if self._task is None:
            raise SystemExit(128 + number)
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def play(self, scenes: Coroutine[Any, Any, dict[str, str]]) -> dict[str, str]:
        """Runs the scenes on an event loop of their own."""

        async def run() -> dict[str, str]:
            self._task = asyncio.ensure_future(scenes)
            return await self._task

        try:
            return asyncio.run(run())
        except asyncio.CancelledError:
            raise SystemExit(128 + self._number) from None
        finally:
            self._task = None


def _run(exits: _Exits, *, models: Path | None, is_quick: bool, picture: Path | None) -> int:
    from examples.crowd import Disagreement
    from examples.screen import Screen
    from examples.server import MODELS, ServerFailed, ServerProcess
    from examples.stage import MissingModel

    screen = Screen(is_quick=is_quick, is_recording=picture is not None)
    begin = time.monotonic()
    server = ServerProcess(MODELS if models is None else models)
    screen.say(f"[bold blue]Eddy[/] streams recurrent models.  [dim]$ {' '.join(server.command)}[/]")
    try:
        with server:
            lines = _scenes(exits, server, screen)
    except (ServerFailed, MissingModel, Disagreement) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    screen.title(len(lines) + 1, "What was shown")
    for name, line in lines.items():
        screen.say(f"{name:<12} {line}")
    screen.say(f"{'server':<12} drained, exit code {server.exit_code}; the demo took {time.monotonic() - begin:.0f} s")
    screen.say("\nNext: [bold].venv/bin/eddy serve[/], then the scripts in examples/; see README.md.")
    if picture is not None:
        screen.save(picture)
    return server.exit_code or 0


def _scenes(exits: _Exits, server: ServerProcess, screen: Screen) -> dict[str, str]:
    from eddy.clients.errors import EddyError
    from examples.server import ServerFailed

    try:
        return exits.play(_play(server, screen))
    except EddyError as error:
        raise ServerFailed(f"{type(error).__name__}: {error}; the server's log ends:\n{server.log_tail()}") from error


async def _play(server: ServerProcess, screen: Screen) -> dict[str, str]:
    """Plays the scenes; returns a line of each for the summary, by its name."""
    from eddy import Client
    from examples import accents, activity, crowd, forecast, retry, text, translation, video
    from examples.stage import Stage

    scenes = {
        "text": ("Text, token by token", text),
        "forecast": ("A time series, value by value", forecast),
        "sensor": ("A smartwatch, reading by reading", activity),
        "accents": ("Accents restored, a little later", accents),
        "video": ("Film, frame by frame", video),
        "translation": ("Translation, token by token", translation),
        "sessions": ("Many sessions at once", crowd),
        "retries": ("Sent again, applied once", retry),
    }
    async with Client(server.target) as client:
        stage = Stage(client, server, screen, await _introduce(client, server, screen))
        # All of them before the first scene: nobody waits a minute to be told that a model is missing.
        chosen = {name: scene.choose(stage) for name, (_, scene) in scenes.items()}
        lines = {}
        for number, (name, (title, scene)) in enumerate(scenes.items(), 1):
            screen.title(number, title)
            lines[name] = await scene.play(stage, chosen[name])
    return lines


async def _introduce(client: Client, server: ServerProcess, screen: Screen) -> tuple[Model, ...]:
    """Says what is served; returns the models that are ready."""
    from rich.table import Table

    from examples.model import Model

    screen.say(f"[dim]gRPC {server.target} · http://{server.http}/metrics · {server.first_line.rpartition(', ')[2]}[/]")
    if unready := await asyncio.to_thread(server.why_not_ready):
        screen.say(f"[yellow]not every model is ready: {unready}[/]")
    statuses = [status for status in await client.models() if status.ready]
    models = [
        Model(
            status,
            await client.contract(status.name, status.version),
            server.models / status.name / status.version,
        )
        for status in statuses
    ]
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("model", "cell", "parameters", "a session's state", "same in any batch"):
        table.add_column(name, justify="right" if name in ("parameters", "a session's state") else "left")
    for model in models:
        table.add_row(*_model_row(model))
    screen.console.print(table)
    return tuple(models)


def _model_row(model: Model) -> tuple[str, ...]:
    contract = model.contract
    same = "yes" if contract.numerics.bitwise else f"within {contract.numerics.tolerance:g}"
    size = f"{model.status.state_bytes_per_session:,} bytes"
    return (f"[bold]{model.name}[/]", contract.family, f"{contract.training.parameters:,}", size, same)


if __name__ == "__main__":
    sys.exit(main())
