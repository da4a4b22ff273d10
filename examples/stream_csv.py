"""A CSV file through a forecaster: `python -m examples.stream_csv FILE COLUMN[,COLUMN...] [HOST:PORT] [MODEL]`.

A model forecasts what it was trained on: for another series, train one first (docs/training.md).
"""

import asyncio
import csv
import sys
from pathlib import Path

from eddy import Client


def read(path: Path, columns: list[str]) -> list[list[float]]:
    """The columns' values, a list [F] a row."""
    with path.open(newline="") as file:
        return [[float(row[name]) for name in columns] for row in csv.DictReader(file)]


async def main(path: str, columns: str, target: str = "127.0.0.1:8500", model: str = "forecast-gru") -> None:
    """Prints each row's values and the forecast made on them: the middle quantile at every horizon."""
    rows = read(Path(path), columns.split(","))
    async with Client(target) as client, client.session(model) as session:
        output = (await client.contract(model)).outputs[0]
        labels = {axis.name: list(axis.labels) for axis in output.axes}
        middle = len(labels["quantiles"]) // 2
        print("now", *(f"+{horizon}" for horizon in labels["horizons"]), sep="\t")
        for values in rows:
            quantiles = await session.step(values)  # [F] -> [horizons, quantiles]
            print(",".join(f"{value:g}" for value in values), *(f"{q:.2f}" for q in quantiles[:, middle]), sep="\t")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
