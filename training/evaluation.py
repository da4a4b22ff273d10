"""Evaluation: the figures of a model file, measured again on its test part, without training and without torch.

Owns: running the test part through ONNX Runtime, and which figures of a contract that replaces. The graph and its
weights stay as they are. Order: the data is checked against the contract first, so that no figure of other data gets
in.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.card import write_card
from eddy.training.contract import load_model, read_contract, sample_path, write_contract
from eddy.training.data import NO_TOKEN, Floats, SeriesData, TextData, describe_origin, load_series, load_text
from eddy.training.errors import ContractError, DataError
from eddy.training.figures import Figure, series_figures, text_figures
from eddy.training.generation import continue_sample
from eddy.training.recipe import Recipe, SeriesSource, load_recipe
from eddy.training.runtime import Runtime
from eddy.training.windows import EVALUATION_STEPS, TEXT_EVALUATION_STREAMS, Windows
from eddy.v1 import contract_pb2 as pb

# Steps of a series in one run of the graph.
SERIES_CHUNK = 4096
# Figures of training itself, which no measurement of the model file replaces.
KEPT = ("parameters", "best_epoch", "validation_loss")


def evaluate_model(path: Path, recipe: Recipe | None = None) -> list[Figure]:
    """Measure a model file and its baselines on the test part; the figures go into its contract and its card.

    recipe: the one that it was trained by; None takes the shipped recipe that the contract names. Raises RecipeError
    where there is none, DataError where its data is not the data that the model was trained on, ContractError.
    """
    contract = read_contract(path)
    recipe = recipe or load_recipe(Path(contract.training.recipe.removesuffix(".toml")))
    if recipe.name != contract.name:
        raise ContractError(f"{path}: name: got recipe {recipe.name!r}, expected the one of {contract.name!r}")
    found = measure_model(path, contract, recipe)
    kept = [Figure(f.name, f.value, f.unit) for f in contract.training.figures if f.name in KEPT]
    del contract.training.figures[:]
    contract.training.figures.extend(pb.Figure(name=f.name, value=f.value, unit=f.unit) for f in [*kept, *found])
    graph = load_model(path).graph.SerializeToString(deterministic=True)
    write_contract(path, contract)
    assert load_model(path).graph.SerializeToString(deterministic=True) == graph, "only metadata may change"
    sample = sample_path(path, contract)
    written = ""
    if contract.HasField("vocabulary") and sample.exists():
        written = continue_sample(path, sample.read_text(encoding="utf-8"))
    write_card(path.with_name("README.md"), recipe, contract, sample.name, written)
    return [*kept, *found]


def measure_model(path: Path, contract: pb.ModelContract, recipe: Recipe) -> list[Figure]:
    """The figures of a model file on its recipe's test part. Raises DataError, ContractError."""
    origin = describe_origin(recipe.data.source)
    if origin != contract.training.data:
        raise DataError(f"{path}: data: got {origin!r}, expected {contract.training.data!r}, which it was trained on")
    runtime = Runtime(path, contract)
    if isinstance(recipe.data, SeriesSource):
        series = load_series(recipe.data)
        return series_figures(_forecast(runtime, contract, series), series, recipe.data)
    text = load_text(recipe.data)
    if text.vocabulary.symbols != tuple(contract.vocabulary.symbols):
        raise DataError(f"{path}: vocabulary: the text gives another one than the model has, expected the same text")
    return text_figures(_text_loss(runtime, contract, text), text)


def _forecast(runtime: Runtime, contract: pb.ModelContract, data: SeriesData) -> Floats:
    """Quantiles at every step of the series, float32 [N, K, Q], the state carried from its first step."""
    outputs = runtime.run({contract.inputs[0].name: data.values[None]}, SERIES_CHUNK)
    quantiles: Floats = outputs[contract.outputs[0].name][0].astype(np.float32, copy=False)
    return quantiles


def _text_loss(runtime: Runtime, contract: pb.ModelContract, data: TextData) -> float:
    """Mean cross-entropy of the test part in nats, over the same windows as training measures."""
    total, count, states = 0.0, 0, runtime.start(TEXT_EVALUATION_STREAMS)
    for tokens, targets in Windows(data.test, TEXT_EVALUATION_STREAMS, EVALUATION_STEPS):
        outputs, states = runtime.advance({contract.inputs[0].name: tokens}, states)
        nats = token_nats(outputs[contract.outputs[0].name], targets)
        total, count = total + float(nats.sum()), count + len(nats)
    return total / count


def token_nats(
    logits: npt.NDArray[np.generic],
    targets: npt.NDArray[np.generic],
) -> npt.NDArray[np.float64]:
    """Cross-entropy of every token that counts: logits [..., V], targets int64 [...]; float64, flat, in nats."""
    flat = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    wanted = targets.astype(np.int64).reshape(-1)
    kept = wanted != NO_TOKEN
    flat, wanted = flat[kept], wanted[kept]
    top = flat.max(axis=1)
    nats: npt.NDArray[np.float64] = (
        top + np.log(np.exp(flat - top[:, None]).sum(axis=1)) - flat[np.arange(len(wanted)), wanted]
    )
    return nats
