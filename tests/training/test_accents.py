"""Accents: what stripping is, the baseline, how errors are counted, and a run from a catalogue to a verified model."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from eddy.training.__main__ import main
from eddy.training.answers import Answers
from eddy.training.checkpoint import load_checkpoint
from eddy.training.contract import read_contract
from eddy.training.data import NO_TOKEN
from eddy.training.errors import DataError, OptionError, RecipeError
from eddy.training.evaluation import evaluate_model
from eddy.training.export import export_checkpoint
from eddy.training.recipe import Recipe, parse_recipe
from eddy.training.tasks.accents import LOOK_AHEADS, MEASURES, Forms, count_errors
from eddy.training.tasks.accents_data import AccentsSource, fit_vocabulary, load_accents, make_example, strip
from eddy.training.train import train
from eddy.v1 import contract_pb2 as pb

SUBJECTS = ("La rivière", "Le café", "L'été", "La page", "Un élève", "Le pré", "La mère", "Le père")
VERBS = ("coule", "est là", "a été trouvé", "reste ouvert", "a changé", "passe", "où il était")
ENDS = (".", " à côté.", " déjà !")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 168 sentences."""
    path = tmp_path_factory.mktemp("fr") / "river.po"
    sentences = [f"{subject} {verb}{end}" for subject, verb, end in product(SUBJECTS, VERBS, ENDS)]
    entries = "".join(f'msgid "entry {i}"\nmsgstr "{sentence}"\n\n' for i, sentence in enumerate(sentences))
    path.write_text(f'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n{entries}', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(catalogue: Path) -> Recipe:
    """A tiny model of accents."""
    return parse_recipe(
        {
            "name": "tiny-accents",
            "description": "Tiny accents",
            "data": {"kind": "accents", "catalogues": [str(catalogue)], "licence": "CC0-1.0", "min_count": 1},
            "model": {
                "family": "bidirectional",
                "cell": "gru",
                "layers": 2,
                "hidden": 24,
                "embedding": 8,
                "block_steps": 3,
                "look_ahead_steps": 5,
            },
            "training": {"epochs": 12, "batch": 8, "learning_rate": 0.02},
        }
    )


@pytest.fixture(scope="module")
def checkpoint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model, trained."""
    return train(recipe, tmp_path_factory.mktemp("run"), device="cpu", show_progress=False)


def test_stripping_leaves_one_character_for_one() -> None:
    """Letters lose their marks and keep their case; ligatures, signs and letters of other scripts stay."""
    assert strip("Élève, à l'œuvre : « ça » ÑÎ 5° ά €") == "Eleve, a l'œuvre : « ca » NI 5° ά €"


def test_the_vocabulary_holds_both_sides_of_every_symbol() -> None:
    """A character that occurs with an accent only is there without it too; rare ones are unknown and have no target."""
    vocabulary = fit_vocabulary("éééà", 2)
    assert vocabulary.symbols == ("\ufffd", "e", "é")
    example = make_example(vocabulary, "éàe")
    assert example.inputs["tokens"].tolist() == [1, 0, 1]
    assert example.targets["characters"].tolist() == [2, NO_TOKEN, 1]


def test_parts_share_no_sentence_and_the_vocabulary_is_of_training(catalogue: Path) -> None:
    """All sentences are somewhere, once."""
    data = load_accents(AccentsSource((str(catalogue),), "CC0-1.0", min_count=1))
    parts = data.sentences
    found = [*parts.train, *parts.validation, *parts.test]
    assert len(found) == len(set(found)) == 168
    assert set(data.symbols[1:]) == set("".join(parts.train)) | set(strip("".join(parts.train)))
    assert [len(example.inputs["tokens"]) for example in data.test] == [len(sentence) for sentence in parts.test]


def test_every_epoch_is_drawn_anew_and_by_its_number(catalogue: Path) -> None:
    """Lost characters are read as unknown and have no target; some sentences are in lower case."""
    data = load_accents(AccentsSource((str(catalogue),), "CC0-1.0", min_count=1, forget_share=0.3, lower_share=0.5))
    first, again, second = (data.train.epoch(number) for number in (1, 1, 2))
    assert all(np.array_equal(a.inputs["tokens"], b.inputs["tokens"]) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.inputs["tokens"], b.inputs["tokens"]) for a, b in zip(first, second, strict=True))
    tokens = np.concatenate([example.inputs["tokens"] for example in first])
    targets = np.concatenate([example.targets["characters"] for example in first])
    assert np.array_equal(tokens == 0, targets == NO_TOKEN)
    assert 0.25 < (tokens == 0).mean() < 0.35
    capitals = [i for i, symbol in enumerate(data.symbols) if symbol.isupper()]
    begins = [example.inputs["tokens"][0] in capitals for example in first]
    assert 0.2 < np.mean(begins) < 0.5  # half of what is not lost


def test_the_most_frequent_form_by_hand() -> None:
    """Words apart by case; of equally frequent forms the first; unknown words and everything else as they are."""
    forms = Forms(["Où est l'été ?", "ou là", "ou", "où", "où été", "a à"])
    assert forms.restore("Ou ou la mer, a l'ete ?") == "Où ou là mer, a l'été ?"


def test_errors_by_hand() -> None:
    """One wrong character of ten, of four that may carry an accent; one wrong word of three."""
    wanted, written = ["été à bxyz"], ["été a bxyz"]
    found = count_errors(written, wanted, frozenset("ea"))
    assert found == {"character_errors": 0.1, "accent_errors": 1 / 3, "word_errors": 1 / 3}


def test_a_run_leaves_errors_beside_those_of_the_baselines(checkpoint: Path) -> None:
    """With every look-ahead; the model learns, the exact one is the best of its streams, copying is worse."""
    figures = {figure.name: figure.value for figure in load_checkpoint(checkpoint).figures}
    ends = ["", "_most_frequent", "_copy", *(f"_look_ahead_{steps}" for steps in {*LOOK_AHEADS, 5})]
    assert all(f"{measure}{end}" in figures for measure in MEASURES for end in ends)
    assert figures["character_errors"] < figures["character_errors_copy"] / 2
    assert figures["character_errors"] <= figures["character_errors_look_ahead_0"]


def test_export_on_a_chosen_grid(checkpoint: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Both grids from one checkpoint: verified, within parity of torch, and the same exact answers."""
    export_checkpoint(checkpoint, tmp_path / "1")
    assert main(["export", str(checkpoint), "--output", str(tmp_path / "2"), "--block", "2", "--look-ahead", "9"]) == 0
    contracts = [read_contract(tmp_path / version / "model.onnx") for version in "12"]
    grids = [(c.streaming.block_steps, c.streaming.look_ahead_steps) for c in contracts]
    assert grids == [(3, 5), (2, 9)]
    for contract in contracts:
        assert contract.task == pb.TASK_TAGGING
        assert contract.numerics.bitwise
        assert 0 < contract.numerics.parity_max_difference < 1e-5
    data = load_accents(recipe.data)  # type: ignore[arg-type]  # the recipe above is of accents
    inputs = [example.inputs for example in data.test]
    one, other = (Answers(tmp_path / v / "model.onnx", c)(inputs) for v, c in zip("12", contracts, strict=True))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a["characters"], b["characters"])
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == [
        "README.md",
        "model.onnx",
        "sample.txt",
        "whole.onnx",
    ]
    card = (tmp_path / "2" / "README.md").read_text(encoding="utf-8")
    assert "| whole sentence |" in card
    assert "--block 2 --look-ahead 9" in card
    lines = (tmp_path / "1" / "sample.txt").read_text(encoding="utf-8").splitlines()
    assert all(strip(line.split("\t")[1]) == line.split("\t")[0] for line in lines)


def test_figures_of_other_grids_stay_when_a_file_is_measured_again(
    checkpoint: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """A file can only be measured exactly and on its own grid; that gives what training found."""
    export_checkpoint(checkpoint, tmp_path)
    path = tmp_path / "model.onnx"
    before = {figure.name: figure.value for figure in read_contract(path).training.figures}
    evaluate_model(path, recipe)
    after = {figure.name: figure.value for figure in read_contract(path).training.figures}
    assert after == pytest.approx(before)


def test_streams_of_other_lengths_share_a_run(checkpoint: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Streamed answers do not depend on which sequences are asked for together."""
    export_checkpoint(checkpoint, tmp_path)
    answers = Answers(tmp_path / "model.onnx", read_contract(tmp_path / "model.onnx"))
    inputs = [example.inputs for example in load_accents(recipe.data).test]  # type: ignore[arg-type]  # as above
    together = answers.stream(inputs)
    for sequence, found in list(zip(inputs, together, strict=True))[:4]:
        # Two rows, as a service runs: the sequence beside itself.
        alone = answers.stream([sequence, sequence])
        assert np.array_equal(found["characters"], alone[0]["characters"])
        assert len(found["characters"]) == len(sequence["tokens"])


def test_a_grid_for_another_family_is_refused(text_checkpoint: Path, tmp_path: Path) -> None:
    """The character model streams step by step."""
    with pytest.raises(OptionError, match="got a recurrent model, expected a bidirectional one"):
        export_checkpoint(text_checkpoint, tmp_path, block_steps=4)


def test_impossible_tables_and_texts_are_refused(tmp_path: Path) -> None:
    """Each by its key; a catalogue without accents has nothing to learn."""
    with pytest.raises(RecipeError, match=r"data\.catalogues"):
        AccentsSource((), "CC0-1.0")
    with pytest.raises(RecipeError, match=r"data\.forget_share: got 1"):
        AccentsSource(("a.po",), "CC0-1.0", forget_share=1)
    path = tmp_path / "plain.po"
    path.write_text(
        "".join(f'msgid "entry {i}"\nmsgstr "sentence {i} is plain {i * i}"\n\n' for i in range(60)), encoding="utf-8"
    )
    with pytest.raises(DataError, match="no character with an accent"):
        load_accents(AccentsSource((str(path),), "CC0-1.0"))
