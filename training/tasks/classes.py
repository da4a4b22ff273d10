"""Classes: what tasks that name one of several classes have in common.

Owns: accuracies beside those of simple baselines, the nearest class mean, and the parts of a task that are the same for
all sets of separate sequences. Must not know torch or any one data set.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from eddy.training.answers import Answers
from eddy.training.chart import Level
from eddy.training.curve import Measure
from eddy.training.data import Array, Floats, SetData, Tokens
from eddy.training.figures import SHARE, Figure, share_cells

Booleans = npt.NDArray[np.bool_]


class SetTask:
    """What is the same for every task of separate sequences that are answered by classes; see `Task`."""

    def symbols(self, data: SetData) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The data's own."""
        return data.symbols, data.source_symbols

    def curve(self, data: SetData, source: Any) -> tuple[Measure, tuple[Level, ...]]:
        """Bits of an answer, the mean over all heads' answers."""
        return Measure("bits per answer", 1 / float(np.log(2))), ()

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """None: the figures say it."""
        return "", ""


def accuracy_figures(name: str, right: Booleans, baselines: Mapping[str, Booleans]) -> list[Figure]:
    """The share of right answers, and those of baselines under their names."""
    return [
        Figure(name, float(right.mean()), SHARE),
        *(Figure(f"{name}_{key}", float(other.mean()), SHARE) for key, other in baselines.items()),
    ]


def accuracy_table(
    values: Mapping[str, float], rows: Mapping[str, str], baselines: Mapping[str, str], head: str
) -> str:
    """A Markdown table of accuracies: `rows` maps figures to what they are called, `baselines` their ends."""
    ends = ("", *(f"_{name}" for name in baselines))
    lines = [f"| {head} | this model | {' | '.join(baselines.values())} |", "|---" * (len(ends) + 1) + "|"]
    lines += [f"| {label} | {share_cells(values, figure, ends)} |" for figure, label in rows.items()]
    return "\n".join(lines)


def chosen(logits: Array) -> Tokens:
    """The likeliest class, [..., V] -> int64 [...]."""
    found: Tokens = np.argmax(logits, axis=-1).astype(np.int64)
    return found


def majority_class(labels: Tokens) -> int:
    """The commonest label of the training part."""
    return int(np.bincount(labels).argmax())


class NearestMean:
    """The class whose mean is nearest, features standardised; fitted on the training part."""

    def __init__(self, features: Floats, labels: Tokens) -> None:
        """features: float32 [N, F]; labels: int64 [N], every class at least once."""
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        spread = (features - self._mean) / self._scale
        self._centres = np.stack([spread[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])

    def __call__(self, features: Floats) -> Tokens:
        """[N, F] -> int64 [N]."""
        spread = (features - self._mean) / self._scale
        distances = np.square(spread).sum(axis=1)[:, None] - 2 * spread @ self._centres.T
        found: Tokens = np.argmin(distances + np.square(self._centres).sum(axis=1), axis=1).astype(np.int64)
        return found
