"""What a recurrent model may have beside its cells, as plain validated values: convolutions and attention.

Knows neither torch nor onnx.
"""

from dataclasses import dataclass

from eddy.training.fields import require

ACTIVATIONS = ("relu", "tanh")


@dataclass(frozen=True, slots=True)
class Convolution:
    """A causal convolution over steps, before the recurrent layers: [T, features] -> [T, channels].

    channels: features that come out. kernel: steps that one output sees. dilation: steps between two of them.
    """

    channels: int
    kernel: int
    dilation: int = 1
    activation: str = "relu"

    def __post_init__(self) -> None:
        require(self.channels >= 1, "convolutions.channels", self.channels, "at least 1")
        require(self.kernel >= 2, "convolutions.kernel", self.kernel, "at least 2 steps")
        require(self.dilation >= 1, "convolutions.dilation", self.dilation, "at least 1")
        known = self.activation in ACTIVATIONS
        require(known, "convolutions.activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")

    @property
    def past(self) -> int:
        """Steps before the present one that an output sees: what the state keeps."""
        return (self.kernel - 1) * self.dilation


@dataclass(frozen=True, slots=True)
class FrameConvolution:
    """A convolution within one video frame, then ReLU and a maximum over squares of `pool` by `pool`.

    The frame is padded with kernel // 2 zeros on every side. channels: maps that come out. kernel, stride, pool: in
    rows and in columns.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    pool: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "kernel", "stride", "pool"):
            require(getattr(self, name) >= 1, f"frame_convolutions.{name}", getattr(self, name), "at least 1")

    def size_after(self, size: int) -> int:
        """Rows (or columns) that come out of so many."""
        padded = size + 2 * (self.kernel // 2) - self.kernel
        return (padded // self.stride + 1) // self.pool


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of each step to the last `window` hidden states of the last layer: its own and those before it."""

    window: int

    def __post_init__(self) -> None:
        require(self.window >= 2, "attention.window", self.window, "at least 2 steps, the present one among them")

    @property
    def past(self) -> int:
        """Hidden states before the present one: what the state keeps."""
        return self.window - 1


@dataclass(frozen=True, slots=True)
class StateShape:
    """One state tensor, [B, *shape]: float32, or int64 for a count. is_learned: its initial value is a parameter."""

    name: str
    shape: tuple[int, ...]
    meaning: str
    is_count: bool = False
    is_learned: bool = False
