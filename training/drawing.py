"""Drawing: random input of the kind that a contract declares, the same every time.

Owns: which values are drawn. Must not know what they are for.
"""

import numpy as np
import numpy.typing as npt

from eddy.training.contract import numpy_dtype
from eddy.v1 import contract_pb2 as pb

Array = npt.NDArray[np.generic]
Tensors = dict[str, Array]


def draw_inputs(contract: pb.ModelContract, batch: int, steps: int) -> Tensors:
    """Random input of the right kind for every declared input, [batch, steps, ...].

    Integers are drawn from the declared range; real values spread around the declared mean or within the range. A prime
    graph's inputs are as long as they may be, [batch, max_prime_steps, ...], their lengths anything from 1 on.
    """
    rng = np.random.default_rng(20240229)
    drawn = {port.name: _draw(rng, port, (batch, steps, *port.shape)) for port in contract.inputs}
    most = contract.max_prime_steps
    drawn |= {port.name: _draw(rng, port, (batch, most, *port.shape)) for port in contract.prime_inputs}
    if contract.ports.prime_length:
        drawn[contract.ports.prime_length] = rng.integers(1, most, batch, endpoint=True)
    return drawn


def pad_again(contract: pb.ModelContract, inputs: Tensors) -> Tensors:
    """The same inputs with a prime graph's cut to the longest row, and other values beyond each row's length."""
    if not contract.ports.prime_length:
        return inputs
    lengths = inputs[contract.ports.prime_length]
    longest = int(np.max(lengths))
    beyond = np.arange(longest) >= lengths.astype(np.int64)[:, None]
    padded = dict(inputs)
    for port in contract.prime_inputs:
        value = inputs[port.name][:, :longest].copy()
        # The first step of a row is a value that the port accepts.
        value[beyond] = np.repeat(value[:, :1], longest, axis=1)[beyond]
        padded[port.name] = value
    return padded


def _draw(rng: np.random.Generator, port: pb.TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = numpy_dtype(port.dtype, port.name)
    low, high = (port.range.minimum, port.range.maximum) if port.HasField("range") else (0.0, 1.0)
    if dtype.kind in "iub":
        return rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
    if port.HasField("normalization") and port.normalization.inside_graph:
        mean, scale = np.array(port.normalization.mean), np.array(port.normalization.scale)
        return (mean + scale * rng.standard_normal(shape)).astype(dtype)
    if port.HasField("range"):
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
