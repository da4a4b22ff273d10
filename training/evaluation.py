"""Evaluation: the figures of a model file, measured again on its test part, without training and without torch.

Owns: which figures of a contract that replaces. The graph and its weights stay as they are. Order: the data is checked
against the contract first, so that no figure of other data gets in.
"""

from pathlib import Path

from eddy.training.answers import Answers
from eddy.training.card import write_card
from eddy.training.contract import load_model, precision_of, read_contract, write_contract
from eddy.training.data import describe_origin
from eddy.training.errors import ContractError, DataError
from eddy.training.figures import IN_FLOAT32, SPEEDUP, Figure
from eddy.training.recipe import Recipe, load_recipe
from eddy.training.tasks.registry import find_task
from eddy.v1 import contract_pb2 as pb

# Figures of training itself, which no measurement of the model file replaces.
KEPT = ("parameters", "best_epoch", "validation_loss")
# In the names of figures on other grids than the file's, which only training can measure.
OTHER_GRID = "_look_ahead_"


def evaluate_model(path: Path, recipe: Recipe | None = None) -> list[Figure]:
    """Measure a model file and its baselines on the test part; the figures go into its contract and its card.

    recipe: the one that it was trained by; None takes the shipped recipe that the contract names. Raises RecipeError
    where there is none, DataError where its data is not the data that the model was trained on, ContractError.
    """
    contract = read_contract(path)
    recipe = recipe or load_recipe(Path(contract.training.recipe.removesuffix(".toml")))
    if recipe.model_name(precision_of(contract)) != contract.name:
        raise ContractError(f"{path}: name: got recipe {recipe.name!r}, expected the one of {contract.name!r}")
    found = measure_model(path, contract, recipe)
    measured = {figure.name for figure in found}
    kept = [
        Figure(f.name, f.value, f.unit)
        for f in contract.training.figures
        if f.name in KEPT
        or f.name.startswith((IN_FLOAT32, SPEEDUP))
        or (OTHER_GRID in f.name and f.name not in measured)
    ]
    del contract.training.figures[:]
    contract.training.figures.extend(pb.Figure(name=f.name, value=f.value, unit=f.unit) for f in [*kept, *found])
    graph = load_model(path).graph.SerializeToString(deterministic=True)
    write_contract(path, contract)
    assert load_model(path).graph.SerializeToString(deterministic=True) == graph, "only metadata may change"
    write_card(path, recipe, contract)
    return [*kept, *found]


def measure_model(path: Path, contract: pb.ModelContract, recipe: Recipe) -> list[Figure]:
    """The figures of a model file on its recipe's test part. Raises DataError, ContractError."""
    origin = describe_origin(recipe.data.source)
    if origin != contract.training.data:
        raise DataError(f"{path}: data: got {origin!r}, expected {contract.training.data!r}, which it was trained on")
    task = find_task(recipe.data)
    data = task.load(recipe.data)
    if task.symbols(data) != (tuple(contract.vocabulary.symbols), tuple(contract.source_vocabulary.symbols)):
        raise DataError(f"{path}: vocabulary: the data gives another one than the model has, expected the same data")
    return task.measure(Answers(path, contract), data, recipe.data)
