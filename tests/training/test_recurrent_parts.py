"""What lies around the cells: convolutions, attention, residual layers, learned states, several heads, padding."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eddy.training.contract import numpy_dtype, read_contract
from eddy.training.errors import ExportError, RecipeError
from eddy.training.export import draw_model, export_checkpoint, export_graphs, write_example
from eddy.training.families.recurrent.examples import recurrent_examples
from eddy.training.families.recurrent.family import RECURRENT
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.parts import Attention, Convolution, FrameConvolution
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.registry import build_contract
from eddy.training.recipe import parse_recipe
from eddy.training.runtime import Runtime, initial_rows
from eddy.training.spec import CELLS, ClassHead, FeatureInput, FrameInput, LinearHead, TokenHead, TokenInput
from eddy.training.stream_pass import reset_rows
from eddy.training.train import train
from eddy.training.verify import compare, draw_inputs
from eddy.v1 import contract_pb2 as pb

# torch picks other kernels for other lengths and batches; float32 sums then differ in the last bits.
TOLERANCE = 2e-6
# The parity law's bound; untrained models answer with values of size 1.
PARITY = 1e-5
EXAMPLES = recurrent_examples()
VALUES = FeatureInput((0.0, 0.0), (1.0, 1.0))
PLAIN = (LinearHead(3),)


def close(one: Tensor, other: Tensor) -> None:
    """The same up to rounding."""
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def draw(spec: RecurrentSpec, seed: int = 0) -> RecurrentModel:
    """An untrained model."""
    model = draw_model(spec, seed)
    assert isinstance(model, RecurrentModel)
    return model


def inputs(model: RecurrentModel, batch: int, steps: int) -> Tensor:
    """Random input of the kind that the model reads."""
    (value,) = draw_inputs(build_contract(model, "m"), batch, steps).values()
    return torch.from_numpy(value)


PARTS: dict[str, dict[str, Any]] = {
    "plain": {"layers": 2},
    "residual": {"layers": 4, "residual": True},
    "learned-state": {"layers": 2, "learned_state": True},
    "convolution": {"convolutions": (Convolution(6, 3, 2), Convolution(5, 2))},
    "attention": {"layers": 2, "attention": Attention(5)},
    "frames": {"input": FrameInput(6, 6), "frame_convolutions": (FrameConvolution(3, pool=2), FrameConvolution(4))},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_part_goes_with_every_cell(cell: str, part: str, tmp_path: Path) -> None:
    """The exported graph, in chunks shorter and longer than the states reach, answers as torch does to the whole."""
    spec = replace(RecurrentSpec(cell, 1, 9, VALUES, PLAIN), **PARTS[part])
    model = draw(spec, 5)
    contract = build_contract(model, "m")
    export_graphs(model, tmp_path, contract)
    given = draw_inputs(contract, 3, 12)
    expected = RECURRENT.reference(model, given)
    for chunk in (1, 5, 12):
        found = Runtime(tmp_path / "model.onnx", contract).run(given, chunk)
        assert compare(found, expected, f"chunks of {chunk}").largest <= PARITY


@pytest.mark.parametrize("name", EXAMPLES)
@torch.no_grad()
def test_chunks_with_carried_state_equal_the_whole(name: str) -> None:
    """However a sequence is cut, torch's outputs and final states are those of one call."""
    model = draw(EXAMPLES[name])
    x = inputs(model, 3, 12)
    whole, final = model(x, model.initial_state(3))
    for cuts in ([1] * 12, [5, 7], [2, 9, 1]):
        state, pieces = model.initial_state(3), []
        for piece in torch.split(x, cuts, dim=1):
            outputs, state = model(piece, state)
            pieces.append(outputs)
        for key, value in whole.items():
            close(torch.cat([piece[key] for piece in pieces], dim=1), value)
        for one, other in zip(state, final, strict=True):
            close(one, other)


@pytest.mark.parametrize("name", EXAMPLES)
@torch.no_grad()
def test_padding_never_changes_a_result(name: str) -> None:
    """Rows of several lengths, padded with real values and run together, answer and end as each row alone."""
    model = draw(EXAMPLES[name])
    x, lengths = inputs(model, 5, 11), torch.tensor([4, 11, 1, 7, 2])
    start = tuple(torch.rand_like(s) if s.is_floating_point() else s + 2 for s in model.initial_state(5))
    packed, after = model(x, start, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, end = model(x[row : row + 1, :length], tuple(s[row : row + 1] for s in start))
        for key, value in alone.items():
            close(packed[key][row, :length], value[0])
        for many, one in zip(after, end, strict=True):
            close(many[row], one[0])


@pytest.mark.parametrize("name", EXAMPLES)
@torch.no_grad()
def test_a_padded_batch_is_read_as_each_sequence_alone(name: str) -> None:
    """What the set trainer reads: from the initial state, padded with zeros, answers as one by one."""
    model = draw(EXAMPLES[name])
    x, lengths = inputs(model, 4, 9), torch.tensor([3, 9, 1, 6])
    for row, length in enumerate(lengths.tolist()):
        x[row, length:] = 0
    port = model.spec.input.name
    together = model.read({port: x}, {port: lengths})
    for row, length in enumerate(lengths.tolist()):
        alone = model.read({port: x[row : row + 1, :length]}, {port: lengths[row : row + 1]})
        for key, value in alone.items():
            close(together[key][row, :length], value[0])


@torch.no_grad()
def test_a_convolution_sees_zeros_before_the_first_step() -> None:
    """From the initial state it is torch's Conv1d with zeros on the left alone, dilation included."""
    spec = RecurrentSpec("gru", 0, 4, VALUES, PLAIN, convolutions=(Convolution(5, 3, 4, "tanh"),))
    model = draw(spec)
    x = inputs(model, 2, 9)
    convolution = model.convolutions[0].convolution
    assert isinstance(convolution, nn.Conv1d)
    y = torch.tanh(convolution(nn.functional.pad(x.transpose(1, 2), (8, 0)))).transpose(1, 2)
    outputs, (state,) = model(x, model.initial_state(2))
    close(outputs["y"], model.get_submodule("head")(torch.relu(model.dense(y))))
    assert torch.equal(state, x[:, 1:])


@torch.no_grad()
def test_attention_by_hand() -> None:
    """Step by step: shares over the last W hidden states, fewer at the beginning, and the present one among them."""
    window, hidden, steps = 4, 6, 9
    model = draw(RecurrentSpec("gru", 1, hidden, VALUES, PLAIN, attention=Attention(window)))
    x = inputs(model, 2, steps)
    states, _ = model.recurrent(x)
    part = model.attention
    expected = torch.zeros(2, steps, 3)
    for row in range(2):
        for t in range(steps):
            first = max(0, t - window + 1)
            query = part.query(states[row, t])
            near = range(first, t + 1)
            scores = torch.stack([query @ states[row, j] / math.sqrt(hidden) + part.distance[t - j] for j in near])
            context = torch.softmax(scores, 0) @ states[row, first : t + 1]
            mixed = torch.tanh(part.output(torch.cat([states[row, t], context])))
            expected[row, t] = model.get_submodule("head")(mixed)
    outputs, (_, past, count) = model(x, model.initial_state(2))
    close(outputs["y"], expected)
    close(past, states[:, -window + 1 :])
    assert count.tolist() == [[window - 1]] * 2
    assert model(x[:, :2], model.initial_state(2))[1][2].tolist() == [[2], [2]]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@torch.no_grad()
def test_residual_layers_by_hand(cell: str) -> None:
    """What goes into the second and third layer is added to what comes out; the first has another width."""
    model = draw(RecurrentSpec(cell, 3, 6, VALUES, PLAIN, residual=True))
    x = inputs(model, 2, 5)
    y, finals = x, []
    for index, layer in enumerate(model.stack):
        z, final = layer(y)
        y = z + y if index else z
        finals.append(final[0] if cell == "lstm" else final)
    outputs, state = model(x, model.initial_state(2))
    close(outputs["y"], model.get_submodule("head")(y))
    close(state[0], torch.cat(finals).transpose(0, 1))


@torch.no_grad()
def test_frames_are_read_one_by_one() -> None:
    """Convolution, ReLU and maximum of each frame alone, then the dense layer; colours have an axis of their own."""
    given = FrameInput(9, 7, channels=2)
    parts = (FrameConvolution(3, 3, 2, 2), FrameConvolution(4, 2))
    spec = RecurrentSpec(
        "gru", 0, 5, given, PLAIN, frame_convolutions=parts, convolutions=(Convolution(6, 2, activation="tanh"),)
    )
    assert spec.maps_shape == (4, 3, 3)
    model = draw(spec)
    x = inputs(model, 2, 3)
    assert x.shape == (2, 3, 2, 9, 7)
    one, _, pool, two, _ = model.frames.layers
    wanted = torch.stack([torch.relu(two(pool(torch.relu(one(frame))))).flatten(1) for frame in x.unbind(1)], 1)
    _, (seen,) = model(x, model.initial_state(2))
    close(seen[:, 0], wanted[:, -1])


@torch.no_grad()
def test_a_frame_model_without_convolutions_reads_pixels() -> None:
    """The pixels, row by row, are the features."""
    model = draw(EXAMPLES["frames-gru"])
    x = inputs(model, 2, 3)
    y, _ = model.recurrent(x.flatten(2))
    close(model(x, model.initial_state(2))[0]["digit"], model.get_submodule("head_digit")(y))


def test_a_learned_state_gets_a_gradient() -> None:
    """The values before the first step are parameters, the same for every row; a plain model has none."""
    model = draw(EXAMPLES["lstm-learned-state"])
    state = model.initial_state(3)
    assert all(torch.equal(s[0], s[2]) and s.shape == (3, 2, 12) and s[0].any() for s in state)
    outputs, _ = model(inputs(model, 3, 4), state)
    torch.autograd.backward(outputs["logits"].sum())
    for name in ("initial_h", "initial_c"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
    assert not [name for name, _ in draw(EXAMPLES["lstm"]).named_parameters() if name.startswith("initial")]


def test_a_learned_state_is_in_the_contract(tmp_path: Path) -> None:
    """Sessions begin with the very values that the model learnt; other states begin with zeros."""
    contract = write_example("conv1d-attention-gru", tmp_path, seed=4, is_verified=False)
    model = draw(EXAMPLES["conv1d-attention-gru"], 4)
    kinds = {state.name: state.initial.WhichOneof("kind") for state in contract.states}
    assert kinds == {"h": "data", "conv_0": "constant", "past": "constant", "past_count": "constant"}
    for state, wanted in zip(read_contract(tmp_path / "model.onnx").states, model.initial_state(2), strict=True):
        assert np.array_equal(initial_rows(state, 2), wanted.detach().numpy())
        assert numpy_dtype(state.dtype, state.name) == (np.int64 if state.name == "past_count" else np.float32)


def test_several_heads_are_several_outputs() -> None:
    """Two answers of one model: each an output with its classes named, task classification."""
    model = draw(EXAMPLES["conv2d-lstm"])
    contract = build_contract(model, "m")
    assert contract.task == pb.TASK_CLASSIFICATION
    found = {port.name: (list(port.shape), list(port.axes[0].labels)) for port in contract.outputs}
    assert found == {"digit": ([3], ["zero", "one", "two"]), "direction": ([2], ["left", "right"])}
    (frames,) = contract.inputs
    assert (list(frames.shape), frames.range.minimum, frames.range.maximum) == ([10, 12], 0, 1)
    outputs, _ = model(inputs(model, 2, 3), model.initial_state(2))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "digit": (2, 3, 3),
        "direction": (2, 3, 2),
    }
    tagging = replace(model.spec, heads=(ClassHead("symbols", ("e", "é"), "tagging"),))
    assert build_contract(draw(tagging), "m").task == pb.TASK_TAGGING
    mixed = replace(model.spec, heads=(*model.spec.heads, LinearHead(1)))
    assert build_contract(draw(mixed), "m").task == pb.TASK_OTHER


def test_weights_of_plain_models_keep_their_names() -> None:
    """Checkpoints from before there were parts still fit."""
    model = draw(RecurrentSpec("lstm", 1, 4, TokenInput(5, 3), (TokenHead(5),)))
    layers = [f"recurrent.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert list(model.state_dict()) == ["embedding.weight", *layers, "head.weight", "head.bias"]


def test_dropout_between_residual_layers_acts_only_while_training() -> None:
    """Two passes in training mode differ, two in evaluation mode do not."""
    model = draw(replace(EXAMPLES["lstm-4-layers-residual"], dropout=0.5))
    x, state = inputs(model, 2, 6), model.initial_state(2)
    assert torch.equal(model(x, state)[1][0], model(x, state)[1][0])
    model.train()
    assert not torch.equal(model(x, state)[1][0], model(x, state)[1][0])


def test_a_model_without_state_cannot_be_exported() -> None:
    """A dense layer alone has nothing to stream."""
    with pytest.raises(ExportError, match="layers: got 0 and no convolution over steps"):
        build_contract(draw(RecurrentSpec("gru", 0, 4, VALUES, PLAIN)), "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": -1}, r"layers: got -1, expected 0 or more"),
        ({"layers": 1, "residual": True}, r"residual: got True, expected false for fewer than 2 layers"),
        ({"layers": 0, "learned_state": True}, r"learned_state: got True, expected false without layers"),
        ({"frame_convolutions": (FrameConvolution(2),)}, r"frame_convolutions: got 1, expected none"),
        ({"heads": (LinearHead(1), LinearHead(2))}, r"heads: got \['y', 'y'\], expected at least one"),
        ({"input": FrameInput(3, 3), "frame_convolutions": (FrameConvolution(2, pool=4),)}, r"a row and a column left"),
    ],
)
def test_impossible_specifications_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    """The message names the field, what came and what was expected."""
    with pytest.raises(RecipeError, match=message):
        replace(RecurrentSpec("gru", 2, 4, VALUES, PLAIN), **change)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("convolutions", [{"channels": 8}], r"model.convolutions: missing kernel"),
        ("convolutions", [{"channels": 8, "kernel": 1}], r"convolutions.kernel: got 1, expected at least 2"),
        ("convolutions", [{"channels": 8, "kernel": 3, "width": 1}], r"model.convolutions: unknown key 'width'"),
        ("convolutions", {"channels": 8, "kernel": 3}, r"model.convolutions: got .*, expected a list of tables"),
        ("frame_convolutions", [{"channels": 0}], r"frame_convolutions.channels: got 0, expected at least 1"),
        ("attention", {"window": 1}, r"attention.window: got 1, expected at least 2"),
        ("attention", 8, r"model.attention: got 8, expected a table"),
        ("residual", "yes", r"model.residual: got 'yes', expected a value of type bool"),
    ],
)
def test_impossible_parts_of_a_recipe_are_refused_by_name(
    text_table: dict[str, Any], key: str, value: object, message: str
) -> None:
    """In a recipe's [model] table, and in the tables within it."""
    text_table["model"][key] = value
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text_table)


def test_a_model_with_every_part_is_trained_exported_and_proven(text_table: dict[str, Any], tmp_path: Path) -> None:
    """From the recipe to the verified model: convolution, residual layers, learned state, attention."""
    text_table["model"] |= {
        "family": "recurrent",
        "cell": "gru",
        "layers": 2,
        "dropout": 0.1,
        "residual": True,
        "learned_state": True,
        "convolutions": [{"channels": 8, "kernel": 3}],
        "attention": {"window": 5},
    }
    recipe = parse_recipe(text_table)
    assert parse_recipe(recipe.to_dict()) == recipe
    checkpoint = train(recipe, tmp_path / "run", device="cpu", show_progress=False)
    report = export_checkpoint(checkpoint, tmp_path / "model")
    assert report.bitwise
    assert report.parity is not None
    assert report.parity.largest <= 1e-5


def test_resets_start_from_the_learned_state() -> None:
    """Marked rows begin anew from the learned values, whose gradient they pass on; the others keep their own."""
    carried = (torch.zeros(3, 1, 2), torch.full((3, 1), 7))
    value = torch.ones(1, 2, requires_grad=True)
    initial = (value.expand(3, 1, 2), torch.zeros(3, 1, dtype=torch.int64))
    state = reset_rows(carried, initial, np.array([False, True, False]))
    assert state[0][:, 0, 0].tolist() == [0, 1, 0]
    assert state[1].tolist() == [[7], [0], [7]]
    torch.autograd.backward(state[0].sum())
    assert value.grad is not None
    assert value.grad.tolist() == [[1, 1]]
