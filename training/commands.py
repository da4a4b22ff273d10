"""The command line of training: `train`, `export`, `verify` and `models`.

Owns: arguments, messages and exit codes (0 done, 1 failed for a stated reason, such as a
file that cannot be written). torch is imported only by the
commands that need it, so that `verify` of a bare model file runs without.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eddy.training.errors import TrainingError

RUNS = Path("runs")
MODELS = Path("models")


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands; each parser sets `func`, which takes the parsed arguments and returns an exit code."""
    train = subparsers.add_parser("train", help="train a recipe; writes a checkpoint and its figures")
    train.add_argument("recipe", type=Path, help="a TOML file, or the name of a shipped recipe")
    train.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME)")
    _add_machine(train)
    train.set_defaults(func=_guarded(_train))

    export = subparsers.add_parser("export", help="export a checkpoint as a verified ONNX step graph with its contract")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--output", type=Path, help="folder of the model (default: models/NAME/VERSION)")
    export.set_defaults(func=_guarded(_export))

    verify = subparsers.add_parser("verify", help="prove that a model answers the same however calls are cut")
    verify.add_argument("model", type=Path, help="an ONNX file with a contract; the verdict is written into it")
    verify.add_argument("--checkpoint", type=Path, help="compare with PyTorch too")
    verify.add_argument("--limit", type=float, default=1e-5, help="largest relative difference (default: 1e-5)")
    verify.set_defaults(func=_guarded(_verify))

    models = subparsers.add_parser("models", help="train and export every shipped recipe")
    models.add_argument("names", nargs="*", help="recipes to make (default: all)")
    models.add_argument("--output", type=Path, default=MODELS, help="the model repository (default: models)")
    models.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs (default: runs)")
    _add_machine(models)
    models.set_defaults(func=_guarded(_models))


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    # More threads gain nothing at these sizes, and only one thread gives the same weights every time.
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _guarded(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """The command with its typed errors turned into a message on standard error and exit code 1."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            command(arguments)
        except (TrainingError, OSError) as error:
            print(f"eddy {arguments.command}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        return 0

    return run


def _train(arguments: argparse.Namespace) -> None:
    from eddy.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    _train_into(arguments.recipe, arguments.output or RUNS / recipe.name, arguments)


def _train_into(recipe_path: Path, directory: Path, arguments: argparse.Namespace) -> Path:
    """Train one recipe and show its figures; returns the checkpoint's path."""
    import torch

    from eddy.training.checkpoint import load_checkpoint
    from eddy.training.recipe import load_recipe
    from eddy.training.train import train

    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(recipe_path)
    path = train(recipe, directory, device=arguments.device, show_progress=not arguments.quiet)
    table = Table("figure", "value", "unit", title=recipe.name)
    for figure in load_checkpoint(path).figures:
        table.add_row(figure.name, f"{figure.value:.6g}", figure.unit)
    Console().print(table)
    print(path)
    return path


def _export(arguments: argparse.Namespace) -> None:
    from eddy.training.checkpoint import load_checkpoint

    recipe = load_checkpoint(arguments.checkpoint).recipe
    _export_into(arguments.checkpoint, arguments.output or MODELS / recipe.name / str(recipe.version))


def _export_into(checkpoint: Path, directory: Path) -> None:
    from eddy.training.export import export_checkpoint

    print(directory / "model.onnx", export_checkpoint(checkpoint, directory), sep=": ")


def _verify(arguments: argparse.Namespace) -> None:
    from eddy.training.verify import verify

    print(arguments.model, verify(arguments.model, arguments.checkpoint, limit=arguments.limit), sep=": ")


def _models(arguments: argparse.Namespace) -> None:
    from eddy.training.recipe import RECIPES, load_recipe

    for name in arguments.names or sorted(path.stem for path in RECIPES.glob("*.toml")):
        recipe = load_recipe(Path(name))
        checkpoint = _train_into(Path(name), arguments.runs / recipe.name, arguments)
        _export_into(checkpoint, arguments.output / recipe.name / str(recipe.version))
