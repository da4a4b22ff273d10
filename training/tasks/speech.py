"""Speech: which speaker says a vowel, from a few frames of sound.

Owns: reading sequences of the .ts format, their split, and accuracy beside that of simple rules. Must not know torch
or models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eddy.training.answers import Answers
from eddy.training.data import Example, FixedExamples, Floats, SetData, Tokens, split_points
from eddy.training.errors import DataError
from eddy.training.fields import require
from eddy.training.figures import Figure
from eddy.training.packages import list_packaged, read_packaged
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

HEAD = "speaker"
SAMPLE_SEQUENCES = 9


@dataclass(frozen=True, slots=True)
class SpeechSource:
    """Utterances with a speaker each. source: `wheel:NAME:PATTERN` of .ts files, all of which are read."""

    kind: ClassVar[str] = "speech"

    source: str
    licence: str
    # Where chance begins that decides which utterance is in which part.
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.seed >= 0, "data.seed", self.seed, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechData(SetData):
    """Utterances; the speaker is asked for at every step."""

    labels: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]


def read_sequences(text: str, source: str) -> list[tuple[Floats, str]]:
    """The sequences of a .ts file: values float32 [T, F] and their class. Raises DataError.

    A line of data holds the F dimensions one after another, each T numbers between commas, then the class, with colons
    in between.
    """
    _, mark, data = text.partition("@data")
    if not mark:
        raise DataError(f"{source}: got no line @data, expected a .ts file")
    found = []
    for number, line in enumerate(filter(None, (line.strip() for line in data.splitlines())), start=1):
        *dimensions, label = line.split(":")
        try:
            values = np.array([[float(v) for v in one.split(",")] for one in dimensions], np.float32)
        except ValueError as error:
            raise DataError(f"{source}: sequence {number}: {error}, expected numbers of equal length") from error
        if values.ndim != 2 or not np.isfinite(values).all():
            raise DataError(f"{source}: sequence {number}: expected dimensions of finite numbers and a class")
        found.append((values.T.copy(), label))
    return found


class SpeechTask(SetTask):
    """The task of speech; see `Task`."""

    table = SpeechSource
    baselines: ClassVar[Mapping[str, str]] = {"nearest_mean": "nearest mean", "majority": "majority class"}

    def load(self, source: SpeechSource) -> SpeechData:
        """Read all files, shuffle by the seed, split and scale."""
        read = [
            sequence
            for name in list_packaged(source.source)
            for sequence in read_sequences(read_packaged(name).decode(), name)
        ]
        labels = tuple(sorted({label for _, label in read}))
        order = np.random.default_rng(source.seed).permutation(len(read))
        examples = tuple(
            Example({"values": read[i][0]}, {HEAD: np.full(len(read[i][0]), labels.index(read[i][1]), np.int64)})
            for i in order
        )
        first, second = split_points(len(examples))
        values = np.concatenate([example.inputs["values"] for example in examples[:first]]).astype(np.float64)
        return SpeechData(
            train=FixedExamples(examples[:first]),
            validation=examples[first:second],
            test=examples[second:],
            labels=labels,
            mean=tuple(map(float, values.mean(axis=0))),
            scale=tuple(map(float, values.std(axis=0))),
        )

    def ports(self, data: SpeechData, source: SpeechSource) -> tuple[Input, tuple[Head, ...]]:
        """Frames of sound in, logits of the speakers out."""
        return FeatureInput(data.mean, data.scale), (ClassHead(HEAD, data.labels),)

    def sample(self, data: SpeechData, source: SpeechSource) -> str:
        """The first test utterances as CSV: number of the utterance, values, speaker."""
        width = len(data.mean)
        rows = [",".join(["sequence", *(f"c{i + 1}" for i in range(width)), HEAD])]
        for number, example in enumerate(data.test[:SAMPLE_SEQUENCES]):
            speaker = data.labels[int(example.targets[HEAD].astype(np.int64)[0])]
            rows += [
                ",".join([str(number), *(f"{v:.6g}" for v in frame), speaker]) for frame in example.inputs["values"]
            ]
        return "\n".join(rows) + "\n"

    def measure(self, answers: Answers, data: SpeechData, source: SpeechSource) -> list[Figure]:
        """Accuracy after the last frame of an utterance, and at all of its frames."""
        train = data.train.epoch(1)
        nearest = NearestMean(_means(train), _speakers(train))
        wanted = _speakers(data.test)
        said = [chosen(one[HEAD]) for one in answers([example.inputs for example in data.test])]
        baselines = {
            "nearest_mean": nearest(_means(data.test)) == wanted,
            "majority": wanted == majority_class(_speakers(train)),
        }
        last = np.array([one[-1] for one in said])
        every = np.concatenate([one == speaker for one, speaker in zip(said, wanted, strict=True)])
        return [
            *accuracy_figures("accuracy", last == wanted, baselines),
            *accuracy_figures("accuracy_step", every, {}),
            Figure("utterances", len(wanted), ""),
        ]

    def describe(
        self,
        contract: pb.ModelContract,
        source: SpeechSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """What frames and classes are."""
        contract.inputs[0].meaning = "linear prediction coefficients of a frame of sound"
        frames = "the frames around" if contract.graphs.whole else "the frames so far"
        contract.outputs[0].meaning = f"logits of the speaker, from {frames}"

    def show_figures(self, values: Mapping[str, float], source: SpeechSource) -> str:
        """Accuracy of utterances and of frames."""
        rows = {"accuracy": "last frame of an utterance", "accuracy_step": "every frame"}
        return (
            f"Share of right answers on the {values['utterances']:.0f} utterances of the test part:\n\n"
            + accuracy_table(values, rows, self.baselines, "measured at")
            + "\n\nNearest mean: the speaker whose mean frame in the training part is nearest to the utterance's mean "
            "frame. Majority class:\nthe commonest speaker of the training part."
        )

    def show_data(self, source: SpeechSource, sample: str) -> str:
        """Split and sample."""
        return (
            "split 80/10/10 by utterance, at random.\n"
            "Nine men say two vowels; an utterance has 7 to 29 frames of 12 coefficients. Scaling was fitted on the "
            "training part and\n"
            f"lives inside the graph. `{sample}` holds the first {SAMPLE_SEQUENCES} utterances of the test part."
        )


def _means(examples: Sequence[Example]) -> Floats:
    return np.stack([example.inputs["values"].mean(axis=0) for example in examples]).astype(np.float32)


def _speakers(examples: Sequence[Example]) -> Tokens:
    return np.array([example.targets[HEAD][0] for example in examples], np.int64)
