"""Probe: does a model file run at all, and answer in the shapes that its contract declares?

Owns: that one question. Numbers are `verify`'s.
"""

from pathlib import Path

from eddy.training.contract import read_contract
from eddy.training.drawing import draw_inputs
from eddy.training.errors import ContractError, ExportError
from eddy.training.runtime import RUNTIME_ERRORS, Runtime
from eddy.v1 import contract_pb2 as pb

# Batch and steps of the two probes: different from each other and from 1, so that a baked-in size shows.
PROBES = ((2, 3), (3, 5))


def probe(path: Path) -> None:
    """Run all graphs of a model at two batch sizes and lengths and compare every shape with its contract.

    Declared shapes can be wrong, so they are not believed. Raises ExportError.
    """
    contract = read_contract(path)
    runtime = Runtime(path, contract)
    for batch, steps in PROBES:
        try:
            _probe(runtime, contract, batch, steps)
        except (*RUNTIME_ERRORS, ContractError, ValueError) as error:  # ValueError: pieces whose shapes do not join
            raise ExportError(f"{path}: does not run at B={batch}, T={steps}: {error}") from error


def _probe(runtime: Runtime, contract: pb.ModelContract, batch: int, steps: int) -> None:
    inputs = draw_inputs(contract, batch, steps)
    found = runtime.run(inputs, steps)
    outputs = {port.name: (batch, steps, *port.shape) for port in contract.outputs}
    states = {state.next_name: (batch, *state.shape) for state in contract.states if not state.immutable}
    checked = [(name, found[name].shape, shape) for name, shape in (outputs | states).items()]
    if contract.graphs.whole:
        whole = runtime.run_whole(inputs)
        checked += [(f"{name} of the whole graph", whole[name].shape, shape) for name, shape in outputs.items()]
    if contract.ports.emitted:
        late = steps + contract.streaming.block_steps - 1 + contract.streaming.look_ahead_steps
        given = {port.name: inputs[port.name] for port in contract.inputs}
        raw, _ = runtime.advance(given, runtime.start(batch))
        checked += [
            (f"{port.name} of one call", raw[port.name].shape, (batch, late, *port.shape)) for port in contract.outputs
        ]
    for name, shape, wanted in checked:
        if shape != wanted:
            raise ExportError(f"{name!r}: shape is {shape} at B={batch}, T={steps}, expected {wanted}")
