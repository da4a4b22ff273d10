"""Models that the client's tests step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import PortSpec, family
from loopback import write_model
from toys import STATES, write_ahead, write_primed, write_translator


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`history`, the same for digits 0 to 9 only (`digits`), and models with other ports."""
    root = tmp_path_factory.mktemp("models")
    for name in ("history", "lstm", "token-gru", "two-inputs"):
        write_model(root, name)
    digits = replace(family("history"), name="digits", inputs=(PortSpec("x", np.int64, (), (0, 9)),))
    write_model(root, "digits", model=digits.model())
    return root


@pytest.fixture(scope="session")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ahead`, which looks ahead, the same for digits 0 to 9 only (`ahead-digits`), and `history`, which does not."""
    root = tmp_path_factory.mktemp("ahead")
    write_model(root, "history")
    write_ahead(root)
    write_ahead(root, "ahead-digits", (0, 9))
    return root


@pytest.fixture(scope="session")
def primed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`primed`, which reads pieces first, `primed-characters`, whose source is characters, and `history`."""
    root = tmp_path_factory.mktemp("primed")
    history = family("history")
    states = tuple(replace(state, values=STATES) for state in history.states)
    write_model(root, "history", model=replace(history, states=states).model())
    write_primed(root)
    write_primed(root, "primed-characters", "character", has_unknown=False)
    return root


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`translator`, which reads a source and writes until its end symbol, and `token-gru`, which does neither."""
    root = tmp_path_factory.mktemp("translator")
    write_translator(root)
    write_model(root, "token-gru")
    return root
