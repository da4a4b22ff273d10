"""ONNX Runtime: its providers, its sessions, and values on its devices.

Owns the only import of ONNX Runtime in the service. Must not know contracts, arenas or ticks.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import numpy as np
import onnx

from eddy.service.errors import ModelError, Reason

# ONNX Runtime's wheels report usage over the network unless told otherwise before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

# ONNX Runtime's kernels for one row take another path and give other bits.
MIN_ROWS = 2

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


def pad_rows(values: np.ndarray, num_rows: int = MIN_ROWS) -> np.ndarray:
    """`values` [B, ...] with at least `num_rows` rows, the last of them repeated."""
    missing = num_rows - len(values)
    return values if missing <= 0 else np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])


class Runtime:
    """One execution provider.

    Args:
        provider: a name from `available_providers`; num_threads: threads within one operator.

    Raises:
        ModelError: the provider is not available.
    """

    def __init__(self, provider: str, num_threads: int) -> None:
        if provider not in available_providers():
            raise ModelError(
                Reason.MODEL_NOT_READY, f"provider {provider!r} is not available, got {available_providers()}"
            )
        self.provider = provider
        self.device = _DEVICES[provider]
        self._num_threads = num_threads

    @property
    def is_cpu(self) -> bool:
        """Values share their memory with numpy arrays."""
        return self.device == "cpu"

    def session(self, model: onnx.ModelProto) -> ort.InferenceSession:
        """Loads a graph.

        Raises:
            ModelError: ONNX Runtime refuses it.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool would take a core from the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chosen: list[Any] = [self.provider]
        if not self.is_cpu:
            chosen = [(self.provider, {"use_tf32": "0"}), "CPUExecutionProvider"]
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=chosen)
        except Exception as error:
            raise ModelError(Reason.MODEL_NOT_READY, f"ONNX Runtime refuses the graph: {error}") from error

    def value(self, array: np.ndarray) -> Any:
        """An OrtValue on the device; on the CPU it shares `array`'s memory."""
        if self.is_cpu:
            return ort.OrtValue.ortvalue_from_numpy(array)
        return ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)
