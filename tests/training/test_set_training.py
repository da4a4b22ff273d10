"""Training on separate sequences: batches, padding, resuming, and a task that only a lasting state can solve."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eddy.training.batches import Batch, cut_batches, draw_order, join_examples
from eddy.training.checkpoint import load_checkpoint
from eddy.training.data import NO_TOKEN, NO_VALUE, Example, FixedExamples, SetData, digest_examples
from eddy.training.errors import Stopped, TrainingError
from eddy.training.evaluation import evaluate_model
from eddy.training.export import export_checkpoint
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.loss import batch_loss, evaluate_examples
from eddy.training.recipe import Recipe, Schedule, parse_recipe
from eddy.training.set_pass import SetReading
from eddy.training.spec import ClassHead, FeatureInput
from eddy.training.stop import Stop
from eddy.training.tasks.recall import RecallSource, RecallTask, draw_sequences
from eddy.training.train import train

CPU = torch.device("cpu")


def examples_of(lengths: list[int]) -> tuple[Example, ...]:
    """Random sequences of two features with a class at every step."""
    rng = np.random.default_rng(0)
    return tuple(
        Example({"values": rng.standard_normal((n, 2)).astype(np.float32)}, {"y": rng.integers(3, size=n)})
        for n in lengths
    )


@pytest.fixture
def recall_recipe() -> Recipe:
    """A tiny memory task that a GRU solves in seconds."""
    return parse_recipe(
        {
            "name": "tiny-recall",
            "description": "A tiny memory",
            "data": {"kind": "recall", "distances": [1, 4], "symbols": 3, "train_sequences": 40, "test_sequences": 30},
            "model": {"cell": "gru", "hidden": 16, "embedding": 8},
            "training": {"epochs": 8, "batch": 8, "learning_rate": 0.02},
        }
    )


def test_every_example_comes_once_an_epoch_beside_similar_ones() -> None:
    """The drawn order is a permutation; rows of a batch differ less in length than those of the whole set."""
    lengths = np.random.default_rng(1).integers(1, 200, 103).tolist()
    examples = examples_of(lengths)
    order = draw_order(examples, 8, np.random.default_rng(2))
    assert sorted(order.tolist()) == list(range(103))
    spans = [np.ptp([lengths[row] for row in order[start : start + 8]]) for start in range(0, 103, 8)]
    assert np.mean(spans) < 40
    assert not np.array_equal(order, draw_order(examples, 8, np.random.default_rng(3)))


def test_padding_is_marked_as_no_target() -> None:
    """Shorter rows end in zeros, in NO_TOKEN or in NaN, by what they are; lengths tell them apart."""
    short, long = examples_of([2, 3])
    real = Example({"values": short.inputs["values"]}, {"y": np.ones((2, 1), np.float32)})
    batch = join_examples([short, long])
    assert batch.lengths["values"].tolist() == [2, 3]
    assert batch.inputs["values"][0, 2].tolist() == [0, 0]
    assert batch.targets["y"][0, 2] == NO_TOKEN
    other = Example({"values": long.inputs["values"]}, {"y": np.ones((3, 1), np.float32)})
    assert np.isnan(join_examples([real, other]).targets["y"][0, 2, 0])
    assert np.isnan(NO_VALUE)


def test_padding_changes_no_loss_and_no_gradient() -> None:
    """Sequences of different lengths in one batch give what they give one by one."""
    examples = examples_of([3, 9, 5, 1])
    spec = RecurrentSpec("lstm", 1, 6, FeatureInput((0.0, 0.0), (1.0, 1.0)), (ClassHead("y", ("a", "b", "c")),))
    torch.manual_seed(0)
    model = RecurrentModel(spec)

    def run(batches: list[Batch]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = torch.stack([batch_loss(model, batch, CPU)[0] for batch in batches]).sum()
        torch.autograd.backward(loss)
        gradient = model.recurrent.weight_hh_l0.grad
        assert isinstance(gradient, torch.Tensor)
        return float(loss.detach()), gradient.clone()

    together = run([join_examples(examples)])
    alone = run([join_examples([example]) for example in examples])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert torch.allclose(together[1], alone[1], rtol=1e-4, atol=1e-5)
    assert evaluate_examples(model, examples, 4, CPU) == pytest.approx(evaluate_examples(model, examples, 1, CPU))
    assert [batch.targets["y"].shape for batch in cut_batches(examples, 2)] == [(2, 3), (2, 9)]


def test_a_memory_is_trained_and_measured(recall_recipe: Recipe, tmp_path: Path) -> None:
    """The figures of the run are those of the exported model, and far above guessing."""
    path = train(recall_recipe, tmp_path / "run", device="cpu", show_progress=False)
    figures = {figure.name: figure.value for figure in load_checkpoint(path).figures}
    assert figures["accuracy"] > 0.9
    assert figures["accuracy_majority"] < 0.6
    assert {"accuracy_1", "accuracy_4", "accuracy_4_majority"} <= set(figures)
    folder = tmp_path / "tiny-recall" / "1"
    assert export_checkpoint(path, folder).bitwise
    again = {figure.name: figure.value for figure in evaluate_model(folder / "model.onnx", recall_recipe)}
    assert again == figures
    assert "| 4 |" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "sample.txt").read_text(encoding="utf-8").count("?") == 2


def test_a_stopped_run_goes_on_to_the_same_bits(recall_recipe: Recipe, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch and resumed, the weights are those of a run in one go."""
    recipe = replace(recall_recipe, training=replace(recall_recipe.training, epochs=3))
    whole = load_checkpoint(train(recipe, tmp_path / "whole", device="cpu", show_progress=False))
    folder = tmp_path / "cut"
    for steps in (3, 13):
        with pytest.raises(Stopped):
            train(
                recipe,
                folder,
                device="cpu",
                show_progress=False,
                resume=(folder / "checkpoint.pt").exists(),
                stop=Stop(steps),
            )
    cut = load_checkpoint(train(recipe, folder, device="cpu", show_progress=False, resume=True))
    assert cut.epochs == whole.epochs
    assert all(torch.equal(whole.weights[name], cut.weights[name]) for name in whole.weights)


def test_recall_sequences_are_what_they_say() -> None:
    """One symbol, so many distractors, a question; other epochs and parts draw others, the same ones the same."""
    source = RecallSource((0, 5), symbols=4, distractors=2)
    data = RecallTask().load(source)
    first, last = data.test[0], data.test[-1]
    shown = "".join(data.symbols[t] for t in last.inputs["tokens"].tolist())
    assert (len(first.inputs["tokens"]), len(shown)) == (2, 7)
    assert shown[0] in "abcd"
    assert set(shown[1:-1]) <= set("01")
    assert shown[-1] == "?"
    assert last.targets["symbol"].tolist() == [NO_TOKEN] * 6 + ["abcd".index(shown[0])]
    digests = {digest_examples(data.train.epoch(n)) for n in (1, 2)} | {digest_examples(data.test)}
    assert len(digests) == 3
    assert digest_examples(draw_sequences(source, source.train_sequences, 4)) == digest_examples(data.train.epoch(1))


def test_nothing_to_train_on_is_refused() -> None:
    """An empty set is an error with a name, before the first step."""
    spec = RecurrentSpec("gru", 1, 2, FeatureInput((0.0,), (1.0,)), (ClassHead("y", ("a", "b")),))
    with pytest.raises(TrainingError, match="data: got no sequences"):
        SetReading(RecurrentModel(spec), SetData(FixedExamples(()), (), ()), Schedule(epochs=1))
