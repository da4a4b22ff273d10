"""What goes into a model and what comes out, as plain validated values that every family of architectures shares.

Owns: inputs, heads, the names of cells, and what all specifications have in common. Knows neither torch nor onnx, so
that a recipe can be checked, and a contract written, without either.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from eddy.training.errors import RecipeError
from eddy.training.fields import build, require

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
# What recurrent layers compute with, as contracts name it.
FLOAT32, INT8 = "float32", "int8"
PRECISIONS = (FLOAT32, INT8)


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids, int64 [B, T], 0 <= id < vocabulary_size, each looked up in an embedding of width E.

    A recipe's architecture replaces `embedding` by its own.
    """

    vocabulary_size: int
    embedding: int = 32

    def __post_init__(self) -> None:
        require(self.vocabulary_size >= 2, "vocabulary_size", self.vocabulary_size, "at least 2")
        require(self.embedding >= 1, "embedding", self.embedding, "at least 1")

    @property
    def name(self) -> str:
        """The graph input's name."""
        return "tokens"

    @property
    def width(self) -> int:
        """Features per step that reach the first recurrent layer."""
        return self.embedding


@dataclass(frozen=True, slots=True)
class FeatureInput:
    """Real values, float32 [B, T, F], in their own units; the graph standardises them with (x - mean) / scale."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    name: str = "values"

    def __post_init__(self) -> None:
        require(len(self.mean) >= 1, "mean", self.mean, "one entry per feature, at least one")
        require(len(self.scale) == len(self.mean), "scale", self.scale, f"{len(self.mean)} entries, as mean has")
        require(all(s > 0 for s in self.scale), "scale", self.scale, "positive entries")

    @property
    def width(self) -> int:
        """Features per step that reach the first recurrent layer."""
        return len(self.mean)

    @property
    def is_identity(self) -> bool:
        """True when standardising changes nothing, so the graph can leave it out."""
        return all(m == 0.0 for m in self.mean) and all(s == 1.0 for s in self.scale)


@dataclass(frozen=True, slots=True)
class FrameInput:
    """Video frames, float32 [B, T, rows, columns] or [B, T, channels, rows, columns], brightness 0 to 1.

    channels: None where the frames have no such axis.
    """

    rows: int
    columns: int
    channels: int | None = None
    name: str = "frames"

    def __post_init__(self) -> None:
        require(self.rows >= 1, "rows", self.rows, "at least 1")
        require(self.columns >= 1, "columns", self.columns, "at least 1")
        require(self.channels is None or self.channels >= 1, "channels", self.channels, "at least 1")

    @property
    def planes(self) -> int:
        """Channels, 1 where there is no axis for them."""
        return self.channels or 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of one frame."""
        return (self.rows, self.columns) if self.channels is None else (self.channels, self.rows, self.columns)

    @property
    def width(self) -> int:
        """Features per step: the pixels."""
        return self.planes * self.rows * self.columns


@dataclass(frozen=True, slots=True)
class TokenHead:
    """Logits of the next token, float32 [B, T, V]."""

    vocabulary_size: int

    def __post_init__(self) -> None:
        require(self.vocabulary_size >= 2, "vocabulary_size", self.vocabulary_size, "at least 2")

    @property
    def name(self) -> str:
        """The graph output's name."""
        return "logits"


@dataclass(frozen=True, slots=True)
class QuantileHead:
    """Quantiles of one feature's future values, float32 [B, T, K, Q], in the feature's own units.

    horizons: steps ahead, rising. quantiles: levels in (0, 1), rising. target: index of the feature.
    """

    horizons: tuple[int, ...]
    quantiles: tuple[float, ...]
    target: int = 0

    def __post_init__(self) -> None:
        rising = list(self.horizons) == sorted(set(self.horizons))
        require(len(self.horizons) >= 1 and rising, "horizons", self.horizons, "at least one, rising")
        require(all(h >= 1 for h in self.horizons), "horizons", self.horizons, "steps ahead, 1 or more")
        rising = list(self.quantiles) == sorted(set(self.quantiles))
        require(len(self.quantiles) >= 1 and rising, "quantiles", self.quantiles, "at least one, rising")
        require(all(0 < q < 1 for q in self.quantiles), "quantiles", self.quantiles, "levels between 0 and 1")
        require(self.target >= 0, "target", self.target, "the index of a feature")

    @property
    def name(self) -> str:
        """The graph output's name."""
        return "quantiles"


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A plain projection of every step, float32 [B, T, outputs]."""

    outputs: int

    def __post_init__(self) -> None:
        require(self.outputs >= 1, "outputs", self.outputs, "at least 1")

    @property
    def name(self) -> str:
        """The graph output's name."""
        return "y"


@dataclass(frozen=True, slots=True)
class ClassHead:
    """Logits of named classes at every step, float32 [B, T, classes].

    name: the graph output's. labels: the classes, in order. task: "classification", or "tagging" where the classes
    are symbols to write for each step.
    """

    name: str
    labels: tuple[str, ...]
    task: str = "classification"

    def __post_init__(self) -> None:
        require(self.name != "", "name", self.name, "the graph output's name")
        require(len(self.labels) >= 2, "labels", self.labels, "at least 2 classes")
        require(len(set(self.labels)) == len(self.labels), "labels", self.labels, "names that differ")
        require(self.task in ("classification", "tagging"), "task", self.task, "'classification' or 'tagging'")


Input = TokenInput | FeatureInput | FrameInput
Head = TokenHead | QuantileHead | LinearHead | ClassHead

_INPUTS: dict[str, type[Input]] = {"tokens": TokenInput, "features": FeatureInput, "frames": FrameInput}
_HEADS: dict[str, type[Head]] = {
    "next_token": TokenHead,
    "quantiles": QuantileHead,
    "linear": LinearHead,
    "classes": ClassHead,
}


class Spec(Protocol):
    """Everything that fixes a model's architecture: a frozen dataclass of its family.

    kind: the family's tag.
    """

    kind: ClassVar[str]

    @property
    def input(self) -> Input:
        """What goes in, step by step."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """What comes out, one graph output each."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with `family`; `from_dict` reads it back."""

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Spec":
        """Inverse of `to_dict`. Raises RecipeError."""


class Architecture(Protocol):
    """A recipe's [model] table: a frozen dataclass of its family. kind: the family's tag, `family` in the table."""

    kind: ClassVar[str]

    def spec(self, given: Input, heads: tuple[Head, ...]) -> Spec:
        """The full specification: input and heads follow from the data."""


def head_shape(head: Head) -> tuple[int, ...]:
    """Axes of a head's output after [B, T]: (V,), (K, Q), (outputs,) or (classes,)."""
    if isinstance(head, QuantileHead):
        return len(head.horizons), len(head.quantiles)
    if isinstance(head, ClassHead):
        return (len(head.labels),)
    return (head.vocabulary_size if isinstance(head, TokenHead) else head.outputs,)


def check_ports(given: Input, heads: tuple[Head, ...]) -> None:
    """Raise RecipeError unless input and heads fit together."""
    names = [head.name for head in heads]
    require(len(names) >= 1 and len(set(names)) == len(names), "heads", names, "at least one, with names that differ")
    for head in heads:
        if isinstance(head, QuantileHead):
            features = given.width if isinstance(given, FeatureInput) else 0
            require(head.target < features, "target", head.target, f"one of the {features} input features")


def ports_to_dict(given: Input, heads: tuple[Head, ...]) -> dict[str, Any]:
    """Input and heads as plain values (for a checkpoint); `ports_from_dict` reads them back."""
    kind_of: dict[type, str] = {cls: kind for kind, cls in _INPUTS.items()}
    kind_of |= {cls: kind for kind, cls in _HEADS.items()}
    return {
        "input": {"kind": kind_of[type(given)]} | asdict(given),
        "heads": [{"kind": kind_of[type(head)]} | asdict(head) for head in heads],
    }


def ports_from_dict(values: Mapping[str, Any]) -> tuple[Input, tuple[Head, ...]]:
    """Inverse of `ports_to_dict`; checkpoints of one head may have it under `head`. Raises RecipeError."""
    try:
        given = dict(values["input"])
        heads = [dict(head) for head in (values["heads"] if "heads" in values else [values["head"]])]
        read = build(_INPUTS[given.pop("kind")], given, "input")
        return read, tuple(build(_HEADS[head.pop("kind")], head, "head") for head in heads)
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"model specification: {error}") from error


_Spec = TypeVar("_Spec")


def spec_from_values(cls: type[_Spec], values: Mapping[str, Any]) -> _Spec:
    """A specification of `cls` from what its `to_dict` gives. Raises RecipeError where that does not make a model."""
    given, heads = ports_from_dict(values)
    plain = {key: value for key, value in values.items() if key not in ("family", "input", "head", "heads")}
    return build(cls, plain, "model specification", {"input": given, "heads": heads})
