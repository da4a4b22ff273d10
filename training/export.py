"""Export: a checkpoint becomes a verified model in the model repository.

Owns: what the files of `models/<name>/<version>/` are and that none appears there unproven. Order: build the graph,
fill the contract, write a draft, probe it, verify it against the checkpoint, then give it its name.
"""

from pathlib import Path

import torch

from eddy.training.card import write_card
from eddy.training.checkpoint import Checkpoint, load_checkpoint
from eddy.training.contract import STEP_FILE, attach_contract, build_contract, read_contract, sample_path, save_model
from eddy.training.errors import CheckpointError, ExportError
from eddy.training.generation import continue_sample
from eddy.training.graph import build_step_graph, check_structure
from eddy.training.model import RecurrentModel, count_parameters
from eddy.training.recipe import SeriesSource
from eddy.training.runtime import RUNTIME_ERRORS, Runtime
from eddy.training.spec import FeatureInput, LinearHead, ModelSpec
from eddy.training.storage import make_folder
from eddy.training.verify import Report, draw_inputs, verify
from eddy.v1 import contract_pb2 as pb

# Batch and steps of the two probes: different from each other and from 1, so that a baked-in size shows.
PROBES = ((2, 3), (3, 5))


def export_checkpoint(checkpoint: Path, directory: Path) -> Report:
    """Write `model.onnx`, its card `README.md` and a sample of unseen input into `directory`.

    Raises CheckpointError, ExportError or VerificationError; `model.onnx` appears only when everything holds.
    """
    source = load_checkpoint(checkpoint)
    if source.progress is not None:
        raise CheckpointError(
            f"{checkpoint}: got a run that stands at {len(source.epochs)} of {source.recipe.training.epochs} epochs, "
            "expected one that has ended: go on with `eddy train --resume`"
        )
    make_folder(directory)
    model, draft = directory / STEP_FILE, directory / f"{STEP_FILE}.unproven"
    try:
        export_step_graph(source.build(), draft, describe(source))
        report = verify(draft, checkpoint)
        draft.replace(model)
    finally:
        draft.unlink(missing_ok=True)
    contract = read_contract(model)
    sample = sample_path(model, contract)
    sample.write_text(source.sample, encoding="utf-8")
    written = continue_sample(model, source.sample) if source.symbols else ""
    write_card(directory / "README.md", source.recipe, contract, sample.name, written)
    return report


def export_step_graph(model: RecurrentModel, path: Path, contract: pb.ModelContract) -> None:
    """Write a model as one ONNX file with its contract in it, and probe that the file keeps the contract.

    Raises ExportError where the graph lacks a property that serving relies on.
    """
    graph = build_step_graph(model)
    check_structure(graph)
    attach_contract(graph, contract)
    save_model(path, graph)
    probe(path)


def probe(path: Path) -> None:
    """Run a model file at two batch sizes and lengths and compare every shape with its contract.

    Declared shapes can be wrong, so they are not believed. Raises ExportError.
    """
    contract = read_contract(path)
    runtime = Runtime(path, contract)
    for batch, steps in PROBES:
        try:
            found = runtime.run(draw_inputs(contract, batch, steps), steps)
        except (*RUNTIME_ERRORS, ValueError) as error:  # ValueError: pieces whose shapes do not join
            raise ExportError(f"{path}: does not run at B={batch}, T={steps}: {error}") from error
        wanted = {port.name: (batch, steps, *port.shape) for port in contract.outputs}
        wanted |= {state.next_name: (batch, *state.shape) for state in contract.states if not state.immutable}
        for name, shape in wanted.items():
            if found[name].shape != shape:
                raise ExportError(f"{name!r}: shape is {found[name].shape} at B={batch}, T={steps}, expected {shape}")


def describe(source: Checkpoint) -> pb.ModelContract:
    """The full contract of a checkpoint: the shape's part, and what its data and its training mean."""
    recipe = source.recipe
    contract = build_contract(source.spec, recipe.name, recipe.description)
    if isinstance(recipe.data, SeriesSource):
        contract.inputs[0].meaning = ", ".join(recipe.data.columns) + f": {recipe.data.meaning}, now"
        contract.inputs[0].unit = recipe.data.unit
        step = f"{recipe.data.step_seconds} s"
        contract.outputs[0].meaning = f"quantiles of {recipe.data.meaning}, a number of steps of {step} ahead"
        contract.outputs[0].unit = recipe.data.unit
    else:
        contract.vocabulary.symbols.extend(source.symbols)
        contract.vocabulary.unknown_id = 0
        contract.vocabulary.unit = "character"
    contract.training.CopyFrom(
        pb.Training(
            recipe=f"{recipe.name}.toml",
            data=source.origin,
            data_licence=recipe.data.licence,
            seed=recipe.training.seed,
            parameters=count_parameters(source.build()),
            framework=f"torch {torch.__version__}",
            figures=[pb.Figure(name=f.name, value=f.value, unit=f.unit) for f in source.figures],
        )
    )
    return contract


def random_model(cell: str, features: int, hidden: int, layers: int, outputs: int, seed: int = 0) -> RecurrentModel:
    """An untrained model over plain features, [B, T, features] -> [B, T, outputs], weights drawn from `seed`."""
    given = FeatureInput(mean=(0.0,) * features, scale=(1.0,) * features, name="x")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RecurrentModel(ModelSpec(cell, layers, hidden, given, LinearHead(outputs))).eval()


def write_benchmark_model(
    path: Path,
    *,
    cell: str = "lstm",
    features: int = 16,
    hidden: int = 128,
    layers: int = 1,
    outputs: int = 8,
    seed: int = 0,
    name: str = "",
) -> pb.ModelContract:
    """Write an untrained model for speed measurements: input `x`, output `y`, task other; returns its contract.

    Without `name` it is called after its parts, as in "lstm-128x1". Its numbers are not verified.
    """
    model = random_model(cell, features, hidden, layers, outputs, seed)
    contract = build_contract(model.spec, name or f"{cell}-{hidden}x{layers}")
    path.parent.mkdir(parents=True, exist_ok=True)
    export_step_graph(model, path, contract)
    return contract
