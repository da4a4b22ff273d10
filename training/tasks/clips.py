"""Clips: which digit is seen in a short film, and which way it goes, frame by frame.

Owns: the split by image, accuracies, and what a card says of them; `digits` draws the clips. Must not know torch or
models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eddy.training.answers import Answers
from eddy.training.data import Example, SetData, Tensors, Tokens, split_points
from eddy.training.figures import Figure
from eddy.training.spec import ClassHead, FrameInput, Head, Input
from eddy.training.tasks.classes import Booleans, SetTask, accuracy_figures, accuracy_table, chosen
from eddy.training.tasks.digits import (
    DIGIT,
    DIGITS,
    DIRECTION,
    DIRECTIONS,
    FRAMES,
    ClipsSource,
    DrawnClips,
    clip_examples,
    read_images,
)
from eddy.v1 import contract_pb2 as pb

SAMPLE_CLIPS = 6
# Frames at which accuracy is stated, beside the last.
STATED = (1, 2, 4)
# Seeds of the two fixed parts.
_VALIDATION, _TEST = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsData(SetData):
    """Clips. train_digits: the digits of the training part's images."""

    train_digits: Tokens


class ClipsTask(SetTask):
    """The task of clips; see `Task`."""

    table = ClipsSource
    baselines: ClassVar[Mapping[str, str]] = {
        "one_frame": "the last frame alone",
        "shuffled": "frames in random order",
        "majority": "majority class",
    }

    def load(self, source: ClipsSource) -> ClipsData:
        """Shuffle the images by the seed, split them, and draw the fixed clips: each image in all directions."""
        images = read_images(source.source)
        order = np.random.default_rng(source.seed).permutation(len(images.labels))
        first, second = split_points(len(order))
        fixed = []
        for rows, seed in ((order[first:second], _VALIDATION), (order[second:], _TEST)):
            ways = np.tile(np.arange(len(DIRECTIONS)), len(rows))
            fixed.append(clip_examples(source, images, np.repeat(rows, len(DIRECTIONS)), ways, seed))
        return ClipsData(
            train=DrawnClips(source, images, order[:first]),
            validation=fixed[0],
            test=fixed[1],
            train_digits=images.labels[order[:first]],
        )

    def ports(self, data: ClipsData, source: ClipsSource) -> tuple[Input, tuple[Head, ...]]:
        """Frames in, logits of the digit and of the direction out."""
        return FrameInput(source.size, source.size), (ClassHead(DIGIT, DIGITS), ClassHead(DIRECTION, tuple(DIRECTIONS)))

    def sample(self, data: ClipsData, source: ClipsSource) -> str:
        """Some test clips as CSV, a frame a line: number of the clip, pixels row by row, digit, direction."""
        rows = [",".join(["clip", *(f"p{i}" for i in range(source.size**2)), DIGIT, DIRECTION])]
        # Neighbours show the same image, so one of each direction is taken from images further on.
        for number, example in enumerate(data.test[:: len(DIRECTIONS) + 1][:SAMPLE_CLIPS]):
            names = [DIGITS[_answer(example, DIGIT)], list(DIRECTIONS)[_answer(example, DIRECTION)]]
            rows += [
                ",".join([str(number), *(f"{v:.2g}" for v in frame.ravel()), *names])
                for frame in example.inputs[FRAMES]
            ]
        return "\n".join(rows) + "\n"

    def measure(self, answers: Answers, data: ClipsData, source: ClipsSource) -> list[Figure]:
        """Accuracy at the clip's end and after some frames; the same model given less, and the majority class."""
        wanted = {head: np.array([_answer(e, head) for e in data.test]) for head in (DIGIT, DIRECTION)}
        shuffle = np.random.default_rng(source.seed)
        given: dict[str, list[Tensors]] = {
            "": [e.inputs for e in data.test],
            "one_frame": [{FRAMES: e.inputs[FRAMES][-1:]} for e in data.test],
            "shuffled": [{FRAMES: shuffle.permutation(e.inputs[FRAMES])} for e in data.test],
        }
        said = {name: answers(sequences) for name, sequences in given.items()}
        commonest = {DIGIT: int(np.bincount(data.train_digits).argmax()), DIRECTION: 0}
        figures: list[Figure] = []
        for head in (DIGIT, DIRECTION):

            def right(name: str, frame: int, head: str = head) -> Booleans:
                found: Booleans = chosen(np.stack([one[head][frame] for one in said[name]])) == wanted[head]
                return found

            # A digit can be read from its frames in any order, so that is nothing to be better than.
            less = ("one_frame", "shuffled") if head == DIRECTION else ("one_frame",)
            baselines = {name: right(name, -1) for name in less}
            baselines["majority"] = wanted[head] == commonest[head]
            figures += accuracy_figures(f"accuracy_{head}", right("", -1), baselines)
            for frame in STATED:
                if frame < source.frames:
                    figures += accuracy_figures(f"accuracy_{head}_{frame}", right("", frame - 1), {})
        return [*figures, Figure("clips", len(data.test), "")]

    def describe(
        self,
        contract: pb.ModelContract,
        source: ClipsSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """What frames and classes are."""
        contract.inputs[0].meaning = "brightness of a frame, 0 black to 1 white"
        contract.outputs[0].meaning = "logits of the digit that is seen, from the frames so far"
        contract.outputs[1].meaning = "logits of the way that it goes, from the frames so far"

    def show_figures(self, values: Mapping[str, float], source: ClipsSource) -> str:
        """Accuracy at the end beside what less gives, and by frame."""
        rows = {f"accuracy_{head}": head for head in (DIGIT, DIRECTION)}
        frames = [frame for frame in STATED if frame < source.frames]
        lines = [
            f"| after frame | {' | '.join(map(str, frames))} | {source.frames} |",
            "|---" * (len(frames) + 2) + "|",
        ]
        for head in (DIGIT, DIRECTION):
            shares = [values[f"accuracy_{head}_{frame}"] for frame in frames] + [values[f"accuracy_{head}"]]
            lines.append(f"| {head} | {' | '.join(f'{share:.1%}' for share in shares)} |")
        return (
            f"Share of right answers after the last frame of {values['clips']:.0f} clips of the test part, whose "
            "images no clip of the\ntraining part shows:\n\n"
            + accuracy_table(values, rows, self.baselines, "asked for")
            + "\n\nThe last frame alone, frames in random order: this model, given no more than that. Majority class: "
            "the commonest of the\ntraining part.\n\n" + "\n".join(lines)
        )

    def show_data(self, source: ClipsSource, sample: str) -> str:
        """Split, drawing and sample."""
        return (
            "split 80/10/10 by image, at random.\n"
            f"A clip has {source.frames} frames of {source.size}x{source.size}. One digit of 8x8 moves by "
            f"{source.speed} pixels a frame in one of {len(DIRECTIONS)} directions;\n"
            "what leaves the frame comes in on the other side. A bar hides "
            f"{source.hidden} of the digit's 8 rows or columns in every frame, another\n"
            f"one each time, under noise of deviation {source.noise:g}, where white is 1. Training draws "
            f"{source.clips} clips of each image anew for every\n"
            f"epoch; validation and test have each of their images in every direction. `{sample}` holds "
            f"{SAMPLE_CLIPS} clips of the test part."
        )


def _answer(example: Example, head: str) -> int:
    """The class of a clip, as at its last frame."""
    return int(example.targets[head].astype(np.int64)[-1])
