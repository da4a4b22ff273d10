"""The layout of the repository: which module may import which, and where each outside library may be used."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("inspection", "service", "training", "clients")
COMMANDS = "src/eddy/commands"

# A module imports modules of lower ranks only; equal ranks do not know each other.
RANKS = {
    name: rank
    for rank, names in enumerate(
        (
            (
                "alignment",
                "errors",
                "histogram",
                "index",
                "instruction_set",
                "lifecycle",
                "polling",
                "ports",
                "runs",
                "stops",
                "address",
                "certificates",
                "repository",
            ),
            (
                "config",
                "inventory",
                "arena",
                "cells",
                "contract",
                "cost",
                "credentials",
                "fields",
                "finite",
                "gate",
                "http",
                "kept",
                "metrics",
                "runtime",
                "sampling",
                "tensors",
                "values",
            ),
            ("health", "isolation", "record_model", "vocabulary"),
            (
                "answer",
                "example",
                "graph",
                "inspector",
                "oip_tensors",
                "pages",
                "record_format",
                "replies",
                "sessions",
                "sources",
                "start",
            ),
            (
                "backing",
                "chunk",
                "package",
                "record",
                "record_index",
                "record_log",
                "selftest",
                "sqlite_rows",
                "states",
                "store",
                "streams",
            ),
            ("redis_store", "sqlite_store", "store_thread"),
            ("residence", "stores"),
            ("admission", "binding", "stats", "tick"),
            ("bulk", "engine", "queue"),
            ("scheduler",),
            ("model",),
            ("entry", "prefixes", "roster"),
            ("adoption", "changes", "checkpointer", "turns"),
            ("calls", "catalog", "dispatcher", "endings", "codec", "layout"),
            ("handover", "recall", "watcher"),
            ("durability",),
            ("persistence",),
            ("opening", "takeover"),
            ("host", "oip_codec"),
            ("forks", "mixed", "restarts", "snapshots", "totals"),
            (
                "coalescer",
                "connection",
                "generation",
                "model_calls",
                "oip_layout",
                "oip_sequences",
                "session_calls",
                "unary",
            ),
            ("beams", "infer", "oip_coalescer", "stream"),
            ("generate", "oip_infer"),
            ("oip_models", "oip_stream"),
            ("oip_calls",),
            ("server",),
            ("main",),
        )
    )
    for name in names
}

# Outside library -> where it may be imported, beside tests and benchmarks.
FENCES = {
    "grpc": {
        "service/calls.py",
        "service/connection.py",
        "service/credentials.py",
        "service/oip_calls.py",
        "service/server.py",
        "clients",
    },
    "grpc_health": {"service/server.py", "clients"},
    "grpc_reflection": {"service/server.py"},
    "grpc_status": {"service/oip_calls.py", "service/server.py", "clients"},
    "onnxruntime": {"service/runtime.py", "training"},
    "redis": {"service/redis_store.py"},
    "sqlite3": {"service/sqlite_store.py"},
    "prometheus_client": {"service/metrics.py", "service/http.py", "service/main.py"},
    "torch": {"training"},
}


def _modules(*parts: str) -> Iterator[tuple[str, ast.Module]]:
    for part in parts:
        for path in sorted((ROOT / part).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported, in functions too; `from a import b` is also `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name comes from"
            yield str(node.module)
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_every_service_module_has_a_rank() -> None:
    """A new module takes its place in the order."""
    names = {path.stem for path in (ROOT / "service").glob("*.py")} - {"__init__"}
    assert names == set(RANKS)


@pytest.mark.parametrize("name", RANKS)
def test_imports_point_one_way(name: str) -> None:
    """A service module imports service modules of lower ranks only."""
    tree = ast.parse((ROOT / "service" / f"{name}.py").read_text(encoding="utf-8"))
    imported = {used.split(".")[2] for used in _imports(tree) if used.startswith("eddy.service.")}
    wrong = {other for other in imported if RANKS[other] >= RANKS[name]}
    assert not wrong, f"{name} (rank {RANKS[name]}) imports {wrong}"


def test_inspection_has_an_order() -> None:
    """No module of inspection imports, by however many others, one that imports it; all stand in the architecture."""
    paths = {path.stem: path for path in (ROOT / "inspection").glob("*.py") if path.stem != "__init__"}
    imported = {
        name: {
            used.split(".")[2]
            for used in _imports(ast.parse(path.read_text(encoding="utf-8")))
            if used.startswith("eddy.inspection.")
        }
        for name, path in paths.items()
    }
    list(graphlib.TopologicalSorter(imported).static_order())
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Models of others")[2]
    missing = {name for name in paths if f"`{name}`" not in page.partition("\n## ")[0]}
    assert not missing


@pytest.mark.parametrize("library", FENCES)
def test_a_library_stays_behind_its_fence(library: str) -> None:
    """An outside library is imported only where the design says."""
    allowed = FENCES[library]
    users = {
        path for path, tree in _modules(*PARTS, COMMANDS) if any(_is_within(name, library) for name in _imports(tree))
    }
    strays = {path for path in users if path not in allowed and path.split("/")[0] not in allowed}
    assert not strays, f"{library} is imported by {strays}"
    assert users, f"nobody imports {library}: the fence is out of date"


@pytest.mark.parametrize(
    ("part", "stranger"),
    [
        ("service", "eddy.training"),
        ("service", "eddy.clients"),
        ("service", "eddy.commands"),
        ("training", "eddy.service"),
        ("clients", "eddy.service"),
        ("clients", "eddy.training"),
        ("inspection", "eddy.service"),
        ("inspection", "eddy.training"),
        ("inspection", "eddy.clients"),
        ("clients", "eddy.inspection"),
    ],
)
def test_parts_do_not_know_each_other(part: str, stranger: str) -> None:
    """Service, training and clients share the protocol; the first two inspection, too; and nothing else."""
    strays = {path for path, tree in _modules(part) if any(_is_within(name, stranger) for name in _imports(tree))}
    assert not strays, f"{strays} import {stranger}"


def test_every_module_says_what_it_is() -> None:
    """A module begins with a docstring."""
    silent = [path for path, tree in _modules(*PARTS, COMMANDS, "tests", "benchmarks") if not ast.get_docstring(tree)]
    assert not silent


def test_every_test_says_what_it_shows() -> None:
    """A test has a docstring."""
    silent = [
        f"{path}::{node.name}"
        for path, tree in _modules("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent
