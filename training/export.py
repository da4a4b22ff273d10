"""Export: a checkpoint becomes a verified model in the model repository.

Owns: what the files of `models/<name>/<version>/` are and that none appears there unproven. Order: build the graph,
fill the contract, write a draft, probe it, verify it against the checkpoint, write its card, then give it its name.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from eddy.training.card import write_card
from eddy.training.checkpoint import Checkpoint, load_checkpoint
from eddy.training.contract import STEP_FILE, precision_of, read_contract, sample_path, write_contract
from eddy.training.errors import CheckpointError
from eddy.training.evaluation import KEPT, evaluate_model
from eddy.training.families.family import Model, count_parameters
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.registry import all_examples, build_contract, build_model, write_graphs
from eddy.training.families.shapes import at_precision, on_grid, spec_from_dict
from eddy.training.figures import Figure, in_float32
from eddy.training.probe import probe
from eddy.training.spec import FLOAT32, FeatureInput, LinearHead, Spec
from eddy.training.speedup import measure_speedup
from eddy.training.storage import make_folder
from eddy.training.tasks.registry import BASELINES, find_task
from eddy.training.verify import Report, verify
from eddy.v1 import contract_pb2 as pb


def export_checkpoint(
    checkpoint: Path,
    directory: Path,
    *,
    block_steps: int | None = None,
    look_ahead_steps: int | None = None,
    precision: str = FLOAT32,
    adopts: Sequence[str] = (),
) -> Report:
    """Write `model.onnx`, other graphs of the model, its card `README.md` and a sample of unseen input.

    block_steps, look_ahead_steps: another grid than the recipe's, for a bidirectional model; raises OptionError for
    others. precision: one of PRECISIONS; in int8 the model is measured again on the test part of its data, and beside
    the one in float32 for speed; raises OptionError or RecipeError for models that have none, DataError where the data
    has changed. adopts: versions of the model whose sessions go on with this one. Raises CheckpointError, ExportError
    or VerificationError; `model.onnx` appears only when everything holds.
    """
    source = load_checkpoint(checkpoint)
    if source.progress is not None:
        raise CheckpointError(
            f"{checkpoint}: got a run that stands at {len(source.epochs)} of {source.recipe.training.epochs} epochs, "
            "expected one that has ended: go on with `eddy train --resume`"
        )
    plain = replace(source, spec=on_grid(source.spec, block_steps, look_ahead_steps))
    source = replace(plain, spec=at_precision(plain.spec, precision))
    make_folder(directory)
    with TemporaryDirectory(prefix=".unproven-", dir=directory) as folder:
        draft = Path(folder)
        model = draft / STEP_FILE
        contract = describe(source)
        contract.adopts.extend(adopts)
        export_graphs(source.build(), draft, contract)
        report = verify(model, checkpoint)
        contract = read_contract(model)
        sample_path(model, contract).write_text(source.sample, encoding="utf-8")
        if precision == FLOAT32:
            write_card(model, source.recipe, contract)
        else:
            _compare(model, contract, plain)
            evaluate_model(model, source.recipe)
        _move(draft, directory)
    return report


def _compare(model: Path, contract: pb.ModelContract, plain: Checkpoint) -> None:
    """Write into a model's contract how much faster it is than the same checkpoint in float32."""
    with TemporaryDirectory(prefix="eddy-") as folder:
        export_graphs(plain.build(), Path(folder), describe(plain))
        found = measure_speedup(Path(folder) / STEP_FILE, model)
    contract.training.figures.extend(pb.Figure(name=f.name, value=f.value, unit=f.unit) for f in found)
    write_contract(model, contract)


def _move(draft: Path, directory: Path) -> None:
    """Give proven files their names; the step graph last, since its contract names the others."""
    for path in sorted(draft.iterdir(), key=lambda path: path.name == STEP_FILE):
        path.replace(directory / path.name)


def export_graphs(model: Model, directory: Path, contract: pb.ModelContract) -> None:
    """Write every graph of a model into a folder, the contract in the step graph, and probe that it is kept.

    Raises ExportError where a graph lacks a property that serving relies on.
    """
    write_graphs(model, directory, contract)
    probe(directory / STEP_FILE)


def describe(source: Checkpoint) -> pb.ModelContract:
    """The full contract of a checkpoint: the shape's part, and what its data and its training mean."""
    recipe = source.recipe
    model = source.build()
    contract = build_contract(model, recipe.name, recipe.description)
    figures: Sequence[Figure] = source.figures
    if precision_of(contract) != FLOAT32:
        contract.name = recipe.model_name(contract.precision)
        contract.description += f", {contract.precision}"
        figures = in_float32(figures, KEPT, BASELINES)
    find_task(recipe.data).describe(contract, recipe.data, source.symbols, source.source_symbols)
    contract.training.CopyFrom(
        pb.Training(
            recipe=f"{recipe.name}.toml",
            data=source.origin,
            data_licence=recipe.data.licence,
            seed=recipe.training.seed,
            parameters=count_parameters(model),
            framework=f"torch {torch.__version__}",
            figures=[pb.Figure(name=f.name, value=f.value, unit=f.unit) for f in figures],
        )
    )
    return contract


def draw_model(spec: Spec, seed: int = 0) -> Model:
    """An untrained model in evaluation mode, its weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(spec).eval()


def write_example(
    name: str, directory: Path, *, seed: int = 0, hidden: int | None = None, is_verified: bool = True
) -> pb.ModelContract:
    """Write an untrained model of a variant, one of `all_examples`, with all its graphs; returns its contract.

    hidden: units in place of the example's few, as a benchmark wants them. is_verified: prove the numbers, which takes
    about a second, and write the verdict into the contract; raises VerificationError. Raises ExportError.
    """
    spec = all_examples()[name]
    if hidden is not None:
        spec = spec_from_dict(spec.to_dict() | {"hidden": hidden})
    model = draw_model(spec, seed)
    make_folder(directory)
    export_graphs(model, directory, build_contract(model, name))
    if is_verified:
        verify(directory / STEP_FILE)
    return read_contract(directory / STEP_FILE)


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

    path: a file called STEP_FILE. Without `name` the model is called after its parts, as in "lstm-128x1". Its
    numbers are not verified.
    """
    assert path.name == STEP_FILE, "a model's step graph has a fixed name"
    given = FeatureInput(mean=(0.0,) * features, scale=(1.0,) * features, name="x")
    model = draw_model(RecurrentSpec(cell, layers, hidden, given, (LinearHead(outputs),)), seed)
    contract = build_contract(model, name or f"{cell}-{hidden}x{layers}")
    make_folder(path.parent)
    export_graphs(model, path.parent, contract)
    return contract
