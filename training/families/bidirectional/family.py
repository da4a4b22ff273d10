"""The bidirectional family's entry in the registry: its contract, its references, and examples of every variant."""

import onnx
import torch
from torch import Tensor

from eddy.training.contract import STEP_FILE, describe_head, describe_input, streaming_contract, task_of
from eddy.training.errors import ContractError
from eddy.training.families.bidirectional.graph import build_step_graph, build_whole_graph
from eddy.training.families.bidirectional.latency import run_latency_controlled
from eddy.training.families.bidirectional.model import BidirectionalModel
from eddy.training.families.bidirectional.spec import COUNT, EMITTED, FLUSH, KIND, LENGTH, PENDING, BidirectionalSpec
from eddy.training.families.family import Tensors
from eddy.training.spec import ClassHead, FeatureInput, LinearHead, TokenInput
from eddy.v1 import contract_pb2 as pb

WHOLE_FILE = "whole.onnx"
_CELL_NAMES = {"lstm": "LSTM", "gru": "GRU"}
_MEANINGS = {"h": "forward hidden state", "c": "forward cell state"}


class BidirectionalFamily:
    """See `Family`: a step graph on a grid of blocks, and a whole graph that is exact."""

    kind = KIND

    def build(self, spec: BidirectionalSpec) -> BidirectionalModel:
        """A model with fresh weights."""
        return BidirectionalModel(spec)

    def contract(self, model: BidirectionalModel, name: str, description: str) -> pb.ModelContract:
        """Ports, states, graphs and the grid."""
        spec = model.spec
        contract = streaming_contract(name, description or _describe(spec), spec.cell)
        contract.task = task_of(spec.heads)
        contract.inputs.append(describe_input(spec.input))
        contract.outputs.extend(describe_head(head) for head in spec.heads)
        contract.graphs.whole = WHOLE_FILE
        contract.ports.MergeFrom(pb.Ports(length=LENGTH, flush=FLUSH, emitted=EMITTED))
        contract.streaming.block_steps = spec.block_steps
        contract.streaming.look_ahead_steps = spec.look_ahead_steps
        given = contract.inputs[0]
        _add_state(contract, PENDING, given.dtype, [spec.pending_steps, *given.shape], "input not yet answered")
        if given.HasField("range"):
            contract.states[-1].range.CopyFrom(given.range)
        _add_state(contract, COUNT, pb.DATA_TYPE_INT64, [], "how much of it there is, in steps")
        contract.states[-1].range.maximum = spec.pending_steps
        for state in spec.hidden_names:
            meaning = f"{_MEANINGS[state]} of every layer at the last block's end"
            _add_state(contract, state, pb.DATA_TYPE_FLOAT32, [spec.layers, spec.hidden], meaning)
            if spec.learned_state:
                value = model.get_parameter(f"initial_{state}")[0].detach().cpu().numpy()
                contract.states[-1].initial.data = value.astype("<f4").tobytes()
        return contract

    def graphs(self, model: BidirectionalModel) -> dict[str, onnx.ModelProto]:
        """The step graph on the grid of the model's specification, and the exact one."""
        return {STEP_FILE: build_step_graph(model), WHOLE_FILE: build_whole_graph(model)}

    @torch.no_grad()
    def reference(self, model: BidirectionalModel, inputs: Tensors, seen: Tensors | None = None) -> Tensors:
        """Outputs of streams that end with the input; the states as they are before that end."""
        x, spec = _read(model, inputs), model.spec
        lengths = torch.full((len(x),), x.shape[1])
        outputs, _, _ = run_latency_controlled(model, x, lengths, is_end=True)
        _, emitted, hidden = run_latency_controlled(model, x, lengths, is_end=False)
        found = {name: value.numpy() for name, value in outputs.items()}
        found |= {f"{n}_next": value.numpy() for n, value in zip(spec.hidden_names, hidden, strict=True)}
        waiting = int(lengths[0] - emitted[0])
        pending = torch.zeros(len(x), spec.pending_steps, *x.shape[2:], dtype=x.dtype)
        pending[:, :waiting] = x[:, x.shape[1] - waiting :]
        return found | {f"{PENDING}_next": pending.numpy(), f"{COUNT}_next": (lengths - emitted).numpy()}

    @torch.no_grad()
    def exact(self, model: BidirectionalModel, inputs: Tensors) -> Tensors:
        """The whole graph's outputs: every one depends on the whole sequence."""
        return {name: value.numpy() for name, value in model(_read(model, inputs)).items()}

    def examples(self) -> dict[str, BidirectionalSpec]:
        """Small models of every variant; one look-ahead longer than its blocks, one shorter, one none."""
        values, tokens = FeatureInput((1.0, -2.0, 0.0), (2.0, 0.5, 1.0)), TokenInput(11, 6)
        letters = (ClassHead("letters", tuple("abcdefg"), "tagging"),)
        answers = (ClassHead("colour", ("red", "green", "blue")), ClassHead("side", ("left", "right")))
        return {
            "bidirectional-lstm": BidirectionalSpec("lstm", 1, 12, tokens, letters, 0.0, 4, 6),
            "bidirectional-gru-stacked": BidirectionalSpec("gru", 2, 10, values, (LinearHead(3),), 0.1, 5, 2),
            "bidirectional-lstm-stacked": BidirectionalSpec("lstm", 3, 8, values, answers, 0.1, 1, 3),
            "bidirectional-learned-state": BidirectionalSpec(
                "lstm", 2, 8, tokens, letters, 0.0, 3, 4, learned_state=True
            ),
            "bidirectional-gru-without-look-ahead": BidirectionalSpec("gru", 1, 12, tokens, letters, 0.0, 3, 0),
        }


def _add_state(contract: pb.ModelContract, name: str, dtype: "pb.DataType", shape: list[int], meaning: str) -> None:
    """A state that begins with zeros."""
    initial = pb.InitialState(constant=0.0)
    contract.states.add(name=name, next_name=f"{name}_next", dtype=dtype, shape=shape, initial=initial, meaning=meaning)


def _read(model: BidirectionalModel, inputs: Tensors) -> Tensor:
    """The one input, as torch has it. Raises ContractError for others."""
    name = model.spec.input.name
    if set(inputs) != {name}:
        raise ContractError(f"the model file reads {sorted(inputs)}, the checkpoint {name!r}")
    return torch.from_numpy(inputs[name])


def _describe(spec: BidirectionalSpec) -> str:
    """The shape, for a person."""
    return f"{spec.layers} layers of bidirectional {_CELL_NAMES[spec.cell]}, {spec.hidden} units in each direction"


BIDIRECTIONAL = BidirectionalFamily()
