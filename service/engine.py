"""The engine: one model's step graph, wrapped around its state arena, on one execution provider.

Owns the ONNX Runtime session, the arena buffers and the input and output buffers, all on the provider's device. Must
not know sessions, positions or the wire: it sees rows of slots. One caller at a time (the scheduler's dispatcher
guarantees it): the arena is updated in place.

Ordering rules: slot 0 holds the initial state and slot 1 is scratch; neither is ever handed out. A tick never has
fewer than two rows, because ONNX Runtime's kernels for one row take another path and other bits.

Dimension key: B rows of a tick, T steps, S slots.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx

from eddy.service.contract import Contract, Port, State
from eddy.service.errors import ModelError, Reason
from eddy.service.graph import LIVE, READ_SLOTS, WRITE_SLOTS, ArenaPort, wrap_step_graph

# ONNX Runtime's wheels report usage over the network unless told otherwise before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

INITIAL_SLOT = 0
SCRATCH_SLOT = 1
NUM_RESERVED_SLOTS = 2
MIN_ROWS = 2

# Bindings are kept for reuse, because binding costs 25 us of a 45 us tick; bounded in number and in bytes.
_MAX_BINDINGS = 256
_MAX_BINDING_BYTES = 64 << 20

_DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}


@cache
def available_providers() -> tuple[str, ...]:
    """Execution providers that this build of ONNX Runtime and this machine have and Eddy supports, best first.

    The extra `gpu` brings the CUDA libraries as wheels, where no loader looks by itself: they are loaded here, once.
    """
    usable = usable_providers(ort.get_available_providers(), has_driver=_has_cuda_driver())
    if "CUDAExecutionProvider" in usable:
        with redirect_stdout(sys.stderr):  # Its remarks are no output of ours.
            ort.preload_dlls()
    return usable


def usable_providers(built: Sequence[str], *, has_driver: bool) -> tuple[str, ...]:
    """Those of a build's providers that Eddy supports, best first: CUDA only where NVIDIA's driver is installed."""
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider") if has_driver else ("CPUExecutionProvider",)
    return tuple(name for name in wanted if name in built)


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def runtime_version() -> str:
    """ONNX Runtime's version: bits hold for one version only."""
    return str(ort.__version__)


@dataclass(slots=True)
class _Binding:
    """Buffers of one (B, T), bound once: filling them and running is all that a tick does.

    Attributes:
        inputs: [B, T, ...] an input port; outputs: [B, T, ...] an output port, on the CPU; both as raw bytes.
        read_slots, write_slots: int64 [B]. All of these are views that leave padding rows out.
        device_inputs: values on the device, each with the host array to copy from; device_outputs: values on the
            device, padding included.
    """

    io: Any
    inputs: list[memoryview]
    read_slots: np.ndarray
    write_slots: np.ndarray
    outputs: list[memoryview]
    device_inputs: list[tuple[Any, np.ndarray]]
    device_outputs: list[Any]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class TickCost:
    """What a tick takes: `fixed_seconds + B * T * row_step_seconds`."""

    fixed_seconds: float
    row_step_seconds: float

    def seconds(self, row_steps: int) -> float:
        """Expected seconds of a tick of B x T = `row_steps`."""
        return self.fixed_seconds + row_steps * self.row_step_seconds


class Engine:
    """One model, loaded and ready to tick.

    Args:
        model: the step graph; contract: its contract.
        num_slots: S, slots to hand out (the reserved ones come on top).
        provider: an ONNX Runtime execution provider name from `available_providers`.
        num_threads: threads within one operator.

    Raises:
        ModelError: ONNX Runtime refuses the graph, or the self-test finds a wrong result.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        contract: Contract,
        *,
        num_slots: int,
        provider: str = "CPUExecutionProvider",
        num_threads: int = 1,
    ) -> None:
        if provider not in available_providers():
            raise ModelError(
                Reason.MODEL_NOT_READY, f"provider {provider!r} is not available, got {available_providers()}"
            )
        self.contract = contract
        self.provider = provider
        self.num_slots = num_slots
        self._device = _DEVICES[provider]
        wrapped = wrap_step_graph(model, contract)
        self.guarded_states = wrapped.guarded
        self._ports = wrapped.arenas
        self._session = _create_session(wrapped.model, provider, num_threads)
        # Changed only by `run` and the arena accessors, on the caller's thread.
        self._arenas = {port.state.name: self._create_arena(port.state) for port in self._ports}
        self._bindings: OrderedDict[tuple[int, int], _Binding] = OrderedDict()
        self._binding_bytes = 0
        # Of the last `run`: seconds inside ONNX Runtime.
        self.run_seconds = 0.0
        self.write_states(np.array([INITIAL_SLOT]), [port.state.initial[None] for port in self._ports])
        self._self_test(model, num_threads)

    @property
    def arena_bytes(self) -> int:
        """Bytes of all arenas on the device."""
        return self.contract.state_bytes * (self.num_slots + NUM_RESERVED_SLOTS)

    def run(
        self,
        inputs: Sequence[bytes],
        read_slots: np.ndarray | int,
        write_slots: np.ndarray | int,
        num_rows: int,
        num_steps: int,
    ) -> list[bytes]:
        """Steps B rows by T steps: state of row b comes from `read_slots[b]` and goes to `write_slots[b]`.

        Args:
            inputs: one block of raw bytes a port of the contract, [B, T, ...] in C order.
            read_slots, write_slots: int64 [B], or the slot itself where B = 1; write slots are distinct.
            num_rows: B; num_steps: T.

        Returns:
            One block of raw bytes an output port, [B, T, ...] in C order.

        Raises:
            ModelError: the graph failed; the rows' states are undefined.
        """
        binding = self._binding(num_rows, num_steps)
        for buffer, values in zip(binding.inputs, inputs, strict=True):
            buffer[:] = values
        binding.read_slots[:] = read_slots
        binding.write_slots[:] = write_slots
        for value, host in binding.device_inputs:
            value.update_inplace(host)
        start = time.perf_counter()
        try:
            # Without run options: passing any costs 65 us a call in ONNX Runtime 1.32's Python layer.
            self._session.run_with_iobinding(binding.io)
        except Exception as error:  # ONNX Runtime raises bare exceptions of several kinds.
            raise ModelError(Reason.MODEL_FAILED, f"the graph of {self.contract.name!r} failed: {error}") from error
        self.run_seconds = time.perf_counter() - start
        if binding.device_outputs:
            return [value.numpy()[:num_rows].tobytes() for value in binding.device_outputs]
        return [buffer.tobytes() for buffer in binding.outputs]

    def read_states(self, slots: np.ndarray) -> list[np.ndarray]:
        """Copies of the states in `slots` int64 [B]: one array a state, [B, ...]. Not for the hot path."""
        return [self._host_arena(port)[slots].copy() for port in self._ports]

    def write_states(self, slots: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """Overwrites the states in `slots` int64 [B] with `states`, one [B, ...] a state. Not for the hot path."""
        for port, rows in zip(self._ports, states, strict=True):
            arena = self._host_arena(port)
            arena[slots] = rows
            if self._device != "cpu":
                self._arenas[port.state.name].update_inplace(arena)

    def measure_cost(self, repeats: int = 15) -> TickCost:
        """Measures what a tick costs, on working slots: the fastest of `repeats` ticks of 2 and of 32 rows.

        The fastest, because other programs only ever make a tick slower, and what is measured here is kept.
        """
        small, large = 2, 32
        few, many = self._least_seconds(small, repeats), self._least_seconds(large, repeats)
        per_row_step = max((many - few) / (large - small), 1e-8)
        return TickCost(max(few - small * per_row_step, 0.0), per_row_step)

    def _least_seconds(self, rows: int, repeats: int) -> float:
        inputs = [_example(port, rows, 1).tobytes() for port in self.contract.inputs]
        read = np.full(rows, INITIAL_SLOT)
        write = np.arange(rows) % self.num_slots + NUM_RESERVED_SLOTS
        durations = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.run(inputs, read, write, rows, 1)
            durations.append(time.perf_counter() - start)
        return min(durations)

    # Buffers

    def _create_arena(self, state: State) -> Any:
        shape = [self.num_slots + NUM_RESERVED_SLOTS, *state.shape]
        # Zero pages are not resident until a slot is used.
        arena = np.zeros(shape, state.dtype)
        if not state.next_name and state.initial.any():
            arena[:] = state.initial  # Never scattered: every slot holds it from the start.
        if self._device == "cpu":
            return ort.OrtValue.ortvalue_from_numpy(arena)
        return ort.OrtValue.ortvalue_from_numpy(arena, self._device, 0)

    def _host_arena(self, port: ArenaPort) -> np.ndarray:
        """On the CPU a view of the arena itself, elsewhere a copy."""
        value: np.ndarray = self._arenas[port.state.name].numpy()
        return value

    def _binding(self, rows: int, num_steps: int) -> _Binding:
        key = (rows, num_steps)
        binding = self._bindings.get(key)
        if binding is not None:
            self._bindings.move_to_end(key)
            return binding
        binding = self._create_binding(rows, num_steps)
        self._bindings[key] = binding
        self._binding_bytes += binding.num_bytes
        while len(self._bindings) > _MAX_BINDINGS or (
            self._binding_bytes > _MAX_BINDING_BYTES and len(self._bindings) > 1
        ):
            _, oldest = self._bindings.popitem(last=False)
            self._binding_bytes -= oldest.num_bytes
        return binding

    def _create_binding(self, rows: int, num_steps: int) -> _Binding:
        """Buffers for B = `rows`; rows that pad to the minimum read the initial state, write scratch and stay so."""
        padded = max(rows, MIN_ROWS)
        io = self._session.io_binding()
        inputs = [_example(port, padded, num_steps) for port in self.contract.inputs]
        read = np.full(padded, INITIAL_SLOT)
        write = np.full((padded, 1), SCRATCH_SLOT)
        binding = _Binding(io, [_raw(array[:rows]) for array in inputs], read[:rows], write[:rows, 0], [], [], [], 0)
        hosts = [(port.name, array) for port, array in zip(self.contract.inputs, inputs, strict=True)]
        for name, array in [*hosts, (READ_SLOTS, read), (WRITE_SLOTS, write)]:
            value = self._value(array)
            if self._device != "cpu":
                binding.device_inputs.append((value, array))
            io.bind_ortvalue_input(name, value)
            binding.num_bytes += array.nbytes
        if self.guarded_states:
            io.bind_ortvalue_input(LIVE, self._value(np.ones(1, np.bool_)))
        for arena in self._ports:
            io.bind_ortvalue_input(arena.input_name, self._arenas[arena.state.name])
            if arena.state.next_name:
                io.bind_ortvalue_output(arena.output_name, self._arenas[arena.state.name])
        for port in self.contract.outputs:
            array = np.zeros((padded, num_steps, *port.shape), port.dtype)
            value = self._value(array)
            if self._device == "cpu":
                binding.outputs.append(_raw(array[:rows]))
            else:
                binding.device_outputs.append(value)
            io.bind_ortvalue_output(port.name, value)
            binding.num_bytes += array.nbytes
        return binding

    def _value(self, array: np.ndarray) -> Any:
        """An OrtValue on the device; on the CPU it shares `array`'s memory."""
        if self._device == "cpu":
            return ort.OrtValue.ortvalue_from_numpy(array)
        return ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)

    # Self-test

    def _self_test(self, model: onnx.ModelProto, num_threads: int) -> None:
        """Steps a few slots in three calls and compares with the unwrapped graph, states carried by hand.

        A neighbouring slot holds a marker: a wrong gather, scatter or copy shows there or in the difference.
        """
        rows = max(1, min(3, self.num_slots - 1))
        neighbour = np.array([NUM_RESERVED_SLOTS + min(rows, self.num_slots)])
        slots = np.arange(rows)[::-1] + NUM_RESERVED_SLOTS
        reference = _create_session(model, self.provider, num_threads)
        names = [port.name for port in self.contract.outputs]
        names += [state.next_name for state in self.contract.states if state.next_name]
        read = np.full(rows, INITIAL_SLOT)
        # The reference needs two rows as well, for the same kernels.
        pad = max(rows, MIN_ROWS)
        states = {port.state.name: np.repeat(port.state.initial[None], pad, axis=0) for port in self._ports}
        tolerance = max(self.contract.tolerance, 0.0 if self._device == "cpu" else 1e-4)
        has_neighbour = rows < self.num_slots
        marker = [np.full((1, *port.state.shape), 77, port.state.dtype) for port in self._ports]
        if has_neighbour:
            before = self.read_states(neighbour)
            self.write_states(neighbour, marker)
        for call, num_steps in enumerate((1, 1, 3)):
            inputs = [_example(port, pad, num_steps, seed=call) for port in self.contract.inputs]
            feed = {port.name: value for port, value in zip(self.contract.inputs, inputs, strict=True)}
            try:
                expected: list[Any] = list(reference.run(names, feed | states))
            except Exception as error:
                raise ModelError(Reason.MODEL_NOT_READY, f"the step graph does not run: {error}") from error
            for arena in self._ports:
                if arena.state.next_name:
                    states[arena.state.name] = expected[names.index(arena.state.next_name)]
            for port, wanted in zip(self.contract.outputs, expected, strict=False):
                shape = (pad, num_steps, *port.shape)
                if wanted.shape != shape:
                    raise ModelError(
                        Reason.MODEL_NOT_READY,
                        f"output {port.name!r} has shape {list(wanted.shape)} after {num_steps} steps of {pad} rows, "
                        f"the contract says {list(shape)}",
                    )
            got = self.run([value[:rows].tobytes() for value in inputs], read, slots, rows, num_steps)
            read = slots
            for port, block, wanted in zip(self.contract.outputs, got, expected, strict=False):
                values = np.frombuffer(block, port.dtype).reshape(rows, num_steps, *port.shape)
                self._compare(values, wanted[:rows], port.name, tolerance)
        for arena, value in zip(self._ports, self.read_states(slots), strict=True):
            self._compare(value, states[arena.state.name][:rows], arena.state.name, tolerance)
        if has_neighbour:
            for value, wanted in zip(self.read_states(neighbour), marker, strict=True):
                self._compare(value, wanted, "a neighbouring slot", 0.0)
            self.write_states(neighbour, before)
        initial = [port.state.initial[None] for port in self._ports]
        for value, wanted in zip(self.read_states(np.array([INITIAL_SLOT])), initial, strict=True):
            self._compare(value, wanted, "the initial-state slot", 0.0)

    def _compare(self, got: np.ndarray, wanted: np.ndarray, name: str, tolerance: float) -> None:
        difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
        if not difference <= tolerance:
            raise ModelError(
                Reason.MODEL_NOT_READY,
                f"self-test: {name!r} differs by {difference:.3g} between the wrapped and the plain graph "
                f"(allowed: {tolerance:.3g})",
            )


def _raw(array: np.ndarray) -> memoryview:
    """The memory of `array`, contiguous, as bytes."""
    return array.view(np.uint8).reshape(-1).data


def _create_session(model: onnx.ModelProto, provider: str, num_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning pool would take a core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen: list[Any] = [provider]
    if provider == "CUDAExecutionProvider":
        chosen = [(provider, {"use_tf32": "0"}), "CPUExecutionProvider"]
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=chosen)
    except Exception as error:
        raise ModelError(Reason.MODEL_NOT_READY, f"ONNX Runtime refuses the graph: {error}") from error


def _example(port: Port, rows: int, num_steps: int, seed: int = 0) -> np.ndarray:
    """Values within the port's range, [B, T, ...], that differ between rows."""
    generator = np.random.default_rng(seed)
    shape = (rows, num_steps, *port.shape)
    if port.dtype.kind == "f":
        low = -1.0 if port.minimum is None else port.minimum
        high = 1.0 if port.maximum is None else port.maximum
        return generator.uniform(low, high, shape).astype(port.dtype)
    low_int = 0 if port.minimum is None else int(port.minimum)
    high_int = low_int + 1 if port.maximum is None else int(port.maximum)
    return generator.integers(low_int, high_int, shape, endpoint=True).astype(port.dtype)
