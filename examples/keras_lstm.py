"""A Keras model that knows nothing of streaming, streamed: `python -m examples.keras_lstm [FILE.csv]`.

The file is the one that Keras wrote, without settings and without a contract: the server finds the states of its two
LSTM layers inside, and keeps them between readings. FILE.csv has a head and a value a line, mg/dL every five minutes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from eddy import SyncClient
from examples.server import ServerProcess

MODEL = Path(__file__).parent / "models" / "glucose_lstm.onnx"
SAMPLE = Path(__file__).parent.parent / "models" / "forecast-gru" / "1" / "sample.csv"
_MAX_READINGS = 24


def read(path: Path) -> np.ndarray:
    """The first readings of a file, float32 [T, 1]."""
    return np.loadtxt(path, np.float32, skiprows=1, max_rows=_MAX_READINGS, ndmin=1)[:, None]


def main(path: Path = SAMPLE) -> None:
    """Prints each reading and the forecasts that are made when it comes."""
    table = Table("mg/dL", "in 5 minutes", "in 30", "in 60")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MODEL, folder)
        with (
            ServerProcess(Path(folder)) as server,
            SyncClient(server.target) as client,
            client.session(MODEL.stem) as session,
        ):
            for reading in read(path):
                forecasts = session.step(reading)  # [1] -> [3]
                table.add_row(f"{reading[0]:g}", *(f"{value:.1f}" for value in forecasts))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
