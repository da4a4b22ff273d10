"""Actions: what the training commands do with their arguments, and what they say.

Owns: messages on standard output, and which places commands read and write by themselves. Errors go up as they are.
torch is imported only inside the actions that need it.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from eddy.training.contract import STEP_FILE, read_contract
from eddy.training.curve import chart_curve, read_curve
from eddy.training.errors import LocationError, OptionError, Stopped
from eddy.training.figures import HIGHER, Figure, compare_figures
from eddy.training.location import CHECKPOINT_FILE, MODELS, RUNS, find_model, find_model_or_checkpoint, is_run
from eddy.training.recipe import Recipe, load_recipe, shipped_recipes
from eddy.training.spec import FLOAT32
from eddy.training.stop import Stop
from eddy.training.tasks.registry import BASELINES
from eddy.v1 import contract_pb2 as pb

if TYPE_CHECKING:  # `plot` loads ONNX Runtime, which other actions do without.
    from eddy.training.chart import Chart
    from eddy.training.plot import Surprise

# From this many bits on a character is shown in the strongest colour; it is a chance of one in 256.
MOST_BITS = 8.0
SURPRISE_STYLES = ("", "on color(22)", "on color(58)", "on color(94)", "on color(130)", "on color(160)")


def train(arguments: argparse.Namespace) -> None:
    """`eddy train`: one recipe into a run's folder, or shipped recipes into the model repository."""
    for option in ("checkpoint_steps", "max_steps", "threads"):
        came = getattr(arguments, option)
        if came is not None and came < 1:
            raise OptionError(f"--{option.replace('_', '-')}: got {came}, expected at least 1")
    if arguments.resume and arguments.overwrite:
        raise OptionError("--overwrite: got it with --resume, expected one of them")
    stop = Stop(arguments.max_steps)
    with stop.on_signals():
        if arguments.shipped:
            _train_shipped(arguments, stop)
        else:
            _train_one(arguments, stop)


def _train_one(arguments: argparse.Namespace, stop: Stop) -> None:
    if len(arguments.recipe) != 1:
        raise OptionError(
            f"recipe: got {len(arguments.recipe)}, expected one: a TOML file or one of {', '.join(shipped_recipes())}"
        )
    for option in ("models", "runs"):
        if getattr(arguments, option) is not None:
            raise OptionError(f"--{option}: got it without --shipped, expected --output DIR for one recipe")
    recipe = load_recipe(Path(arguments.recipe[0]))
    directory = arguments.output or RUNS / recipe.name
    output = ["--output", str(directory)] if arguments.output else []
    _train_into(recipe, directory, arguments, stop, ["train", arguments.recipe[0], *output])


def _train_shipped(arguments: argparse.Namespace, stop: Stop) -> None:
    if arguments.output is not None:
        raise OptionError("--output: got it with --shipped, expected --models DIR and --runs DIR")
    models, runs = arguments.models or MODELS, arguments.runs or RUNS
    places = [word for option in ("models", "runs") for word in _option(option, getattr(arguments, option))]
    command = ["train", "--shipped", *arguments.recipe, *places]
    for name in arguments.recipe or shipped_recipes():
        recipe = load_recipe(Path(name))
        checkpoint = _train_into(recipe, runs / recipe.name, arguments, stop, command)
        for precision in recipe.precisions:
            directory = models / recipe.model_name(precision) / str(recipe.version)
            _export_into(checkpoint, directory, precision)
            _evaluate_into(directory / STEP_FILE, recipe)


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [f"--{name}", str(value)]


def _train_into(recipe: Recipe, directory: Path, arguments: argparse.Namespace, stop: Stop, command: list[str]) -> Path:
    """Train one recipe and show its figures; returns the checkpoint's path. command: what resumes it, but for that."""
    import torch

    from eddy.training.checkpoint import load_checkpoint
    from eddy.training.train import train as run

    torch.set_num_threads(arguments.threads)
    path = directory / CHECKPOINT_FILE
    try:
        run(
            recipe,
            directory,
            device=arguments.device,
            show_progress=not arguments.quiet,
            # Of several recipes some may not have begun.
            resume=arguments.resume and (path.exists() or not arguments.shipped),
            overwrite=arguments.overwrite,
            checkpoint_steps=arguments.checkpoint_steps,
            stop=stop,
        )
    except Stopped as stopped:
        again = [*command, *_option("device", arguments.device)]
        again += ["--threads", str(arguments.threads)] if arguments.threads != 1 else []
        raise Stopped(f"{stopped}; resume: eddy {shlex.join(again)} --resume", stopped.exit_code) from None
    show_figures(recipe.name, load_checkpoint(path).figures)
    print(path)
    return path


def show_figures(title: str, figures: tuple[Figure, ...] | list[Figure]) -> None:
    """Figures beside the baselines', then those that have none, as tables on standard output."""
    console = Console()
    compared = compare_figures(figures, BASELINES)
    names = [name for name in BASELINES if any(name in comparison.baselines for comparison in compared)]
    title = f"{title}, test part: more (↑) or less (↓) is better"
    beside = Table(Column("figure", no_wrap=True), "unit", "this model", *(BASELINES[n] for n in names), title=title)
    for comparison in compared:
        figure = comparison.figure
        better = "↑" if figure.name.startswith(HIGHER) else "↓"
        cells = [f"{comparison.baselines[name]:.4g}" if name in comparison.baselines else "" for name in names]
        beside.add_row(f"{figure.name} {better}", figure.unit, f"{figure.value:.4g}", *cells)
    console.print(beside)
    alone = Table("figure", "value", "unit")
    shown = {c.figure.name for c in compared} | {f"{c.figure.name}_{name}" for c in compared for name in c.baselines}
    for figure in figures:
        if figure.name not in shown:
            alone.add_row(figure.name, f"{figure.value:.6g}", figure.unit)
    console.print(alone)


def export(arguments: argparse.Namespace) -> None:
    """`eddy export`: a checkpoint into a folder of the model repository."""
    from eddy.training.checkpoint import load_checkpoint

    recipe = load_checkpoint(arguments.checkpoint).recipe
    directory = arguments.output or MODELS / recipe.model_name(arguments.precision) / str(recipe.version)
    adopts = [version.strip() for version in arguments.adopts.split(",") if version.strip()]
    _export_into(arguments.checkpoint, directory, arguments.precision, arguments.block, arguments.look_ahead, adopts)
    if arguments.precision != FLOAT32:
        figures = read_contract(directory / STEP_FILE).training.figures
        show_figures(str(directory), [Figure(figure.name, figure.value, figure.unit) for figure in figures])


def _export_into(
    checkpoint: Path,
    directory: Path,
    precision: str,
    block: int | None = None,
    look_ahead: int | None = None,
    adopts: Sequence[str] = (),
) -> None:
    from eddy.training.export import export_checkpoint

    report = export_checkpoint(
        checkpoint, directory, block_steps=block, look_ahead_steps=look_ahead, precision=precision, adopts=adopts
    )
    print(directory / STEP_FILE, report, sep=": ")


def quantize(arguments: argparse.Namespace) -> None:
    """`eddy quantize`: a model file with 8-bit recurrent weights."""
    from eddy.training.quantize import quantize_model

    report = quantize_model(find_model(arguments.model), arguments.output)
    print(arguments.output / "model.onnx", report, sep=": ")


def verify(arguments: argparse.Namespace) -> None:
    """`eddy verify`: the verdict on a model file."""
    from eddy.training.verify import verify as prove

    print(arguments.model, prove(arguments.model, arguments.checkpoint, limit=arguments.limit), sep=": ")


def evaluate(arguments: argparse.Namespace) -> None:
    """`eddy evaluate`: a model's figures, measured again."""
    recipe = load_recipe(arguments.recipe) if arguments.recipe else None
    _evaluate_into(find_model(arguments.model), recipe)


def _evaluate_into(path: Path, recipe: Recipe | None) -> None:
    from eddy.training.evaluation import evaluate_model

    show_figures(str(path), evaluate_model(path, recipe))


def sample(arguments: argparse.Namespace) -> None:
    """`eddy sample`: text on standard output, character by character."""
    from eddy.training.generation import OnnxStream, Sampling, continue_text

    sampling = Sampling(arguments.length, arguments.temperature, arguments.top_k, arguments.seed)
    path = find_model_or_checkpoint(arguments.model)
    if path.suffix == ".pt":
        from eddy.training.reference import TorchStream

        stream: OnnxStream | TorchStream = TorchStream(path)
    else:
        stream = OnnxStream(path)
    symbols = stream.vocabulary.symbols
    prompt = ("\n" if "\n" in symbols else symbols[1]) if arguments.prompt is None else arguments.prompt
    unknown = sorted(set(prompt) - set(symbols))
    if unknown:
        print(f"eddy sample: not in the vocabulary, read as unknown: {' '.join(map(repr, unknown))}", file=sys.stderr)
    written = continue_text(stream, stream.vocabulary, prompt, sampling)
    first = next(written)  # Nothing is printed of a prompt that is refused.
    print(prompt.lstrip("\n") + first, end="", flush=True)
    for character in written:
        print(character, end="", flush=True)
    print()


def plot(arguments: argparse.Namespace) -> None:
    """`eddy plot`: a chart in the terminal or in a file."""
    from eddy.training.storage import write_whole
    from eddy.training.svg import draw_svg
    from eddy.training.terminal import draw_terminal

    if arguments.output is not None and arguments.output.suffix != ".svg":
        raise OptionError(f"--output: got {str(arguments.output)!r}, expected a file name that ends in .svg")
    chart, surprises = _chart_run(arguments) if is_run(arguments.model) else _chart_model(arguments)
    if arguments.output is not None:
        write_whole(arguments.output, draw_svg(chart).encode())
        print(arguments.output)
        return
    console = Console()
    console.print(draw_terminal(chart), crop=False, overflow="ignore", no_wrap=True)
    if surprises:
        console.print(colour_surprise(surprises))


def _chart_run(arguments: argparse.Namespace) -> "tuple[Chart, list[Surprise]]":
    """A run's learning curve. Raises LocationError before the end of its first epoch."""
    _refuse_options(arguments, ("data", "target", "horizon", "start", "steps"), "a run's folder")
    curve = read_curve(arguments.model)
    if not curve.epochs:
        raise LocationError(f"{arguments.model}: got a run without an ended epoch, expected at least one")
    return chart_curve(curve), []


def _chart_model(arguments: argparse.Namespace) -> "tuple[Chart, list[Surprise]]":
    """A model's answers on unseen data, and for a text what each character cost."""
    from eddy.training.contract import read_contract
    from eddy.training.plot import FORECAST_STEPS, Window, chart_forecast, chart_text, find_data, read_surprise

    path = find_model(arguments.model)
    data = find_data(path, arguments.data)
    contract = read_contract(path)
    if contract.task == pb.TASK_CLASSIFICATION and not contract.vocabulary.symbols:
        from eddy.training.class_plot import chart_classes

        _refuse_options(arguments, ("horizon", "steps"), "a model of classes")
        return chart_classes(path, data, arguments.target, arguments.start or 0), []
    if contract.vocabulary.symbols:
        _refuse_options(arguments, ("target", "horizon", "start", "steps"), "a text model")
        return chart_text(path, data), read_surprise(path, data)
    steps = FORECAST_STEPS if arguments.steps is None else arguments.steps
    window = Window(arguments.target, arguments.horizon, arguments.start or 0, steps)
    return chart_forecast(path, data, window, whole=arguments.data is not None), []


def _refuse_options(arguments: argparse.Namespace, options: tuple[str, ...], what: str) -> None:
    for option in options:
        if getattr(arguments, option) is not None:
            raise OptionError(
                f"--{option}: got it with {what}, expected a forecaster or none of --{', --'.join(options)}"
            )


def colour_surprise(surprises: "list[Surprise]") -> Text:
    """A text whose characters stand on the redder a ground the more bits they cost, with the scale above."""
    text = Text("\nbits a character cost: ", no_wrap=False)
    step = MOST_BITS / (len(SURPRISE_STYLES) - 1)
    for i, style in enumerate(SURPRISE_STYLES):
        text.append(f" {i * step:.1f}{'+' if i == len(SURPRISE_STYLES) - 1 else ''} ", style)
    text.append("\n\n")
    for surprise in surprises:
        style = SURPRISE_STYLES[min(len(SURPRISE_STYLES) - 1, int(surprise.bits / step))]
        text.append(surprise.character, style)
    return text
