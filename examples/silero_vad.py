"""Speech in a recording, by a model that somebody else exported: `python -m examples.silero_vad FILE.wav`.

The model is silero VAD (MIT, https://github.com/snakers4/silero-vad) as its package has it. The untouched file and a
few lines of settings are put into a repository; the server finds the state, keeps the context, and streams.
"""

from __future__ import annotations

import sys
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from eddy import SyncClient
from eddy.training.packages import fetch_package, find_package, read_packaged
from examples.server import ServerProcess

RATE = 16_000
# Samples of a step: 32 ms.
WINDOW = 512
# The graph reads 64 samples of the past and 512 new ones; what the past is, the server remembers.
SETTINGS = """\
description = "speech detector"
[axes]
input = ["batch", 576]
[context_steps]
input = 64
[constants]
sr = 16000
[names]
input = "sound"
output = "speech"
"""
_SPEECH = 0.5
_BARS = " ▁▂▃▄▅▆▇█"


def write_repository(folder: Path) -> None:
    """Puts the model and its settings into `folder`; the package is fetched unless it is there."""
    fetch_package(find_package("silero-vad"))
    (folder / "silero_vad.onnx").write_bytes(read_packaged("wheel:silero-vad:silero_vad/data/silero_vad.onnx"))
    (folder / "silero_vad.toml").write_text(SETTINGS, encoding="utf-8")


def read_windows(path: Path) -> np.ndarray:
    """A recording of 16 bits at 16 kHz or a multiple of it, as windows float32 [T, 512], the first channel."""
    with wave.open(str(path)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        if width != 2 or rate % RATE:
            sys.exit(f"{path}: {8 * width} bits at {rate} Hz, expected 16 bits at a multiple of {RATE} Hz")
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, channels)[:, 0] / 32768
    every = rate // RATE
    sound = sound[: len(sound) // every * every].reshape(-1, every).mean(axis=1)
    missing = -len(sound) % WINDOW
    return np.pad(sound, (0, missing)).reshape(-1, WINDOW).astype(np.float32)


def segments(speech: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Begin and end in seconds, and the mean probability, of every run of windows with speech; `speech` [T]."""
    is_speech = np.concatenate([[False], speech >= _SPEECH, [False]])
    edges = np.flatnonzero(np.diff(is_speech.astype(int))).reshape(-1, 2)
    for begin, end in edges:
        yield begin * WINDOW / RATE, end * WINDOW / RATE, float(speech[begin:end].mean())


def main(path: str) -> None:
    """Streams the recording and prints where speech is."""
    windows = read_windows(Path(path))
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder))
        with (
            ServerProcess(Path(folder)) as server,
            SyncClient(server.target) as client,
            client.session("silero_vad") as session,
        ):
            speech = np.array([session.step(window)[0] for window in windows])
    console = Console(highlight=False)
    console.print(
        f"{Path(path).name}: {len(windows) * WINDOW / RATE:.1f} s, a step every {1000 * WINDOW / RATE:.0f} ms"
    )
    console.print("".join(_BARS[round(float(value) * (len(_BARS) - 1))] for value in speech))
    table = Table("speech from", "to", "probability")
    for begin, end, mean in segments(speech):
        table.add_row(f"{begin:.2f} s", f"{end:.2f} s", f"{mean:.2f}")
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
