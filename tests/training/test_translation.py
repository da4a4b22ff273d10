"""The task of translation, end to end: from hand-made catalogues to figures, contract, card and sample."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eddy.training.alignment import split_words
from eddy.training.contract import read_contract
from eddy.training.data import NO_TOKEN
from eddy.training.errors import DataError, RecipeError
from eddy.training.evaluation import evaluate_model
from eddy.training.export import export_checkpoint
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.registry import all_examples, build_model
from eddy.training.figures import compare_figures
from eddy.training.loss import loss_sum
from eddy.training.pieces import END_ID, START_ID, UNKNOWN_ID
from eddy.training.recipe import Recipe, parse_recipe
from eddy.training.scores import bleu, chrf
from eddy.training.spec import TokenHead, TokenInput
from eddy.training.tasks.registry import BASELINES, find_task
from eddy.training.tasks.translation_data import TranslationExamples, load_translation
from eddy.training.train import train
from eddy.v1 import contract_pb2 as pb

THINGS = {"river": "rivière", "bank": "rive", "boat": "barque", "stone": "pierre", "water": "eau", "bridge": "arche"}
LOOKS = {"red": "rouge", "yellow": "jaune", "calm": "calme", "wide": "large", "weak": "faible"}
DOES = {"sleeps": "dort", "turns": "tourne", "waits": "attend", "sings": "chante"}


def write_catalogue(path: Path) -> str:
    """120 sentences whose adjectives change places, and 30 without one."""
    entries = [
        (f"The {look} {thing} {verb}", f"La {THINGS[thing]} {LOOKS[look]} {DOES[verb]}")
        for thing in THINGS
        for look in LOOKS
        for verb in DOES
    ]
    entries += [(f"a {thing} {look}", f"une {THINGS[thing]} {LOOKS[look]}") for thing in THINGS for look in LOOKS]
    text = "".join(f'msgid "{source}"\nmsgstr "{target}"\n\n' for source, target in entries)
    path.write_text(f'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n{text}', encoding="utf-8")
    return str(path)


def recipe_of(catalogue: str, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Recipe:
    """A recipe for a model of 16 units."""
    return parse_recipe(
        {
            "name": "tiny-translation",
            "description": "A tiny translator",
            "data": {
                "kind": "translation",
                "catalogues": [catalogue],
                "licence": "CC0-1.0",
                "vocabulary_size": 80,
                "min_count": 1,
                "max_symbols": 24,
                **(data or {}),
            },
            "model": {
                "family": "translation",
                "cell": "gru",
                "hidden": 16,
                "embedding": 16,
                "dropout": 0.0,
                "max_source_steps": 24,
                **(model or {}),
            },
            "training": {"epochs": 12, "batch": 8, "learning_rate": 0.02, "label_smoothing": 0.05, "patience": 12},
        }
    )


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A catalogue of 150 sentences."""
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "river.po")


@pytest.fixture(scope="module")
def run(catalogue: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A trained model's recipe and checkpoint."""
    recipe = recipe_of(catalogue)
    return recipe, train(recipe, tmp_path_factory.mktemp("run"), device="cpu", show_progress=False)


def test_examples_are_what_teacher_forcing_reads(catalogue: str) -> None:
    """The source as it is; the target after the start, and what is asked for one symbol later, with the end."""
    data = load_translation(recipe_of(catalogue).data)  # type: ignore[arg-type]  # a recipe of translation
    for example, pair in zip(data.validation, data.pairs.validation, strict=True):
        assert data.pieces.decode(example.inputs["source"].tolist()) == pair.source
        tokens, targets = example.inputs["tokens"].tolist(), example.targets["logits"].tolist()
        assert tokens[0] == START_ID
        assert targets[-1] == END_ID
        assert tokens[1:] == targets[:-1]
        assert data.pieces.decode(targets) == pair.target


def test_epochs_draw_phrases_and_forget(catalogue: str) -> None:
    """The same number gives the same examples, another one others; targets are whole, the start is never lost."""
    table = recipe_of(catalogue, {"phrase_words": 3, "phrase_share": 0.2, "forget_share": 0.3}).data
    data = load_translation(table)  # type: ignore[arg-type]  # a recipe of translation
    examples = data.train
    assert isinstance(examples, TranslationExamples)
    assert len(examples.phrases) > 20
    first, again, other = examples.epoch(1), examples.epoch(1), examples.epoch(2)
    assert len(first) == len(examples.pairs) + round(0.2 * len(examples.pairs))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.inputs["source"], same.inputs["source"])
    assert any(
        one.inputs["source"].tolist() != two.inputs["source"].tolist() for one, two in zip(first, other, strict=True)
    )
    read = np.concatenate([example.inputs["source"] for example in first])
    assert 0.2 < np.mean(read == UNKNOWN_ID) < 0.4
    assert all(example.inputs["tokens"][0] == START_ID for example in first)
    assert all(UNKNOWN_ID not in example.targets["logits"] for example in first)
    words = {word.text for pair in data.pairs.train for word in split_words(pair.target)}
    for phrase in examples.phrases:
        *symbols, end = phrase.targets["logits"].tolist()
        assert end == NO_TOKEN
        assert {word.text for word in split_words(data.pieces.decode(symbols))} <= words
    assert all(example.targets["logits"][-1] == END_ID for example in examples.pairs)


def test_hints_say_which_words_belong_together(catalogue: str) -> None:
    """Every symbol of a linked word, and no other; only training has hints, the end has none."""
    data = load_translation(recipe_of(catalogue, {"guided": True}).data)  # type: ignore[arg-type]  # of translation
    assert all(set(example.targets) == {"logits"} for example in (*data.validation, *data.test))
    for example, pair in zip(data.train.epoch(1), data.pairs.train, strict=True):
        meant = example.targets["attention"]
        assert meant.shape == (len(example.targets["logits"]), 24)
        assert not meant[-1].any()
        assert not meant[:, len(example.inputs["source"]) :].any()
        thing = next(thing for thing in THINGS if thing in pair.source)
        start = pair.target.index(THINGS[thing])
        step = len(data.pieces.encode(pair.target[: start - 1]))
        source = pair.source.index(thing)
        places = np.flatnonzero(meant[step])
        pieces = data.pieces.encode(pair.source)
        spans = np.cumsum([0, *(len(data.symbols[token]) for token in pieces.tolist())])
        assert places.size
        for place in places:
            assert spans[place] < source + len(thing)
            assert spans[place + 1] >= source


def test_the_hint_is_the_surprise_of_looking_where_it_is_meant() -> None:
    """By hand: half of the logarithm of the share that the meant places have; steps without any do not count."""
    model = build_model(all_examples()["translation-gru"])
    weights = torch.tensor([[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]])
    meant = torch.tensor([[[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]], dtype=torch.int8)
    loss = model.hint_loss({"attention": weights}, {"attention": meant})
    assert float(loss) == pytest.approx(-0.5 * math.log(0.9), abs=1e-5)
    padded = torch.full((1, 2, 5), NO_TOKEN, dtype=torch.int8)
    assert float(model.hint_loss({"attention": weights}, {"attention": padded})) == 0
    assert float(model.hint_loss({"attention": weights}, {})) == 0
    assert float(model.hint_loss({}, {"attention": meant})) == 0


def test_long_sentences_are_left_out(catalogue: str) -> None:
    """In every part; where none is left, it is said."""
    full = load_translation(recipe_of(catalogue).data)  # type: ignore[arg-type]  # a recipe of translation
    short = load_translation(recipe_of(catalogue, {"max_symbols": 8}).data)  # type: ignore[arg-type]  # the same
    assert len(short.test) < len(full.test)
    assert all(example.steps <= 9 for example in (*short.train.epoch(1), *short.validation, *short.test))
    with pytest.raises(DataError, match="at most 1 symbols"):
        load_translation(recipe_of(catalogue, {"max_symbols": 1}).data)  # type: ignore[arg-type]  # the same


def test_a_model_learns_to_translate(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    """Trained, exported, verified bit for bit and measured: better than a dictionary, which keeps the order."""
    recipe, checkpoint = run
    report = export_checkpoint(checkpoint, tmp_path)
    assert report.bitwise
    contract = read_contract(tmp_path / "model.onnx")
    assert contract.task == pb.TASK_TRANSLATION
    for vocabulary in (contract.vocabulary, contract.source_vocabulary):
        assert vocabulary.unit == "piece"
        assert vocabulary.unknown_id == UNKNOWN_ID
    assert (contract.vocabulary.start_id, contract.vocabulary.end_id) == (START_ID, END_ID)
    assert not contract.source_vocabulary.HasField("start_id")
    figures = {figure.name: figure.value for figure in contract.training.figures}
    assert figures["bleu"] > figures["bleu_dictionary"] + 10
    assert figures["chrf"] > figures["chrf_dictionary"]
    assert figures["chrf_dictionary"] > figures["chrf_copy"]
    assert figures["sentences"] == sum(figures.get(f"sentences_{n}_words", 0) for n in (1, 3, 6, 11))
    again = {figure.name: figure.value for figure in evaluate_model(tmp_path / "model.onnx", recipe)}
    assert again == pytest.approx(figures)


def test_card_and_sample(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    """Sentences of the test part with their translations, and what the model makes of them, in the card."""
    recipe, checkpoint = run
    export_checkpoint(checkpoint, tmp_path)
    data = find_task(recipe.data).load(recipe.data)
    lines = (tmp_path / "sample.txt").read_text(encoding="utf-8").splitlines()
    assert set(lines) <= {f"{pair.source}\t{pair.target}" for pair in data.pairs.test}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## What it writes" in card
    assert lines[0].split("\t")[1] in card
    assert "| all |" in card
    assert "numbered" in card


def test_figures_stand_beside_their_baselines(run: tuple[Recipe, Path]) -> None:
    """Every score of the model has those of copying and of the dictionary."""
    from eddy.training.checkpoint import load_checkpoint

    compared = compare_figures(load_checkpoint(run[1]).figures, BASELINES)
    assert {"bleu", "chrf"} <= {comparison.figure.name for comparison in compared}
    assert all(set(comparison.baselines) == {"dictionary", "copy"} for comparison in compared)


def test_a_run_without_attention_trains_too(catalogue: str, tmp_path: Path) -> None:
    """The same task with the encoder's last state alone."""
    recipe = recipe_of(catalogue, {"guided": True}, {"attention": False, "cell": "lstm"})
    checkpoint = train(recipe, tmp_path / "run", device="cpu", show_progress=False)
    assert export_checkpoint(checkpoint, tmp_path / "model").bitwise
    contract = read_contract(tmp_path / "model" / "model.onnx")
    assert [state.name for state in contract.states] == ["h", "c"]


def test_smoothing_asks_a_share_of_all_symbols() -> None:
    """By hand: 0.8 of the cross-entropy plus 0.2 of the mean over symbols; what is padded does not count."""
    spec = RecurrentSpec("gru", 1, 4, TokenInput(3, 2), (TokenHead(3),))
    logits = torch.tensor([[[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]]])
    loss, count = loss_sum(spec, {"logits": logits}, {"logits": torch.tensor([[1, NO_TOKEN]])}, 0.2)
    chances = torch.log_softmax(logits[0, 0], 0)
    assert count == 1
    assert float(loss) == pytest.approx(float(-0.8 * chances[1] - 0.2 * chances.mean()), abs=1e-6)


def test_scores_are_sacrebleus() -> None:
    """The same text has 100; nothing in common has nearly nothing."""
    texts = ["La rivière rouge dort toujours", "une barque attend"]
    assert bleu(texts, texts) == pytest.approx(100)
    assert chrf(texts, texts) == pytest.approx(100)
    assert chrf(["xyz", "qqq"], texts) < 1


def test_impossible_tables_are_refused(catalogue: str) -> None:
    """By key, with what came and what was expected."""
    for data, message in (
        ({"catalogues": []}, "data.catalogues: got"),
        ({"forget_share": 1.0}, "data.forget_share: got 1.0"),
        ({"max_symbols": 0}, "data.max_symbols: got 0"),
        ({"phrase_share": -1.0}, "data.phrase_share: got -1.0"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe_of(catalogue, data)
