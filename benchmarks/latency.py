"""One session alone: what Eddy adds to a round trip that does nothing and to a step that nobody waits for.

Eddy and the echo are stepped in alternating blocks by the same process; the bare step is measured before and after.
The bare step has two rows, as the server never runs fewer. The echo is gRPC as it comes; Eddy chooses how sockets are
waited for (`eddy.service.polling`). Beside it: the excess over an echo that waits as Eddy's gRPC does, and what that
echo adds to the same sum when it runs the bare step itself, which is not nothing: a step that follows a message finds
the caches full of gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.echo import MIN_ROWS
from benchmarks.figure import Measurement, Note, figure
from benchmarks.plan import Plan
from benchmarks.server import EchoServer, EddyServer
from benchmarks.shape import LSTM_128
from benchmarks.worker import Worker

_BARE_SECONDS = 0.1


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`latency_excess_us` and `latency_tail_ratio`, as asked for."""
    rounds, steps = [], []
    with (
        EddyServer(repository) as eddy,
        EchoServer() as echo,
        EchoServer(is_like_eddy=True) as alike,
        EchoServer(str(repository), LSTM_128.name, is_like_eddy=True) as floor,
        Worker("benchmarks.load", str(repository)) as load,
        Worker("benchmarks.ceiling", str(repository)) as ceiling,
    ):
        for _ in range(plan.repetitions):
            before = _bare(ceiling)
            rounds.append(
                load.ask(
                    "latency",
                    eddy=eddy.target,
                    echo=echo.target,
                    alike=alike.target,
                    floor=floor.target,
                    model=LSTM_128.name,
                    block_steps=plan.latency_block_steps,
                    num_blocks=plan.latency_blocks,
                )
            )
            steps.append((before + _bare(ceiling)) / 2)
    ours = [(each["eddy"]["median_seconds"], each["eddy"]["p99_seconds"]) for each in rounds]
    bare = [(each["echo"]["median_seconds"], each["echo"]["p99_seconds"]) for each in rounds]
    alikes = [each["alike"]["median_seconds"] for each in rounds]
    floors = [each["floor"]["median_seconds"] for each in rounds]
    excess = [(mine[0] - its[0] - step) * 1e6 for mine, its, step in zip(ours, bare, steps, strict=True)]
    tails = [(mine[1] / mine[0]) / (its[1] / its[0]) for mine, its in zip(ours, bare, strict=True)]
    figures = (figure("latency_excess_us", excess), figure("latency_tail_ratio", tails))
    values = [median(column) * 1e6 for column in (*zip(*ours, strict=True), *zip(*bare, strict=True), steps)]
    alike_excess = [mine[0] - its - step for mine, its, step in zip(ours, alikes, steps, strict=True)]
    floor_excess = [floor - its - step for floor, its, step in zip(floors, alikes, steps, strict=True)]
    values += [median(column) * 1e6 for column in (alikes, alike_excess, floor_excess)]
    note = (
        "one session {:.0f} us (p99 {:.0f}), echo {:.0f} us (p99 {:.0f}), bare step of two rows {:.0f} us; over an "
        "echo that waits for its sockets as Eddy does, {:.0f} us, the excess is {:.0f} us, and that of such an echo "
        "that runs the bare step itself {:.0f} us"
    )
    return Measurement(
        tuple(each for each in figures if each.definition.name in names), (Note("latency", note.format(*values)),)
    )


def _bare(ceiling: Worker) -> float:
    answer = ceiling.ask("bare", model=LSTM_128.name, rows=MIN_ROWS, seconds=_BARE_SECONDS)
    return float(answer["call_seconds"])
