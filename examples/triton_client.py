"""Calls Eddy from Triton's own client, `pip install 'tritonclient[grpc]'`, which needs no change for it.

`python -m examples.triton_client [TARGET]` streams a few values into two sequences of the forecaster, step by step and
in one call, and shows that the answers are the same however the sequence is cut.

Dimension key: T steps, F features.
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.grpc as triton

_MODEL = "forecast-gru"
_NUM_STEPS = 6


def main(target: str = "127.0.0.1:8500") -> float:
    """Steps two sequences on the server at `target`; returns the largest difference between their last answers."""
    client = triton.InferenceServerClient(target)
    metadata = client.get_model_metadata(_MODEL)
    [spec], output = metadata.inputs, metadata.outputs[0].name
    # [batch, time, features]; -1 is any size.
    values = np.linspace(0.0, 1.0, _NUM_STEPS * spec.shape[2], dtype=np.float32).reshape(1, _NUM_STEPS, spec.shape[2])

    def infer(steps: np.ndarray, sequence: int, *, start: bool, end: bool) -> np.ndarray:
        tensor = triton.InferInput(spec.name, list(steps.shape), spec.datatype)
        tensor.set_data_from_numpy(steps)
        result = client.infer(_MODEL, [tensor], sequence_id=sequence, sequence_start=start, sequence_end=end)
        answer: np.ndarray = result.as_numpy(output)
        return answer

    for step in range(_NUM_STEPS):
        answer = infer(values[:, step : step + 1], 1, start=step == 0, end=step == _NUM_STEPS - 1)
        print(f"step {step}: {np.round(answer[0, -1].ravel()[:3], 3)} ...")
    whole = infer(values, 2, start=True, end=True)
    difference = float(np.abs(whole[:, -1] - answer[:, -1]).max())
    print(f"the same sequence in one call differs by {difference}")
    client.close()
    return difference


if __name__ == "__main__":
    main(*sys.argv[1:])
