"""Modules with recurrent layers as anybody writes them, and their files as `eddy.export` leaves them.

Dimension key: B batch, T steps, L layers, H hidden.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from graphs import FileFamily, family_from_file
from torch import Tensor, nn

import eddy

# More threads only wait for each other.
torch.set_num_threads(1)


class Tagger(nn.Module):
    """A layer, a recurrent one of any kind, and a head."""

    def __init__(
        self, cell: type[nn.RNNBase], *, layers: int = 1, batch_first: bool = True, both: bool = False
    ) -> None:
        super().__init__()
        self.front = nn.Linear(3, 6)
        self.rnn = cell(6, 8, layers, batch_first=batch_first, bidirectional=both)
        self.head = nn.Linear(16 if both else 8, 5)

    def forward(self, x: Tensor) -> Any:
        """[B, T, 3] -> [B, T, 5]."""
        return self.head(self.rnn(torch.tanh(self.front(x)))[0])


class Named(Tagger):
    """Gives a dictionary, its final states too."""

    def forward(self, x: Tensor) -> Any:
        """[B, T, 3] -> two outputs and the states."""
        y, states = self.rnn(self.front(x))
        return {"classes": self.head(y), "gate": torch.sigmoid(y[..., :2]), "states": states}


class Stateful(Tagger):
    """Takes and gives its states itself."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        """[B, T, 3] and the states [L, B, H] -> the same."""
        y, state = self.rnn(self.front(x), state)
        return self.head(y), state


class Tokens(nn.Module):
    """Reads symbols and a number beside each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnn = nn.GRU(7, 8, 2, batch_first=True)
        self.start = nn.Parameter(torch.randn(2, 1, 8))

    def forward(self, symbol: Tensor, weight: Tensor) -> Tensor:
        """int64 [B, T] and float32 [B, T, 1] -> [B, T, 8]; begins with learned values."""
        both = torch.cat([self.embedding(symbol), weight], -1)
        return self.rnn(both, self.start.expand(-1, len(symbol), -1).contiguous())[0]


class Summary(Tagger):
    """Answers with one class a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 3] -> [B, 5]."""
        return self.head(self.rnn(self.front(x))[0].mean(1))


class Cells(nn.Module):
    """Writes its loop itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 3] -> [B, T, 4]."""
        h = c = torch.zeros(x.shape[0], 4)
        found = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            found.append(h)
        return torch.stack(found, 1)


def scripted(what: Any) -> Any:
    """A function or module under torch.jit.script, of which torch says that it is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(what)


@scripted
def lstm_loop(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    """A loop over steps that tracing does not write out; x [B, T, F], w [F, 4H], r [H, 4H] -> [B, T, H]."""
    h = torch.zeros([x.size(0), r.size(0)])
    c = torch.zeros([x.size(0), r.size(0)])
    found: list[Tensor] = []
    for t in range(x.size(1)):
        i, o, f, g = (x[:, t] @ w + h @ r).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        found.append(h)
    return torch.stack(found, 1)


class Scripted(nn.Module):
    """Writes its loop itself, as a scripted function."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = nn.Parameter(torch.randn(3, 16)), nn.Parameter(torch.randn(4, 16))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 3] -> [B, T, 5]."""
        return self.head(lstm_loop(x, self.w, self.r))


class Guessing(Tagger):
    """Begins where its input tells it."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 3] -> [B, T, 5]."""
        front = self.front(x)
        start = self.head(self.rnn(front[:, :1])[0][:, 0])
        start = torch.cat([start, start[:, :3]], -1)[None].contiguous()
        return self.head(self.rnn(front, start)[0])


X = torch.zeros(2, 7, 3)
STATE = (torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
# The module, its example, and how many states it has.
MODULES: dict[str, tuple[Any, Any, int]] = {
    "rnn": (lambda: Tagger(nn.RNN), X, 1),
    "gru": (lambda: Tagger(nn.GRU), X, 1),
    "lstm": (lambda: Tagger(nn.LSTM), X, 2),
    "gru-stacked": (lambda: Tagger(nn.GRU, layers=2), (X,), 2),
    "lstm-stacked": (lambda: Tagger(nn.LSTM, layers=2), {"x": X}, 4),
    "lstm-time-first": (lambda: Tagger(nn.LSTM, batch_first=False), torch.zeros(7, 2, 3), 2),
    "dictionary": (lambda: Named(nn.LSTM, layers=2), X, 4),
    "states-of-its-own": (lambda: Stateful(nn.LSTM), (X, STATE), 2),
    "scripted-loop": (Scripted, X, 2),
    "several-inputs": (Tokens, (torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 7, 1)), 2),
}


@cache
def exported(name: str) -> Path:
    """The module's file, in a repository of its own: `<repository>/<name>/1/model.onnx`."""
    root = Path(tempfile.mkdtemp(prefix="eddy-modules-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    make, example, _ = MODULES[name]
    torch.manual_seed(3)
    eddy.export(make(), example, root / name / "1")
    return root / name / "1" / "model.onnx"


@cache
def module_family(name: str) -> FileFamily:
    """What the tests of the service know of the module."""
    return family_from_file(exported(name))
