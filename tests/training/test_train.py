"""Training: windows, losses, seeds, early stopping and what a run leaves behind."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eddy.training.checkpoint import load_checkpoint
from eddy.training.data import NO_TOKEN, NO_VALUE, Part
from eddy.training.errors import CheckpointError, TrainingError
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.loss import loss_sum
from eddy.training.recipe import Recipe
from eddy.training.spec import FeatureInput, QuantileHead, TokenHead, TokenInput
from eddy.training.train import train
from eddy.training.windows import Windows


def test_windows_go_on_where_the_last_one_ended() -> None:
    """Row i of the windows, joined, is the i-th equal piece of the part; the offset is skipped."""
    part = Part(np.arange(23), np.arange(1, 24))
    pieces = Windows(part, streams=3, steps=4, offset=2)
    assert len(pieces) == 2
    assert [x.shape for x, _ in pieces] == [(3, 4), (3, 3)]
    joined = np.concatenate([x for x, _ in pieces], axis=1)
    assert joined.tolist() == [list(range(2, 9)), list(range(9, 16)), list(range(16, 23))]
    assert np.array_equal(np.concatenate([y for _, y in pieces], axis=1), joined.astype(np.int64) + 1)


def test_token_loss_leaves_out_what_has_no_target() -> None:
    """Equal logits cost log V for each target that counts."""
    spec = RecurrentSpec("gru", 1, 2, TokenInput(4, 2), (TokenHead(4),))
    loss, count = loss_sum(spec, {"logits": torch.zeros(1, 3, 4)}, {"logits": torch.tensor([[1, 3, NO_TOKEN]])})
    assert count == 2
    assert float(loss) == pytest.approx(2 * math.log(4))


def test_quantile_loss_is_in_deviations_and_leaves_out_nan() -> None:
    """A miss by 4 with a deviation of 2 costs level x 2."""
    spec = RecurrentSpec("gru", 1, 2, FeatureInput((0.0,), (2.0,)), (QuantileHead((1, 2), (0.25,)),))
    loss, count = loss_sum(
        spec, {"quantiles": torch.zeros(1, 1, 2, 1)}, {"quantiles": torch.tensor([[[4.0, NO_VALUE]]])}
    )
    assert count == 1
    assert float(loss) == pytest.approx(0.25 * 2)


def test_the_same_seed_gives_the_same_weights(text_recipe: Recipe, text_checkpoint: Path, tmp_path: Path) -> None:
    """Two runs of a recipe agree bit for bit; another seed does not."""
    first = load_checkpoint(text_checkpoint)
    again = load_checkpoint(train(text_recipe, tmp_path / "again", device="cpu", show_progress=False))
    assert first.figures == again.figures
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    other_recipe = replace(text_recipe, training=replace(text_recipe.training, seed=2))
    other = load_checkpoint(train(other_recipe, tmp_path / "other", device="cpu", show_progress=False))
    assert not torch.equal(first.weights["head.weight"], other.weights["head.weight"])


def test_models_learn(text_checkpoint: Path, series_checkpoint: Path) -> None:
    """Even tiny models beat the plainest baselines on parts they have not seen."""
    text = {f.name: f.value for f in load_checkpoint(text_checkpoint).figures}
    assert text["bits_per_character"] < text["bits_per_character_unigram"]
    series = {f.name: f.value for f in load_checkpoint(series_checkpoint).figures}
    assert series["mae"] < series["mae_last_value"]


def test_a_run_leaves_figures_and_a_checkpoint_of_plain_values(series_checkpoint: Path) -> None:
    """The figures beside the checkpoint are its own, and the checkpoint loads without running code."""
    values = torch.load(series_checkpoint, weights_only=True)
    assert sorted(values) == [
        "epochs", "figures", "format", "origin", "progress", "recipe", "sample", "source_symbols", "spec", "symbols",
        "weights",
    ]  # fmt: skip
    assert values["progress"] is None
    beside = json.loads((series_checkpoint.parent / "figures.json").read_text())
    assert beside["figures"] == values["figures"]
    checkpoint = load_checkpoint(series_checkpoint)
    assert checkpoint.recipe.name == "tiny-forecast"
    lines = checkpoint.sample.splitlines()
    assert (lines[0], len(lines)) == ("phase,level", 1 + 120)


def test_training_stops_when_validation_stops_getting_better(text_recipe: Recipe, tmp_path: Path) -> None:
    """With a step size far too large the first epochs are the best, and the run ends patience epochs later."""
    wild = replace(text_recipe.training, epochs=50, learning_rate=5.0, patience=2, weight_decay=0.0)
    checkpoint = load_checkpoint(
        train(replace(text_recipe, training=wild), tmp_path, device="cpu", show_progress=False)
    )
    figures = {f.name: f.value for f in checkpoint.figures}
    assert figures["best_epoch"] < 48


def test_more_streams_than_data_are_refused(text_recipe: Recipe, tmp_path: Path) -> None:
    """The message names the key and its bound."""
    recipe = replace(text_recipe, training=replace(text_recipe.training, streams=10**6))
    with pytest.raises(TrainingError, match=r"training.streams: got 1000000, expected at most"):
        train(recipe, tmp_path, device="cpu", show_progress=False)


def test_bad_checkpoints_are_refused(text_checkpoint: Path, tmp_path: Path) -> None:
    """Missing, truncated, of another format, with weights that do not fit."""
    path = tmp_path / "bad.pt"
    with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
        load_checkpoint(path)
    path.write_bytes(text_checkpoint.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
        load_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="format is 99, expected 2"):
        load_checkpoint(path)
    values = torch.load(text_checkpoint, weights_only=True)
    torch.save(values | {"spec": values["spec"] | {"hidden": 5}}, path)
    with pytest.raises(CheckpointError, match="do not fit the specification"):
        load_checkpoint(path).build()
    torch.save({name: value for name, value in values.items() if name != "spec"}, path)
    with pytest.raises(CheckpointError, match="broken entry: 'spec'"):
        load_checkpoint(path)
