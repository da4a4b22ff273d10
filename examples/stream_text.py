"""Text, character by character: `python -m examples.stream_text [HOST:PORT] [MODEL] [PROMPT]`."""

import asyncio
import sys

import numpy as np

from eddy import Client


async def main(target: str = "127.0.0.1:8500", model: str = "text-lstm", prompt: str = "The class ") -> None:
    """Prints the prompt and 300 characters that the model writes after it."""
    generator = np.random.default_rng()
    async with Client(target) as client, client.session(model) as session:
        vocabulary = (await client.contract(model)).vocabulary
        symbols = list(vocabulary.symbols)
        ids = [symbols.index(character) if character in symbols else vocabulary.unknown_id for character in prompt]
        print(prompt, end="", flush=True)
        scores = (await session.step(ids))[-1]  # The prompt is one chunk [T]; one row of scores a step comes back.
        for _ in range(300):
            weights = np.exp((scores - scores.max()).astype(np.float64) / 0.6)
            weights[vocabulary.unknown_id] = 0.0
            token = int(generator.choice(len(weights), p=weights / weights.sum()))
            print(symbols[token], end="", flush=True)
            scores = await session.step(token)
    print()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
