"""The translation family's entry in the registry: its contract, its reference, and examples of every variant."""

import copy

import onnx
import torch

from eddy.training.contract import STEP_FILE, describe_head, describe_input, streaming_contract
from eddy.training.errors import ContractError
from eddy.training.families.family import Tensors
from eddy.training.families.translation.graph import (
    ATTENTION,
    MASK,
    MEMORY,
    SOURCE,
    SOURCE_LENGTH,
    WORDS,
    build_prime_graph,
    build_step_graph,
    memory_shapes,
)
from eddy.training.families.translation.model import NOTHING, TranslationModel
from eddy.training.families.translation.spec import KIND, TranslationSpec
from eddy.training.spec import TokenHead, TokenInput
from eddy.v1 import contract_pb2 as pb

PRIME_FILE = "prime.onnx"

_CELL_NAMES = {"gru": "GRU", "lstm": "LSTM"}
_MEANINGS = {
    MEMORY: "the encoder's output for every symbol of the source",
    WORDS: "every symbol of the source, an index into the source vocabulary's symbols; their number beyond its end",
    MASK: f"added to attention's scores: 0 where the source has a symbol, {NOTHING:g} elsewhere",
    "h": "the decoder's hidden state",
    "c": "the decoder's cell state",
}


class TranslationFamily:
    """See `Family`: a prime graph reads the source, a step graph writes the target and streams exactly."""

    kind = KIND

    def build(self, spec: TranslationSpec) -> TranslationModel:
        """A model with fresh weights."""
        return TranslationModel(spec)

    def contract(self, model: TranslationModel, name: str, description: str) -> pb.ModelContract:
        """Ports, states and graphs."""
        spec = model.spec
        contract = streaming_contract(name, description or _describe(spec), spec.cell)
        contract.task = pb.TASK_TRANSLATION
        contract.graphs.prime = PRIME_FILE
        contract.ports.prime_length = SOURCE_LENGTH
        contract.max_prime_steps = spec.max_source_steps
        source = contract.prime_inputs.add()
        source.CopyFrom(describe_input(spec.input))
        source.name = SOURCE
        source.meaning = "token id of the source, an index into the source vocabulary's symbols"
        contract.inputs.append(describe_input(spec.input))
        contract.inputs[0].meaning = "the symbol written last, an index into the vocabulary's symbols"
        contract.outputs.extend(describe_head(head) for head in spec.heads)
        if spec.attention:
            contract.outputs.append(_describe_attention(spec))
        for state, shape in memory_shapes(spec).items():
            begins = {MASK: NOTHING, WORDS: spec.vocabulary_size}
            initial = pb.InitialState(constant=begins.get(state, 0.0))
            contract.states.add(name=state, shape=shape, immutable=True, initial=initial)
        for state in spec.state_names:
            initial = pb.InitialState(constant=0.0)
            contract.states.add(name=state, next_name=f"{state}_next", shape=[1, spec.hidden], initial=initial)
        for entry in contract.states:
            entry.dtype = pb.DATA_TYPE_INT64 if entry.name == WORDS else pb.DATA_TYPE_FLOAT32
            entry.meaning = _MEANINGS[entry.name]
            if entry.name == WORDS:
                entry.range.CopyFrom(pb.ValueRange(minimum=0, maximum=spec.vocabulary_size))
        return contract

    def graphs(self, model: TranslationModel) -> dict[str, onnx.ModelProto]:
        """The decoder as the step graph, the encoder as the prime graph."""
        return {STEP_FILE: build_step_graph(model), PRIME_FILE: build_prime_graph(model)}

    @torch.no_grad()
    def reference(self, model: TranslationModel, inputs: Tensors, seen: Tensors | None = None) -> Tensors:
        """Outputs and final states of one call over everything.

        inputs: `tokens` [B, T]; with `source` [B, S] and `source_length` [B] the source is read first, without them
        nothing is. Computed in double precision: attention to long sources is the sum of many products, and
        torch's own rounding of them in single precision would be twice the graph's.
        """
        spec = model.spec
        name, prime = spec.tokens.name, {SOURCE, SOURCE_LENGTH}
        if set(inputs) not in ({name}, {name} | prime):
            raise ContractError(f"the model file reads {sorted(inputs)}, the checkpoint {sorted({name} | prime)}")
        given = {key: torch.from_numpy(value) for key, value in inputs.items()}
        exact = copy.deepcopy(model).double()
        if SOURCE in given:
            encoded = exact.encode(given[SOURCE], given[SOURCE_LENGTH])
        else:
            encoded = exact.no_source(len(given[name]))
        logits, weights, state = exact.decode(given[name], encoded, encoded.state)
        found = {"logits": logits} | {f"{n}_next": s for n, s in zip(spec.state_names, state, strict=True)}
        if weights is not None:
            missing = spec.max_source_steps - weights.shape[2]
            found[ATTENTION] = torch.nn.functional.pad(weights, (0, missing))
        return {key: value.float().numpy() for key, value in found.items()}

    def exact(self, model: TranslationModel, inputs: Tensors) -> Tensors:
        """None: there is no whole graph."""
        return {}

    def examples(self) -> dict[str, TranslationSpec]:
        """Small models of every variant."""
        tokens, symbols = TokenInput(17, 6), (TokenHead(17),)
        return {
            "translation-gru": TranslationSpec("gru", 12, tokens, symbols, max_source_steps=9),
            "translation-lstm": TranslationSpec("lstm", 12, tokens, symbols, dropout=0.2, max_source_steps=9),
            "translation-no-attention": TranslationSpec(
                "gru", 12, tokens, symbols, attention=False, max_source_steps=9
            ),
        }


def _describe_attention(spec: TranslationSpec) -> pb.TensorSpec:
    return pb.TensorSpec(
        name=ATTENTION,
        dtype=pb.DATA_TYPE_FLOAT32,
        shape=[spec.max_source_steps],
        meaning="share of the look that each symbol of the source had; 0 beyond its end",
    )


def _describe(spec: TranslationSpec) -> str:
    """The shape, for a person."""
    cell, half = _CELL_NAMES[spec.cell], spec.hidden // 2
    looks = "with attention" if spec.attention else "without attention"
    return f"encoder of one bidirectional layer of {cell}, {half} units each way; decoder of {spec.hidden}, {looks}"


TRANSLATION = TranslationFamily()
