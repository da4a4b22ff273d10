"""The client without asyncio: `python -m examples.sync_client [HOST:PORT] [MODEL]`."""

import sys

from eddy import SyncClient


def main(target: str = "127.0.0.1:8500", model: str = "forecast-gru") -> None:
    """Streams a few values into a forecaster and prints the forecasts."""
    with SyncClient(target) as client, client.session(model) as session:
        for value in (7.1, 7.4, 7.6, 7.6, 7.1):
            low, middle, high = session.step([value])[0]  # The nearest horizon's quantiles.
            print(f"now {value:.1f}, next {middle:.1f} ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
