"""The recurrent family's entry in the registry: its contract, its reference, and examples of every variant."""

import onnx
import torch

from eddy.training.contract import STEP_FILE, describe_head, describe_input, streaming_contract, task_of
from eddy.training.errors import ContractError, ExportError
from eddy.training.families.family import Tensors
from eddy.training.families.recurrent.examples import recurrent_examples
from eddy.training.families.recurrent.graph import build_step_graph
from eddy.training.families.recurrent.levels import check_initial
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.parts import StateShape
from eddy.training.families.recurrent.spec import KIND, RecurrentSpec
from eddy.training.spec import INT8
from eddy.v1 import contract_pb2 as pb

_CELL_NAMES = {"rnn_tanh": "tanh RNN", "rnn_relu": "ReLU RNN", "lstm": "LSTM", "gru": "GRU"}


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
        contract.task, contract.precision = task_of(spec.heads), spec.precision
        contract.inputs.append(describe_input(spec.input))
        contract.outputs.extend(describe_head(head) for head in spec.heads)
        if not spec.states:
            raise ExportError("layers: got 0 and no convolution over steps, expected a model with a state to stream")
        for state in spec.states:
            added = contract.states.add(
                name=state.name,
                next_name=f"{state.name}_next",
                dtype=pb.DATA_TYPE_INT64 if state.is_count else pb.DATA_TYPE_FLOAT32,
                shape=state.shape,
                initial=_initial(model, state),
                meaning=state.meaning,
            )
            if state.is_count and spec.attention is not None:
                added.range.maximum = spec.attention.past
            if state.name == "h" and spec.precision == INT8:
                added.range.minimum, added.range.maximum = -1, 1
        return contract

    def graphs(self, model: RecurrentModel) -> dict[str, onnx.ModelProto]:
        """The step graph alone."""
        return {STEP_FILE: build_step_graph(model)}

    @torch.no_grad()
    def reference(self, model: RecurrentModel, inputs: Tensors, seen: Tensors | None = None) -> Tensors:
        """Outputs and final states of one call over everything."""
        name = model.spec.input.name
        if set(inputs) != {name}:
            raise ContractError(f"the model file reads {sorted(inputs)}, the checkpoint {name!r}")
        x = torch.from_numpy(inputs[name])
        guide = torch.from_numpy(seen["h_next"]) if seen and model.spec.precision == INT8 else None
        outputs, state = model(x, model.initial_state(len(x)), seen=guide)
        finals = zip(model.spec.state_names, state, strict=True)
        return {key: value.numpy() for key, value in outputs.items()} | {f"{n}_next": v.numpy() for n, v in finals}

    def exact(self, model: RecurrentModel, inputs: Tensors) -> Tensors:
        """None: there is no whole graph."""
        return {}

    def examples(self) -> dict[str, RecurrentSpec]:
        """Small models of every variant."""
        return recurrent_examples()


def _initial(model: RecurrentModel, state: StateShape) -> pb.InitialState:
    """Zero, or the learned values: one row, little-endian."""
    if not state.is_learned:
        return pb.InitialState(constant=0.0)
    value = model.get_parameter(f"initial_{state.name}").detach().cpu().numpy()
    if model.spec.precision == INT8:
        check_initial(state.name, value)
    return pb.InitialState(data=value.astype("<f4").tobytes())


def _describe(spec: RecurrentSpec) -> str:
    """The shape, for a person."""
    parts = [f"{len(spec.frame_convolutions)} convolutions of each frame"] if spec.frame_convolutions else []
    parts += [f"{len(spec.convolutions)} causal convolutions"] if spec.convolutions else []
    layers = f"{spec.layers} layers of {_CELL_NAMES[spec.cell]}" if spec.layers else "a dense layer"
    options = (", residual" if spec.residual else "") + (", int8" if spec.precision == INT8 else "")
    parts.append(f"{layers}, {spec.hidden} units{options}")
    parts += [f"attention to its last {spec.attention.window} steps"] if spec.attention else []
    return "; ".join(parts)


RECURRENT = RecurrentFamily()
