"""Do films need both frames and order? CNN + RNN against CNN alone and RNN alone on moving digits.

Owns: the runs of this question, its tables, pictures and claims. Must not know torch.
"""

from collections.abc import Mapping
from typing import Any

from eddy.training.chart import Chart
from eddy.training.study.job import Job, Probe, Size
from eddy.training.study.result import Results
from eddy.training.study.section import Claim, Shown, bands_of, compare, embed, picture, table
from eddy.training.study.spread import Spread, all_hold, is_higher

FRAMES, SPEED = 12, 4
STATED = (1, 2, 4, FRAMES)
HIDDEN, EPOCHS = 96, 20
_FRAMES_PART = {
    "frame_convolutions": [{"channels": 16, "kernel": 3, "pool": 2}, {"channels": 32, "kernel": 3, "pool": 2}]
}


def _window(frames: int) -> Mapping[str, Any]:
    """No recurrent layer: a causal convolution sees the last frames, and no more."""
    convolutions = [{"channels": HIDDEN, "kernel": frames}]
    return {"cell": "lstm", "layers": 0, "hidden": HIDDEN, "convolutions": convolutions, **_FRAMES_PART}


VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cnn-rnn": ("CNN + RNN", {"cell": "lstm", "hidden": HIDDEN, **_FRAMES_PART}),
    "rnn": ("RNN alone", {"cell": "lstm", "hidden": HIDDEN}),
    "cnn-3": ("CNN alone, 3 frames", _window(3)),
    "cnn-6": ("CNN alone, 6 frames", _window(6)),
}
# What is asked, and the figures of it: a digit can be read from its frames in any order.
ENDS = {"digit": ("", "_one_frame"), "direction": ("", "_one_frame", "_shuffled")}


class ClipsSection:
    """See the module's docstring, and `Section` for the methods."""

    name = "clips"
    title = "Do films need both frames and order?"

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """Every shape."""
        return tuple(
            Job(self.name, variant, seed, Probe.TRAIN, _tables(model, size))
            for variant, (_, model) in VARIANTS.items()
            for seed in size.seeds
        )

    def show(self, results: Results, size: Size) -> Shown:
        """Accuracies of both questions, at the end and by frame."""
        pictures: dict[str, str] = {}
        for head in ENDS:
            pictures |= picture(f"clips-{head}.svg", _chart(results, head))
        body = [_about(size), _table(results)]
        for head in ENDS:
            body += embed(pictures, f"clips-{head}.svg", f"{head}: accuracy by frame")
        return Shown("\n\n".join(body), pictures, tuple(_claims(results)))


def _tables(model: Mapping[str, Any], size: Size) -> Mapping[str, Mapping[str, Any]]:
    return {
        "data": {
            "kind": "clips",
            "source": "wheel:scikit-learn:sklearn/datasets/data/digits.csv.gz",
            "licence": "BSD-3-Clause",
            "size": 12,
            "frames": FRAMES,
            "speed": SPEED,
            "hidden": 3,
            "noise": 0.1,
            "clips": 1,
        },
        "model": model,
        "training": {"epochs": size.epochs(EPOCHS), "batch": 16, "learning_rate": 0.002},
    }


def _about(size: Size) -> str:
    return (
        f"A handwritten digit moves through {FRAMES} frames of 12 x 12, {SPEED} pixels a frame; a bar hides three of "
        "its eight rows or columns in each, and noise lies over all. Asked at every frame: which digit, which of eight "
        f"directions. CNN: two convolutions within each frame. RNN: one LSTM layer of {HIDDEN} units. A CNN alone has "
        "in its place a causal convolution over the last frames and a dense layer. "
        f"{size.epochs(EPOCHS)} epochs of 90 updates; accuracy after the last frame, on clips of images that no "
        "training clip shows. One frame, shuffled: the same model given the last frame alone, or all frames in random "
        "order."
    )


def _share(results: Results, variant: str, name: str) -> Spread:
    return Spread.over(results.values(variant, name))


def _table(results: Results) -> str:
    rows = []
    for variant, (label, _) in VARIANTS.items():
        cells = [Spread.over(results.values(variant, "parameters")).show(",.0f").partition(" ")[0]]
        for head, ends in ENDS.items():
            cells += [_share(results, variant, f"accuracy_{head}{end}").show(".2f") for end in ends]
        rows.append((label, *cells))
    chance = [f"{Spread.over(results.values('rnn', f'accuracy_{head}_majority')).median:.2f}" for head in ENDS]
    rows.append(("majority class", "0", chance[0], "", chance[1], "", ""))
    asked = ("digit", "one frame", "direction", "one frame", "shuffled")
    return table(("shape", "parameters", *asked), rows)


def _chart(results: Results, head: str) -> Chart:
    found = {}
    for variant, (label, _) in VARIANTS.items():
        names = [f"accuracy_{head}_{frame}" for frame in STATED[:-1]] + [f"accuracy_{head}"]
        found[label] = [_share(results, variant, name) for name in names]
    lines, bands = bands_of(found, tuple(map(float, STATED)))
    return Chart(
        title=f"Moving digits: {head}, right answers by frame",
        x_label="frames seen; line: median, band: all seeds",
        y_label="share of right answers",
        lines=lines,
        bands=bands,
        is_x_whole=True,
    )


def _claims(results: Results) -> list[Claim]:
    label = {variant: name for variant, (name, _) in VARIANTS.items()}
    digit, way = (
        {label[variant]: _share(results, variant, f"accuracy_{head}") for variant in VARIANTS} for head in ENDS
    )
    both, rnn, narrow, wide = label.values()
    guess = _share(results, "cnn-rnn", "accuracy_direction_majority")
    one_frame = {label[v]: _share(results, v, "accuracy_direction_one_frame") for v in VARIANTS}
    return [
        Claim(
            "CNN + RNN names the digit better than either alone.",
            compare(digit, ".2f"),
            all_hold([is_higher(digit[both], digit[name]) for name in (rnn, narrow, wide)]),
        ),
        Claim(
            "CNN + RNN names the direction better than either alone.",
            compare(way, ".2f"),
            all_hold([is_higher(way[both], way[name]) for name in (rnn, narrow, wide)]),
        ),
        Claim(
            "Of one frame alone nothing knows the direction: below twice the majority class.",
            compare({**one_frame, "majority": guess}, ".2f"),
            all_hold([is_higher(guess.moved(2.0), spread) for spread in one_frame.values()]),
        ),
        Claim(
            "Without convolutions the digit is hardly learnt: below half of what CNN + RNN names.",
            compare({name: digit[name] for name in (both, rnn)}, ".2f"),
            is_higher(digit[both], digit[rnn], factor=2.0),
        ),
        Claim(
            "A wider window makes up for the missing memory: six frames name more digits than three.",
            compare({name: digit[name] for name in (narrow, wide)}, ".2f"),
            is_higher(digit[wide], digit[narrow]),
        ),
    ]
