"""Convolutions before the recurrent layers: over steps, with the last inputs as state, and within video frames.

Owns: each in torch, and the same in ONNX nodes.

A dense Conv1d's bits depend on the output's length in ONNX Runtime. So the graph shifts the steps by slices, joins them
along the features and multiplies by one constant matrix, which is exact.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eddy.training.builder import END, GraphBuilder
from eddy.training.families.nodes import Weights
from eddy.training.families.recurrent.parts import Convolution, FrameConvolution
from eddy.training.spec import FrameInput

_TORCH = {"relu": torch.relu, "tanh": torch.tanh}
_ONNX = {"relu": "Relu", "tanh": "Tanh"}


def last_steps(steps: Tensor, number: int, lengths: Tensor | None) -> Tensor:
    """The `number` steps of [B, N, F] that end at each row's last valid one, [B, number, F].

    lengths: int64 [B], how many of the row's steps are valid beyond the first `number`; None for all.
    """
    if lengths is None:
        return steps[:, steps.shape[1] - number :]
    index = lengths[:, None] + torch.arange(number, device=steps.device)
    return torch.gather(steps, 1, index[:, :, None].expand(-1, -1, steps.shape[2]))


class CausalConvolution(nn.Module):
    """A convolution over steps that sees no later one. State: the last inputs, [B, (kernel - 1) * dilation, F]."""

    def __init__(self, part: Convolution, width: int) -> None:
        super().__init__()
        self.part = part
        self.convolution = nn.Conv1d(width, part.channels, part.kernel, dilation=part.dilation)

    def forward(self, x: Tensor, past: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: [B, T, F]. Returns [B, T, channels] and the next state, each row's after its valid steps."""
        seen = torch.cat([past, x], dim=1)
        y = _TORCH[self.part.activation](self.convolution(seen.transpose(1, 2)).transpose(1, 2))
        return y, last_steps(seen, self.part.past, lengths)


class FrameEncoder(nn.Module):
    """Two-dimensional convolutions within each frame; frames are folded into the batch."""

    def __init__(self, parts: Sequence[FrameConvolution], planes: int) -> None:
        super().__init__()
        self.planes = planes
        layers: list[nn.Module] = []
        for part in parts:
            layers += [nn.Conv2d(planes, part.channels, part.kernel, part.stride, part.kernel // 2), nn.ReLU()]
            _begin_large(layers[-2])
            layers += [nn.MaxPool2d(part.pool)] if part.pool > 1 else []
            planes = part.channels
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, rows, columns] or [B, T, channels, rows, columns] -> [B, T, features]."""
        batch, steps = x.shape[:2]
        frames = x.reshape(batch * steps, self.planes, *x.shape[-2:])
        y: Tensor = self.layers(frames).reshape(batch, steps, -1)
        return y


def _begin_large(convolution: nn.Module) -> None:
    """Weights that keep the size of what passes a ReLU (He et al., 2015); torch's own shrink it by more than half.

    Moving digits were not learned at all without it: too little of them was left for the cells to see.
    """
    assert isinstance(convolution, nn.Conv2d)
    nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)


def write_convolution(
    build: GraphBuilder, part: Convolution, index: int, steps: str, state: str, weights: Weights
) -> str:
    """[T, B, F] -> [T, B, channels], for the torch module `convolutions.<index>`; writes `<state>_next` as well."""
    before = build.node("Transpose", [state], f"{state}_time_first", perm=[1, 0, 2])
    seen = build.node("Concat", [before, steps], f"{state}_seen", axis=0)
    # Slice k begins k * dilation steps into what is seen and is T long; the last one is the steps themselves.
    shifted = [
        build.node(
            "Slice",
            [seen, build.shape(k * part.dilation), build.shape(k * part.dilation - part.past), build.shape(0)],
            f"{state}_shifted_{k}",
        )
        for k in range(part.kernel - 1)
    ]
    joined = build.node("Concat", [*shifted, steps], f"{state}_joined", axis=2)
    weight = weights[f"convolutions.{index}.convolution.weight"]  # [channels, F, kernel]
    matrix = weight.transpose(2, 1, 0).reshape(-1, part.channels)
    product = build.node("MatMul", [joined, build.constant(f"{state}_weight", matrix)], f"{state}_product")
    bias = build.constant(f"{state}_bias", weights[f"convolutions.{index}.convolution.bias"])
    summed = build.node("Add", [product, bias], f"{state}_summed")
    kept = build.node("Slice", [seen, build.shape(-part.past), build.shape(END), build.shape(0)], f"{state}_kept")
    build.node("Transpose", [kept], f"{state}_next", perm=[1, 0, 2])
    return build.node(_ONNX[part.activation], [summed], f"{state}_features")


def write_frames(
    build: GraphBuilder, parts: Sequence[FrameConvolution], given: FrameInput, width: int, weights: Weights
) -> str:
    """Frames [B, T, ...] -> features, time first: [T, B, width], for the torch module `frames`."""
    maps = build.node("Reshape", [given.name, build.shape(-1, given.planes, given.rows, given.columns)], "frames_0")
    # torch numbers the layers of a Sequential, ReLUs and maxima included.
    layer = 0
    for index, part in enumerate(parts):
        constants = [
            build.constant(f"frames_{kind}_{index}", weights[f"frames.layers.{layer}.{kind}"])
            for kind in ("weight", "bias")
        ]
        maps = build.node(
            "Conv",
            [maps, *constants],
            f"frames_convolved_{index}",
            kernel_shape=[part.kernel] * 2,
            strides=[part.stride] * 2,
            pads=[part.kernel // 2] * 4,
        )
        maps = build.node("Relu", [maps], f"frames_{index + 1}")
        layer += 2
        if part.pool > 1:
            maps = build.node(
                "MaxPool", [maps], f"frames_pooled_{index}", kernel_shape=[part.pool] * 2, strides=[part.pool] * 2
            )
            layer += 1
    # B and T lie folded in one axis; the input still has them apart.
    axes = build.node("Shape", [given.name], "frames_axes", start=0, end=2)
    folded = build.node("Concat", [axes, build.shape(width)], "frames_unfolded", axis=0)
    features = build.node("Reshape", [maps, folded], "frames_features")
    return build.node("Transpose", [features], "features_time_first", perm=[1, 0, 2])
