"""torch's exporter, as most files come into being: what tests of inspection share. Without torch they are skipped."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import onnx
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


def export(
    module: nn.Module,
    args: tuple[torch.Tensor, ...],
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
    free: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """What torch's exporter writes; without names and free axes it invents names and fixes all sizes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), args, file, input_names=inputs, output_names=outputs, dynamic_axes=free, dynamo=False
        )
    return onnx.load_from_string(file.getvalue())
