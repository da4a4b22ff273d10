"""Untrained models of every architecture that training knows, in folders as the service finds them.

Owns the list of names and the writing, once a process. A variant that training registers is in every test that is
parametrised over `EXAMPLES`.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from graphs import FileFamily, family_from_file

from eddy.training.export import write_example
from eddy.training.families.registry import all_examples

# More threads only wait for each other.
torch.set_num_threads(1)

EXAMPLES = tuple(all_examples())
# The hand-made graphs have names of their own.
_PREFIX = "example-"


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="eddy-examples-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def example_folder(name: str) -> Path:
    """The model's folder in a repository of its own: `<repository>/<model>/1`.

    Not verified here, so its contract states no tolerance: all comparisons are bit for bit.
    """
    folder = _root() / name / f"{_PREFIX}{name}" / "1"
    write_example(name, folder, is_verified=False)
    return folder


@cache
def example(name: str) -> FileFamily:
    """What the tests know of the model."""
    return family_from_file(example_folder(name) / "model.onnx")
