"""Models that the client's tests step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import PortSpec, family
from loopback import write_model


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`history`, the same for digits 0 to 9 only (`digits`), and models with other ports."""
    root = tmp_path_factory.mktemp("models")
    for name in ("history", "lstm", "token-gru", "two-inputs"):
        write_model(root, name)
    digits = replace(family("history"), name="digits", inputs=(PortSpec("x", np.int64, (), (0, 9)),))
    write_model(root, "digits", model=digits.model())
    return root
