"""Activity: which exercise a person does, at every step of a smartwatch's recording.

Owns: reading the recordings, the split by person, windows for training, and accuracy beside that of simple rules. Must
not know torch or models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eddy.training.answers import Answers
from eddy.training.arrays import read_object
from eddy.training.data import Example, Floats, SetData, Tokens
from eddy.training.errors import DataError
from eddy.training.fields import require
from eddy.training.figures import Figure
from eddy.training.packages import read_packaged
from eddy.training.spec import ClassHead, FeatureInput, Head, Input
from eddy.training.tasks.classes import (
    NearestMean,
    SetTask,
    accuracy_figures,
    accuracy_table,
    chosen,
    majority_class,
)
from eddy.v1 import contract_pb2 as pb

HEAD = "activity"
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
# The recordings' own short names, and what they stand for.
EXERCISES = {
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward elevation",
    "IR": "internal rotation",
    "ER": "external rotation",
    "TRAP": "trapezius extension",
    "ROW": "upright row",
}


@dataclass(frozen=True, slots=True)
class ActivitySource:
    """Recordings of several people. source: `wheel:NAME:PATH` of a .npy file with X, y, subject and their labels."""

    kind: ClassVar[str] = "activity"

    source: str
    licence: str
    # Steps of a training window, about five seconds: long enough for a movement, short enough for gradients.
    window: int = 256
    # Windows that are drawn from each recording for every epoch.
    windows: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("window", "windows"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.seed >= 0, "data.seed", self.seed, "0 or more")


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording: values float32 [T, 6] in the file's own units, the exercise's number and the person's."""

    values: Floats
    label: int
    person: int

    def example(self, start: int, steps: int) -> Example:
        """Some of its steps, each with its exercise."""
        values = self.values[start : start + steps]
        return Example({"values": values}, {HEAD: np.full(len(values), self.label, np.int64)})


@dataclass(frozen=True, slots=True)
class DrawnWindows:
    """Windows at drawn places of the training recordings, others in every epoch."""

    recordings: tuple[Recording, ...]
    source: ActivitySource

    def epoch(self, number: int) -> Sequence[Example]:
        """The windows of an epoch."""
        rng = np.random.default_rng((self.source.seed, number))
        steps = self.source.window
        return tuple(
            recording.example(int(rng.integers(max(1, len(recording.values) - steps + 1))), steps)
            for recording in self.recordings
            for _ in range(self.source.windows)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityData(SetData):
    """Recordings by person. train_recordings: what the windows are drawn from."""

    train_recordings: tuple[Recording, ...]
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]


def read_recordings(source: str) -> tuple[tuple[Recording, ...], tuple[str, ...]]:
    """All recordings of a file and the exercises' names. Raises PackageError, DataError."""
    table = read_object(read_packaged(source), source)
    try:
        names = [str(name) for name in table["y_labels"]]
        if tuple(table["X_labels"]) != CHANNELS:
            raise DataError(f"{source}: channels: got {table['X_labels']}, expected {CHANNELS}")
        rows = zip(table["X"], table["y"], table["subject"], strict=True)
        found = tuple(Recording(np.asarray(x, np.float32), int(y), int(person)) for x, y, person in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: got {error!r}, expected recordings with X, y and subject") from error
    return found, tuple(EXERCISES.get(name, name) for name in names)


def split_people(recordings: Sequence[Recording]) -> tuple[tuple[Recording, ...], ...]:
    """80 % of the people for training, 10 % for validation, 10 % for the test, by their numbers: nobody is in two."""
    people = sorted({recording.person for recording in recordings})
    first, second = len(people) * 8 // 10, len(people) * 9 // 10
    parts = (people[:first], people[first:second], people[second:])
    return tuple(tuple(r for r in recordings if r.person in part) for part in parts)


def trailing_features(values: Floats, window: int) -> Floats:
    """Mean and deviation of the latest `window` steps, or as many as there are: [T, F] -> float32 [T, 2 F]."""
    wide = values.astype(np.float64)
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    number = (ends - starts)[:, None]
    sums, squares = (np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(v, axis=0)]) for v in (wide, wide**2))
    mean = (sums[ends] - sums[starts]) / number
    variance = np.maximum(0, (squares[ends] - squares[starts]) / number - mean**2)
    return np.concatenate([mean, np.sqrt(variance)], axis=1).astype(np.float32)


class ActivityTask(SetTask):
    """The task of activity; see `Task`."""

    table = ActivitySource
    baselines: ClassVar[Mapping[str, str]] = {"nearest_mean": "nearest mean", "majority": "majority class"}

    def load(self, source: ActivitySource) -> ActivityData:
        """Read, split by person and scale."""
        recordings, labels = read_recordings(source.source)
        train, validation, test = split_people(recordings)
        if not (train and validation and test):
            raise DataError(f"{source.source}: got {len(recordings)} recordings, expected some of at least 10 people")
        values = np.concatenate([recording.values for recording in train])
        return ActivityData(
            train=DrawnWindows(train, source),
            validation=tuple(r.example(0, len(r.values)) for r in validation),
            test=tuple(r.example(0, len(r.values)) for r in test),
            train_recordings=train,
            labels=labels,
            mean=tuple(map(float, values.mean(axis=0, dtype=np.float64))),
            scale=tuple(map(float, values.std(axis=0, dtype=np.float64))),
        )

    def ports(self, data: ActivityData, source: ActivitySource) -> tuple[Input, tuple[Head, ...]]:
        """Six channels in, logits of the exercises out."""
        return FeatureInput(data.mean, data.scale), (ClassHead(HEAD, data.labels),)

    def sample(self, data: ActivityData, source: ActivitySource) -> str:
        """The first test recording as CSV, with its exercise in the last column."""
        example = data.test[0]
        rows = [",".join([*CHANNELS, HEAD])]
        for value, label in zip(example.inputs["values"], example.targets[HEAD], strict=True):
            rows.append(",".join([*(f"{v:.4g}" for v in value), data.labels[label]]))
        return "\n".join(rows) + "\n"

    def measure(self, answers: Answers, data: ActivityData, source: ActivitySource) -> list[Figure]:
        """Accuracy at every step of whole recordings, and at their ends."""
        found = [chosen(said[HEAD]) for said in answers([example.inputs for example in data.test])]
        nearest = NearestMean(*_training_features(data, source))
        ruled = [nearest(trailing_features(_values(example), source.window)) for example in data.test]
        commonest = majority_class(np.array([r.label for r in data.train_recordings for _ in r.values]))
        labels = [example.targets[HEAD].astype(np.int64) for example in data.test]
        figures: list[Figure] = []
        for name, cut in (("accuracy", slice(None)), ("accuracy_end", slice(-1, None))):
            wanted, said, rule = (np.concatenate([one[cut] for one in each]) for each in (labels, found, ruled))
            baselines = {"nearest_mean": rule == wanted, "majority": wanted == commonest}
            figures += accuracy_figures(name, said == wanted, baselines)
        return [*figures, Figure("recordings", len(labels), "")]

    def describe(
        self,
        contract: pb.ModelContract,
        source: ActivitySource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """Channels and what the classes are."""
        contract.inputs[0].meaning = "acceleration in three directions and angular speed around them, of a wrist"
        contract.inputs[0].axes.add(name="channels", labels=CHANNELS)
        contract.outputs[0].meaning = "logits of the exercise being done"

    def show_figures(self, values: Mapping[str, float], source: ActivitySource) -> str:
        """Accuracy of steps and of recordings."""
        rows = {"accuracy": "every step", "accuracy_end": "last step of a recording"}
        return (
            f"Share of right answers on the {values['recordings']:.0f} recordings of the test part, by a person that "
            "training has not seen;\neach is read from its beginning to its end:\n\n"
            + accuracy_table(values, rows, self.baselines, "measured at")
            + f"\n\nNearest mean: mean and deviation of the latest {source.window} steps of each channel, and the "
            "class whose mean of them in the\ntraining part is nearest. Majority class: the commonest of the "
            "training part."
        )

    def show_data(self, source: ActivitySource, sample: str) -> str:
        """Split, windows and sample."""
        return (
            "split 80/10/10 by person.\n"
            f"Training reads windows of {source.window} steps, drawn anew for every epoch. Scaling was fitted on the "
            "training part and\n"
            f"lives inside the graph. `{sample}` holds one recording of the test part."
        )


def _training_features(data: ActivityData, source: ActivitySource) -> tuple[Floats, Tokens]:
    """Every 16th step's trailing features and its label."""
    features = [trailing_features(r.values, source.window)[::16] for r in data.train_recordings]
    labels = [np.full(len(f), r.label) for f, r in zip(features, data.train_recordings, strict=True)]
    return np.concatenate(features), np.concatenate(labels)


def _values(example: Example) -> Floats:
    return example.inputs["values"].astype(np.float32, copy=False)
