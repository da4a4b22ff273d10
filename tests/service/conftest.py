"""The model that most tests of the service step: its answers spell what was applied."""

from pathlib import Path

import pytest
from loopback import write_model


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`history` alone."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "history")
    return root
