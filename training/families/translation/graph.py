"""The translation model's two graphs: prime (source -> memory and first state) and step (symbols -> logits).

Owns: their nodes and the names of their ports. Must not know contracts or files.

Padding changes nothing: the encoder's operator knows each row's length, every place beyond is 0 in the memory and has
an attention of exactly 0. Every look at the memory is a product of its own (T is folded into the batch), so that its
bits do not depend on how many steps a call has.
"""

import numpy as np
import onnx

from eddy.training.builder import Array, GraphBuilder, floats, integers
from eddy.training.families.nodes import (
    OPERATORS,
    Weights,
    cell_attributes,
    reorder,
    weights_of,
    write_layer,
    write_linear,
)
from eddy.training.families.translation.model import NOTHING, TranslationModel
from eddy.training.families.translation.spec import TranslationSpec

SOURCE, SOURCE_LENGTH = "source", "source_length"
MEMORY, WORDS, MASK, ATTENTION = "memory", "words", "mask", "attention"


def build_prime_graph(model: TranslationModel) -> onnx.ModelProto:
    """The encoder: `source` int64 [B, S] and `source_length` int64 [B] -> states under their names, float32.

    `memory` [B, P, H], `words` [B, P, E] and `mask` [B, P] with P = max_source_steps places (attention only), and the
    decoder's first state, each [B, 1, H]. S is at most P.
    """
    spec, weights, build = model.spec, weights_of(model), GraphBuilder("prime")
    table = build.constant("embedding", weights["embedding.weight"])
    lengths = build.node("Cast", [SOURCE_LENGTH], "lengths", to=onnx.TensorProto.INT32)
    turned = build.node("Transpose", [SOURCE], "source_time_first", perm=[1, 0])
    embedded = build.node("Gather", [table, turned], "embedded", axis=0)
    lasts = [f"{name}_last" for name in spec.state_names]
    build.split(
        OPERATORS[spec.cell],
        [embedded, *_encoder_constants(build, spec, weights), lengths],
        ["Y", *lasts],
        "encoder",
        direction="bidirectional",
        **cell_attributes(spec.cell, spec.hidden // 2),
    )
    for name, last in zip(spec.state_names, lasts, strict=True):
        _write_bridge(build, spec, weights, name, last)
    if spec.attention:
        _write_memory(build, spec)
    outputs = _memory_ports(spec)
    outputs += [floats(name, "B", 1, spec.hidden) for name in spec.state_names]
    return build.model([integers(SOURCE, "B", "S"), integers(SOURCE_LENGTH, "B")], outputs)


def build_step_graph(model: TranslationModel) -> onnx.ModelProto:
    """The decoder: `tokens` int64 [B, T] and the states -> `logits` [B, T, V], `attention` [B, T, P], next states.

    The memory's states are read only and have no successors; without attention they and `attention` are not there.
    """
    spec, weights, build = model.spec, weights_of(model), GraphBuilder()
    table = build.constant("embedding", weights["embedding.weight"])
    turned = build.node("Transpose", [spec.tokens.name], "tokens_time_first", perm=[1, 0])
    steps = build.node("Gather", [table, turned], "embedded", axis=0)
    to_layer, to_rows = build.shape(1, -1, spec.hidden), build.shape(-1, 1, spec.hidden)
    before = {name: build.node("Reshape", [name, to_layer], f"{name}_before") for name in spec.state_names}
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    decoder: list[Array] = [weights[f"decoder.{part}_l0"] for part in parts]
    hidden, after = write_layer(build, spec.cell, "decoder", steps, decoder, before)
    for name, value in after.items():
        build.node("Reshape", [value, to_rows], f"{name}_next")
    mixed = (
        _write_attention(build, spec, weights, hidden, table) if spec.attention else _write_mix(build, weights, hidden)
    )
    # The table is stored once; ONNX Runtime turns the constant when it loads the graph.
    by_symbol = build.node("Transpose", [table], "embedding_turned", perm=[1, 0])
    scores = build.node("MatMul", [mixed, by_symbol], "scores_of_symbols")
    biased = build.node("Add", [scores, build.constant("bias", weights["bias"])], "biased")
    build.node("Transpose", [biased], "logits", perm=[1, 0, 2])
    return build.model(*_step_ports(spec))


def memory_shapes(spec: TranslationSpec) -> dict[str, tuple[int, ...]]:
    """The immutable states, shape of one row; none without attention."""
    places = spec.max_source_steps
    return {MEMORY: (places, spec.hidden), WORDS: (places,), MASK: (places,)} if spec.attention else {}


def _memory_ports(spec: TranslationSpec) -> list[onnx.ValueInfoProto]:
    """The immutable states' typed ports; `words` holds ids."""
    shapes = memory_shapes(spec).items()
    return [(integers if name == WORDS else floats)(name, "B", *shape) for name, shape in shapes]


def _step_ports(spec: TranslationSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The step graph's typed inputs and outputs."""
    memory = _memory_ports(spec)
    states = [floats(name, "B", 1, spec.hidden) for name in spec.state_names]
    nexts = [floats(f"{name}_next", "B", 1, spec.hidden) for name in spec.state_names]
    outputs = [floats("logits", "B", "T", spec.vocabulary_size)]
    outputs += [floats(ATTENTION, "B", "T", spec.max_source_steps)] if spec.attention else []
    return [integers(spec.tokens.name, "B", "T"), *memory, *states], [*outputs, *nexts]


def _encoder_constants(build: GraphBuilder, spec: TranslationSpec, weights: Weights) -> list[str]:
    """W, R and B of both directions, forwards first."""

    def both(*parts: str) -> Array:
        return np.stack(
            [
                np.concatenate([reorder(spec.cell, weights[f"encoder.{part}_l0{way}"]) for part in parts])
                for way in ("", "_reverse")
            ]
        )

    return [
        build.constant("W_encoder", both("weight_ih")),
        build.constant("R_encoder", both("weight_hh")),
        build.constant("B_encoder", both("bias_ih", "bias_hh")),
    ]


def _write_bridge(build: GraphBuilder, spec: TranslationSpec, weights: Weights, name: str, last: str) -> None:
    """The encoder's last state [2, B, H/2] -> the decoder's first, [B, 1, H], under the state's name."""
    turned = build.node("Transpose", [last], f"{name}_rows", perm=[1, 0, 2])
    joined = build.node("Reshape", [turned, build.shape(-1, 1, spec.hidden)], f"{name}_joined")
    bridge = f"bridges.{name}"
    moved = write_linear(build, f"{name}_bridge", joined, weights[f"{bridge}.weight"], weights[f"{bridge}.bias"])
    build.node("Tanh", [moved], name)


def _write_memory(build: GraphBuilder, spec: TranslationSpec) -> None:
    """The encoder's outputs Y [S, 2, B, H/2] and the source -> memory, words and mask."""
    zero = build.constant("zero", np.array(0, np.float32))
    places = build.constant("places", np.arange(spec.max_source_steps, dtype=np.int64)[None])
    by_row = build.node("Unsqueeze", [SOURCE_LENGTH, build.shape(1)], "length_of_row")
    valid = build.node("Less", [places, by_row], "valid")
    build.node("Where", [valid, zero, build.constant("nothing", np.array(NOTHING, np.float32))], MASK)
    # Pads of [B, S, width]: nothing before, P - S steps after.
    given = build.node("Shape", [SOURCE], "source_steps", start=1, end=2)
    missing = build.node("Sub", [build.shape(spec.max_source_steps), given], "missing_steps")
    none = build.shape(0)
    pads = build.node("Concat", [none, none, none, none, missing, none], "pads", axis=0)
    outputs = build.node("Transpose", ["Y"], "Y_batch_first", perm=[2, 0, 1, 3])
    joined = build.node("Reshape", [outputs, build.shape(0, 0, spec.hidden)], "Y_joined")
    build.node("Pad", [joined, pads], MEMORY)
    # The operator writes 0 beyond a row's length by itself; whatever stands there in the source is put out here.
    row_pads = build.node("Concat", [none, none, none, missing], "row_pads", axis=0)
    padded = build.node("Pad", [SOURCE, row_pads], "words_padded")
    build.node("Where", [valid, padded, build.scalar(spec.vocabulary_size)], WORDS)


def _write_attention(build: GraphBuilder, spec: TranslationSpec, weights: Weights, hidden: str, table: str) -> str:
    """Decoder outputs [T, B, H] -> what the output layer reads, [T, B, E]; writes `attention`."""
    wide, single = build.shape(1), build.shape(2)
    asked = build.constant("query_weight", weights["attention.query.weight"].T)
    query = build.node("MatMul", [hidden, asked], "query")
    # [B, T, 1, H] times [B, 1, H, P]: one product of one row for every step of every row.
    query = build.node("Transpose", [query], "query_batch_first", perm=[1, 0, 2])
    query = build.node("Unsqueeze", [query, single], "query_of_step")
    memory = build.node("Unsqueeze", [MEMORY, wide], "memory_of_row")
    keys = build.node("Transpose", [memory], "keys_of_row", perm=[0, 1, 3, 2])
    scores = build.node("MatMul", [query, keys], "scores")
    mask = build.node("Unsqueeze", [MASK, build.shape(1, 2)], "mask_of_row")
    weighed = build.node("Softmax", [build.node("Add", [scores, mask], "scores_masked")], "weights_of_step", axis=-1)
    build.node("Squeeze", [weighed, single], ATTENTION)
    context = _write_look(build, "context", weighed, memory, single)
    seen = _write_seen(build, spec, table)
    copied = build.node("MatMul", [seen, build.constant("copy_weight", weights["attention.copy.weight"].T)], "copied")
    joined = build.node("Concat", [context, hidden], "context_and_hidden", axis=-1)
    return build.node("Add", [_write_mix(build, weights, joined), copied], "mixed_and_copied")


def _write_look(build: GraphBuilder, name: str, weighed: str, values: str, single: str) -> str:
    """[B, T, 1, P] times [B, 1, P, width] -> [T, B, width]."""
    product = build.node("MatMul", [weighed, values], f"{name}_of_step")
    squeezed = build.node("Squeeze", [product, single], f"{name}_batch_first")
    return build.node("Transpose", [squeezed], name, perm=[1, 0, 2])


def _write_seen(build: GraphBuilder, spec: TranslationSpec, table: str) -> str:
    """The mean of the source's vectors by the shares of `attention`, [T, B, E].

    The shares are summed by symbol and multiplied with the table, which is less work than to look up every vector.
    Places beyond the source's end stand for a symbol behind the last, which is cut off.
    """
    size = spec.vocabulary_size
    given = build.node("Shape", [spec.tokens.name], "rows_and_steps")
    sums = build.node("Concat", [given, build.shape(size + 1)], "sums_shape", axis=0)
    nothing = build.node("Expand", [build.constant("no_share", np.zeros((1, 1, 1), np.float32)), sums], "no_shares")
    by_step = build.node("Unsqueeze", [WORDS, build.shape(1)], "words_of_row")
    symbols = build.node("Expand", [by_step, build.node("Shape", [ATTENTION], "attention_shape")], "words_of_step")
    inputs = [nothing, symbols, ATTENTION]
    summed = build.node("ScatterElements", inputs, "shares_of_symbols", axis=2, reduction="add")
    known = build.node("Slice", [summed, build.shape(0), build.shape(size), build.shape(2)], "shares_of_known")
    return build.node("Transpose", [build.node("MatMul", [known, table], "seen_batch_first")], "seen", perm=[1, 0, 2])


def _write_mix(build: GraphBuilder, weights: Weights, steps: str) -> str:
    """[T, B, H or 2H] -> [T, B, E]."""
    return build.node("Tanh", [write_linear(build, "mix", steps, weights["mix.weight"], weights["mix.bias"])], "mixed")
