"""What does attention give a translator? With and without it, by sentence length, and where it looks.

Owns: the runs of this question, its tables, pictures and claims. Must not know torch.
"""

from collections.abc import Mapping
from typing import Any

from eddy.training.chart import Chart, Level
from eddy.training.heatmap import HeatMap, draw_heatmap
from eddy.training.study.job import Job, Probe, Size
from eddy.training.study.result import Results
from eddy.training.study.section import FRENCH, Claim, Shown, bands_of, compare, embed, picture, table
from eddy.training.study.spread import Spread, is_higher

# First source words of each class of lengths, as the task has them, and what they are called.
LENGTHS = {1: "1-2", 3: "3-5", 6: "6-10", 11: "11 or more"}
VARIANTS = {"attention": True, "none": False}
LABELS = {"attention": "attention", "none": "no attention"}
HIDDEN, EMBEDDING, EPOCHS = 128, 96, 8
CAPTION = (
    "Seed {seed}, each row sums to 1; ▁ is the space before a word. Of test sentences of four to nine words the one "
    "whose translation is nearest to a person's, by chrF: a wrong translation's map would say little. A person wrote: "
    "{reference}"
)


class AttentionSection:
    """See the module's docstring, and `Section` for the methods."""

    name = "attention"
    title = "What does attention give a translator?"

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """With and without."""
        return tuple(
            Job(self.name, variant, seed, Probe.ATTENTION, _tables(has_attention, size))
            for variant, has_attention in VARIANTS.items()
            for seed in size.seeds
        )

    def show(self, results: Results, size: Size) -> Shown:
        """Scores by length beside copying and the dictionary, and a map."""
        pictures: dict[str, str] = {}
        for name, label in (("bleu", "BLEU"), ("chrf", "chrF")):
            pictures |= picture(f"attention-{name}.svg", _chart(results, name, label))
        drawn, caption = _map(results)
        pictures |= drawn
        body = [_about(size)]
        for name, label in (("bleu", "BLEU"), ("chrf", "chrF")):
            body += [
                f"{label}, beam search of 4, by words of the source:",
                _table(results, name),
                *embed(pictures, f"attention-{name}.svg", f"{label} by sentence length"),
            ]
        body += [*embed(pictures, "attention-map.svg", "attention map"), *caption]
        return Shown("\n\n".join(body), pictures, tuple(_claims(results)))


def _tables(has_attention: bool, size: Size) -> Mapping[str, Mapping[str, Any]]:  # a field's value
    return {
        "data": {
            "kind": "translation",
            **FRENCH,
            "vocabulary_size": 600,
            "max_characters": 120,
            "max_symbols": 64,
            "forget_share": 0.05,
        },
        "model": {
            "family": "translation",
            "cell": "lstm",
            "hidden": HIDDEN,
            "embedding": EMBEDDING,
            "attention": has_attention,
            "dropout": 0.2,
            "max_source_steps": 64,
        },
        "training": {"epochs": size.epochs(EPOCHS), "batch": 32, "learning_rate": 0.003},
    }


def _about(size: Size) -> str:
    return (
        "English to French, messages of up to 120 characters from program catalogues. An LSTM encoder of 64 units in "
        f"each direction, an LSTM decoder of {HIDDEN}; without attention the decoder has the encoder's last state and "
        f"no more. {size.epochs(EPOCHS)} epochs, a small part of what a good translator needs: scores are low, what "
        "counts is their difference. BLEU and chrF by sacrebleu, of the test part, higher is better."
    )


def _score(results: Results, variant: str, name: str, length: int | None, who: str = "") -> Spread:
    part = "" if length is None else f"_{length}_words"
    return Spread.over(results.values(variant, f"{name}{part}{who}"))


def _table(results: Results, name: str) -> str:
    columns: list[int | None] = [None, *LENGTHS]
    rows = [(LABELS[v], *(_score(results, v, name, length).show(".1f") for length in columns)) for v in VARIANTS]
    for who, label in (("_dictionary", "word by word"), ("_copy", "copy")):
        cells = (_score(results, "attention", name, length, who).show(".1f").partition(" ")[0] for length in columns)
        rows.append((label, *cells))
    counts = (_score(results, "attention", "sentences", length).show(".0f").partition(" ")[0] for length in columns)
    return table(("", "all", *(f"{words} words" for words in LENGTHS.values())), [*rows, ("sentences", *counts)])


def _chart(results: Results, name: str, label: str) -> Chart:
    found = {LABELS[v]: [_score(results, v, name, length) for length in LENGTHS] for v in VARIANTS}
    found["word by word"] = [_score(results, "attention", name, length, "_dictionary") for length in LENGTHS]
    lines, bands = bands_of(found, tuple(map(float, LENGTHS)))
    copy = _score(results, "attention", name, None, "_copy")
    return Chart(
        title=f"Translation: {label} by sentence length",
        x_label="words of the source, from; line: median, band: all seeds",
        y_label=label,
        lines=lines,
        bands=bands,
        levels=(Level("copy, all lengths", copy.median),) if copy.count else (),
        is_x_log=True,
    )


def _map(results: Results) -> tuple[dict[str, str], list[str]]:
    """The first seed's map, and what it shows."""
    for result in results.of("attention"):
        found = result.measured
        if "attention" not in found.series:
            continue
        source, written = found.texts["source"], found.texts["written"]
        shares, width = found.series["attention"], len(source)
        rows = tuple(shares[i * width : (i + 1) * width] for i in range(len(written)))
        heat = HeatMap("Where attention looks", written, source, "written", "source", rows)
        caption = CAPTION.format(seed=result.job.seed, reference=found.texts["reference"][0])
        return {"attention-map.svg": draw_heatmap(heat)}, [caption]
    return {}, []


def _claims(results: Results) -> list[Claim]:
    scores = {name: {LABELS[v]: _score(results, v, name, None) for v in VARIANTS} for name in ("bleu", "chrf")}
    long = {LABELS[v]: _score(results, v, "chrf", 11) for v in VARIANTS}
    gain_short, gain_long = (
        Spread.over([a - b for a in _all(results, "attention", length) for b in _all(results, "none", length)])
        for length in (3, 11)
    )
    attended, plain = LABELS.values()
    dictionary = _score(results, "attention", "chrf", None, "_dictionary")
    return [
        Claim(
            "Attention raises BLEU.",
            compare(scores["bleu"], ".1f"),
            is_higher(scores["bleu"][attended], scores["bleu"][plain]),
        ),
        Claim(
            "Attention raises chrF.",
            compare(scores["chrf"], ".1f"),
            is_higher(scores["chrf"][attended], scores["chrf"][plain]),
        ),
        Claim(
            "Attention raises chrF of sentences of eleven words and more.",
            compare(long, ".1f"),
            is_higher(long[attended], long[plain]),
        ),
        Claim(
            "Attention gains more chrF at eleven words and more than at three to five (all pairs of seeds).",
            f"{compare({'3-5': gain_short, '11 or more': gain_long}, '.1f')}",
            is_higher(gain_long, gain_short),
        ),
        Claim(
            "With attention, the translator beats the dictionary word by word (chrF).",
            compare({attended: scores["chrf"][attended], "word by word": dictionary}, ".1f"),
            is_higher(scores["chrf"][attended], dictionary),
        ),
    ]


def _all(results: Results, variant: str, length: int) -> tuple[float, ...]:
    return results.values(variant, f"chrf_{length}_words")
