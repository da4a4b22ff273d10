"""Import fences: modules point one way, never at the service, and torch stays out of what must run without it."""

import ast
from pathlib import Path

import pytest

import eddy.training

FOLDER = Path(next(iter(eddy.training.__path__)))
# From the bottom up: a module imports from lower ranks only.
RANKS = (
    {"errors", "chart"},
    {"fields", "storage", "stop", "heatmap", "svg", "terminal", "builder"},
    {"spec"},
    {"contract", "table", "curve", "families.family", "families.projection", "families.quantised"}
    | {"families.recurrent.parts"},
    {"families.nodes", "families.recurrent.spec", "families.translation.spec", "families.bidirectional.spec"},
    {"families.shapes", "families.recurrent.convolution", "families.recurrent.examples", "families.translation.model"}
    | {f"families.bidirectional.{name}" for name in ("frames", "layer", "model")},
    {"families.recurrent.attention", "families.recurrent.levels"}
    | {"families.translation.graph", "families.bidirectional.latency"},
    {"families.recurrent.model", "families.bidirectional.graph"},
    {"families.recurrent.graph"},
    {"families.recurrent.family", "families.translation.family", "families.bidirectional.family"},
    {"families.registry"},
    {"runtime", "drawing", "comparison", "location", "packages", "pieces", "figures"},
    {"data", "catalogues", "decoding", "scores", "arrays", "video"},
    {"answers", "batches", "alignment", "generation", "windows", "tasks.series_data", "tasks.text_baselines"}
    | {"tasks.accents_data"},
    {"lexicon", "tasks.translation_data"},
    {"loss", "tasks.classes", "tasks.digits", "tasks.series_baselines", "tasks.task"},
    {"tasks.recall", "tasks.series", "tasks.text", "tasks.translation", "tasks.accents"},
    {"tasks.activity", "tasks.clips", "tasks.speech"},
    {"tasks.registry"},
    {"recipe"},
    {"card", "checkpoint", "set_pass", "stream_pass", "trainer", "study.job", "study.spread"},
    {"study.result"},
    {"study.section", "study.gradient", "study.look", "study.speed", "study.pool"},
    {f"study.{name}" for name in ("recall", "cells", "depth", "look_ahead", "clips", "attention", "page")},
    {"study.plan"},
    {"reference", "run", "evaluation", "probe", "speedup"},
    {"train", "verify", "plot", "class_plot", "flat"},
    {"export", "quantize", "foreign_reference"},
    {"foreign"},
    {"study.trial"},
    {"actions", "package_actions", "study_actions"},
    {"commands"},
    {"__main__"},
)
WITH_TORCH = (
    {
        "checkpoint",
        "flat",
        "foreign",
        "foreign_reference",
        "loss",
        "set_pass",
        "stream_pass",
        "trainer",
        "run",
        "train",
        "export",
        "reference",
    }
    | {f"study.{name}" for name in ("gradient", "speed", "trial")}
    | {
        f"families.{name}"
        for name in (
            "bidirectional.family",
            "bidirectional.frames",
            "bidirectional.graph",
            "bidirectional.latency",
            "bidirectional.layer",
            "bidirectional.model",
            "family",
            "nodes",
            "projection",
            "recurrent.attention",
            "recurrent.convolution",
            "recurrent.family",
            "recurrent.graph",
            "recurrent.model",
            "recurrent.levels",
            "registry",
            "translation.family",
            "translation.graph",
            "translation.model",
        )
    }
)
WITHOUT_TORCH = sorted(set().union(*RANKS) - WITH_TORCH)


def path_of(name: str) -> Path:
    """The file of a module, its name below `eddy.training`."""
    return FOLDER.joinpath(*name.split(".")).with_suffix(".py")


def imports(name: str, *, only_at_load: bool = False) -> set[str]:
    """Full names of the modules that a module of training imports, anywhere or only while it loads."""
    tree = ast.parse(path_of(name).read_text(encoding="utf-8"))
    nodes = tree.body if only_at_load else list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_every_module_has_a_rank() -> None:
    """A new module must say where it stands."""
    found = {".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py")}
    assert {name for name in found if not name.endswith("__init__")} == set().union(*RANKS)


@pytest.mark.parametrize(("rank", "name"), [(rank, name) for rank, names in enumerate(RANKS) for name in sorted(names)])
def test_modules_import_from_lower_ranks_only(rank: int, name: str) -> None:
    """No cycles, and nothing of the service or the clients; inspection knows nothing of training."""
    allowed = set().union(*RANKS[:rank])
    ours = {
        module
        for module in imports(name)
        if module.split(".")[0] == "eddy" and not module.startswith("eddy.inspection.")
    }
    assert ours <= {f"eddy.training.{lower}" for lower in allowed} | {"eddy.v1"}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_torch_is_not_needed_to_load(name: str) -> None:
    """These modules load without torch; what they import at load does too (checked by name, level by level)."""
    loaded = {module.removeprefix("eddy.training.") for module in imports(name, only_at_load=True)}
    assert "torch" not in {module.split(".")[0] for module in loaded}
    assert not loaded & WITH_TORCH


@pytest.mark.parametrize("name", sorted(set().union(*RANKS) - {"runtime"}))
def test_onnxruntime_has_one_door(name: str) -> None:
    """Only `runtime` imports ONNX Runtime, so telemetry is switched off before every first import."""
    assert "onnxruntime" not in {module.split(".")[0] for module in imports(name)}
