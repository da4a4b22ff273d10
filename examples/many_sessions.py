"""Thousands of sessions by one array: `python -m examples.many_sessions [HOST:PORT] [MODEL] [COUNT]`."""

import asyncio
import sys
import time

import numpy as np

from eddy import Client


async def main(target: str = "127.0.0.1:8500", model: str = "forecast-gru", count: str = "4000") -> None:
    """Steps COUNT sessions 100 times, each with values of its own."""
    generator = np.random.default_rng()
    num_sessions = int(count)
    async with Client(target) as client, client.batch(model, num_sessions) as batch:
        values = generator.normal(10.0, 3.0, (num_sessions, 1)).astype(np.float32)
        begin = time.perf_counter()
        for _ in range(100):
            outputs = await batch.step(values)  # [B, F] -> [B, horizons, quantiles]
            values = outputs[:, 0, 1:2]  # Each session goes on from its own forecast, one step ahead.
        rate = 100 * num_sessions / (time.perf_counter() - begin)
    print(f"{num_sessions} sessions, 100 steps each: {rate:,.0f} steps/s, last outputs {list(outputs.shape)}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
