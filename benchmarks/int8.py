"""`python -m benchmarks.int8`: LSTMs with weights of 8 bits against float32: speed, quality, and the laws.

Owns the measurements. Speed: `InferenceSession.run` on one thread, in turns with the float32 LSTM; the median of the
ratios. Quality: bits per character of a shipped text model on the last tenth of its text, which it has not seen. Batch
law: how far the outputs of a row move when strangers with large inputs share its batch, in batches of several sizes; a
row alone has a copy of itself beside it, because a tick never has fewer than two rows. Chunk law: how far they move
when one call of many steps is cut into calls of one.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console

from benchmarks.figure import Measurement, Note, figure
from benchmarks.machine import describe_machine
from benchmarks.models import build_model, model_path
from benchmarks.plan import Plan
from benchmarks.quantized import FLOAT32, SHIPPED, VARIANTS
from benchmarks.shape import LSTM_512, SHAPES
from benchmarks.worker import ROOT
from eddy.service.contract import read_contract

# Rows and steps of a call.
_CALLS = ((2, 1), (16, 1), (256, 1), (16, 16))
# Those of a busy server, for the figure of `make bench`.
_BUSY_ROWS = 256
_LAW_STEPS = 24
_STRANGERS = (1, 2, 4, 7, 30, 63)
# Inputs of strangers are so much larger.
_LOUD = 8.0
_NUM_STREAMS = 16

Feed = dict[str, np.ndarray]


class Stepper:
    """One graph on one thread; carries states from step to step."""

    def __init__(self, model: onnx.ModelProto, contract: Any) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._contract = contract
        self._names = [contract.outputs[0].name, *(state.next_name for state in contract.states)]

    def begin(self, rows: int) -> Feed:
        """Initial states."""
        return {state.name: np.repeat(state.initial[None], rows, axis=0) for state in self._contract.states}

    def step(self, values: np.ndarray, states: Feed) -> np.ndarray:
        """Outputs [B, T, ...]; the states are replaced."""
        outputs, *after = self._session.run(self._names, states | {self._contract.inputs[0].name: values})
        states.update(zip(states, after, strict=True))
        return np.asarray(outputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description="Weights of 8 bits against float32.")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each speed measurement")
    parser.add_argument("--model", default="text-lstm", help="shipped text model whose quality is measured")
    options = parser.parse_args(arguments)
    speeds = {(name, *call): _speeds(name, *call, options.rounds) for name in SHAPES for call in _CALLS}
    quality, bytes_of = _quality(ROOT / "models" / options.model / "1" / "model.onnx")
    batch_law, chunk_law = _laws()
    heads = [f"{name.removeprefix('lstm-')}, {rows} x {steps}" for name, rows, steps in speeds]
    console = Console(width=240, highlight=False, markup=False)
    last = ["bits per character", f"bytes of {options.model}", "batch law", "chunk law"]
    console.print(_line("speed, rows x steps:", *heads, *last))
    console.print(_line(*["---"] * (len(heads) + 5)))
    for variant in VARIANTS:
        name = variant.name
        ratios = [f"{found[name]:.2f}" if name in found else "" for found in speeds.values()]
        laws = [_verdict(law[name]) if name in law else "T = 1 only" for law in (batch_law, chunk_law)]
        console.print(_line(name, *ratios, f"{quality[name]:.4f}", f"{bytes_of[name]:,}", *laws))
    micros = [f"{found['us']:,.0f}" for found in speeds.values()]
    console.print(_line("float32 LSTM, us a call", *micros, "", "", "", ""))
    console.print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    return 0


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`int8_speedup`: the wide model of the repository as `eddy quantize` writes it, over the model itself."""
    model = onnx.load(model_path(repository, LSTM_512.name))
    contract = read_contract(model)
    plain, shipped = (
        _runner(Stepper(variant.rewrite(model), contract), contract, _BUSY_ROWS, 1) for variant in (FLOAT32, SHIPPED)
    )
    ratios, micros = [], []
    for _ in range(plan.repetitions):
        before, mine, after = (_seconds(run, plan.ceiling_seconds / 3) for run in (plain, shipped, plain))
        ratios.append((before + after) / 2 / mine)
        micros.append(mine * 1e6)
    text = f"{median(micros):,.0f} us a call of {_BUSY_ROWS} rows, one thread, without the server"
    return Measurement(tuple(figure(name, ratios) for name in names), (Note("int8_speedup", text),))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _verdict(difference: float) -> str:
    return "same bits" if difference == 0.0 else f"moves by {difference:.1e}"


def _speeds(name: str, rows: int, steps: int, rounds: int) -> dict[str, float]:
    """Steps/s over those of the float32 LSTM, by variant; and its microseconds, `us`."""
    model = build_model(SHAPES[name])
    contract = read_contract(model)
    runs = {
        variant.name: _runner(Stepper(variant.rewrite(model), contract), contract, rows, steps)
        for variant in VARIANTS
        if steps == 1 or variant.takes_chunks
    }
    ratios: dict[str, list[float]] = {variant: [] for variant in runs}
    bare = []
    for _ in range(rounds):
        for variant, run in runs.items():
            # Turn and turn about: the float32 LSTM directly before and after each.
            before, mine, after = _seconds(runs[FLOAT32.name]), _seconds(run), _seconds(runs[FLOAT32.name])
            ratios[variant].append((before + after) / 2 / mine)
            bare.append(before)
    return {variant: median(values) for variant, values in ratios.items()} | {"us": median(bare) * 1e6}


def _runner(stepper: Stepper, contract: Any, rows: int, steps: int) -> Callable[[], object]:
    values = np.random.default_rng(0).standard_normal((rows, steps, *contract.inputs[0].shape), np.float32)
    states = stepper.begin(rows)
    return lambda: stepper.step(values, states)


def _seconds(run: Callable[[], object], least: float = 0.01) -> float:
    """Seconds of a call: the fastest of three averages over `least` seconds each, others only ever slow it down."""
    run()
    best = float("inf")
    for _ in range(3):
        begin, calls = time.perf_counter(), 0
        while (spent := time.perf_counter() - begin) < least or not calls:
            run()
            calls += 1
        best = min(best, spent / calls)
    return best


def _quality(path: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Bits per character of the unseen tenth, and the bytes of the model file, by variant."""
    model = onnx.load(path)
    contract = read_contract(model)
    tokens = _unseen(contract.message.vocabulary)
    length = len(tokens) // _NUM_STREAMS
    streams = tokens[: length * _NUM_STREAMS].reshape(_NUM_STREAMS, length)
    bits, sizes = {}, {}
    for variant in VARIANTS:
        written = variant.rewrite(model)
        stepper = Stepper(written, contract)
        states = stepper.begin(_NUM_STREAMS)
        total = 0.0
        for step in range(length - 1):
            scores = stepper.step(streams[:, step : step + 1], states)[:, 0].astype(np.float64)
            scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
            total -= scores[np.arange(_NUM_STREAMS), streams[:, step + 1]].sum()
        bits[variant.name] = total / (_NUM_STREAMS * (length - 1)) / np.log(2)
        sizes[variant.name] = len(written.SerializeToString())
    return bits, sizes


def _unseen(vocabulary: Any) -> np.ndarray:
    """The last tenth of the text that the shipped models learnt from, as token ids int64 [N]."""
    from pydoc_data import topics

    from eddy.training.data import split_points
    from eddy.training.tasks.text import read_text

    text = read_text(topics.__name__)
    ids = {symbol: number for number, symbol in enumerate(vocabulary.symbols)}
    return np.array([ids.get(letter, vocabulary.unknown_id) for letter in text[split_points(len(text))[1] :]])


def _laws() -> tuple[dict[str, float], dict[str, float]]:
    """How far a row's outputs move, by variant: when strangers join it, and when its steps come in one call."""
    batch = {variant.name: 0.0 for variant in VARIANTS}
    chunk = {variant.name: 0.0 for variant in VARIANTS if variant.takes_chunks}
    for shape in SHAPES.values():
        model = build_model(shape)
        contract = read_contract(model)
        generator = np.random.default_rng(1)
        mine = generator.standard_normal((1, _LAW_STEPS, shape.features), np.float32)
        strangers = _LOUD * generator.standard_normal((max(_STRANGERS), _LAW_STEPS, shape.features), np.float32)
        for variant in VARIANTS:
            stepper = Stepper(variant.rewrite(model), contract)
            alone = _outputs(stepper, np.concatenate([mine, mine]), 1)
            for number in _STRANGERS:
                among = _outputs(stepper, np.concatenate([mine, strangers[:number]]), 1)
                batch[variant.name] = max(batch[variant.name], float(np.abs(alone - among).max()))
            if variant.takes_chunks:
                whole = _outputs(stepper, np.concatenate([mine, mine]), _LAW_STEPS)
                chunk[variant.name] = max(chunk[variant.name], float(np.abs(alone - whole).max()))
    return batch, chunk


def _outputs(stepper: Stepper, values: np.ndarray, num_steps: int) -> np.ndarray:
    """Outputs of the first of the rows [B, T, F], in calls of `num_steps`."""
    states = stepper.begin(len(values))
    parts = [
        stepper.step(values[:, begin : begin + num_steps], states)[0] for begin in range(0, values.shape[1], num_steps)
    ]
    return np.concatenate(parts)


if __name__ == "__main__":
    sys.exit(main())
