"""The recurrent family's entry in the registry: its contract, its reference, and examples of every variant."""

import onnx
import torch

from eddy.training.contract import STEP_FILE, describe_head, describe_input, streaming_contract, task_of
from eddy.training.errors import ContractError
from eddy.training.families.family import Tensors
from eddy.training.families.recurrent.graph import build_step_graph
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.spec import KIND, RecurrentSpec
from eddy.training.spec import ClassHead, FeatureInput, LinearHead, TokenHead, TokenInput
from eddy.v1 import contract_pb2 as pb

_CELL_NAMES = {"rnn_tanh": "tanh RNN", "rnn_relu": "ReLU RNN", "lstm": "LSTM", "gru": "GRU"}
_MEANINGS = {"h": "hidden state of every layer", "c": "cell state of every layer"}


class RecurrentFamily:
    """See `Family`: one step graph, streamed exactly."""

    kind = KIND

    def build(self, spec: RecurrentSpec) -> RecurrentModel:
        """A model with fresh weights."""
        return RecurrentModel(spec)

    def contract(self, model: RecurrentModel, name: str, description: str) -> pb.ModelContract:
        """Ports, states and graphs."""
        spec = model.spec
        contract = streaming_contract(name, description or _describe(spec), spec.cell)
        contract.task = task_of(spec.heads)
        contract.inputs.append(describe_input(spec.input))
        contract.outputs.extend(describe_head(head) for head in spec.heads)
        for state in spec.state_names:
            contract.states.add(
                name=state,
                next_name=f"{state}_next",
                dtype=pb.DATA_TYPE_FLOAT32,
                shape=[spec.layers, spec.hidden],
                initial=pb.InitialState(constant=0.0),
                meaning=_MEANINGS[state],
            )
        return contract

    def graphs(self, model: RecurrentModel) -> dict[str, onnx.ModelProto]:
        """The step graph alone."""
        return {STEP_FILE: build_step_graph(model)}

    @torch.no_grad()
    def reference(self, model: RecurrentModel, inputs: Tensors) -> Tensors:
        """Outputs and final states of one call over everything."""
        name = model.spec.input.name
        if set(inputs) != {name}:
            raise ContractError(f"the model file reads {sorted(inputs)}, the checkpoint {name!r}")
        x = torch.from_numpy(inputs[name])
        outputs, state = model(x, model.initial_state(len(x)))
        finals = zip(model.spec.state_names, state, strict=True)
        return {key: value.numpy() for key, value in outputs.items()} | {f"{n}_next": v.numpy() for n, v in finals}

    def examples(self) -> dict[str, RecurrentSpec]:
        """Small models of every variant."""
        values = FeatureInput((1.0, -2.0, 0.0), (2.0, 0.5, 1.0))
        tokens, symbols = TokenInput(11, 6), (TokenHead(11),)
        answers = (ClassHead("colour", ("red", "green", "blue")), ClassHead("side", ("left", "right")))
        return {
            "rnn-tanh": RecurrentSpec("rnn_tanh", 1, 12, values, (LinearHead(3),)),
            "rnn-relu": RecurrentSpec("rnn_relu", 1, 12, values, (LinearHead(3),)),
            "gru": RecurrentSpec("gru", 1, 12, tokens, symbols),
            "lstm": RecurrentSpec("lstm", 1, 12, tokens, symbols),
            "lstm-stacked": RecurrentSpec("lstm", 2, 12, tokens, symbols, dropout=0.1),
            "gru-two-answers": RecurrentSpec("gru", 1, 12, values, answers),
        }


def _describe(spec: RecurrentSpec) -> str:
    """The shape, for a person."""
    return f"{spec.layers} layers of {_CELL_NAMES[spec.cell]}, {spec.hidden} units"


RECURRENT = RecurrentFamily()
