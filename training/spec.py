"""The shape of a recurrent model, as plain validated values.

Owns: which cell, how large, what goes in and what comes out, and the names of the tensors that follow from it. Knows
neither torch nor onnx, so that a recipe can be checked, and a contract written, without either.
"""

from dataclasses import asdict, dataclass
from typing import Any

from eddy.training.errors import RecipeError

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")


def require(ok: object, field: str, came: object, expected: str) -> None:
    """Raise RecipeError that names the field, what came and what was expected, unless `ok` is true."""
    if not ok:
        raise RecipeError(f"{field}: got {came!r}, expected {expected}")


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids, int64 [B, T], 0 <= id < vocabulary_size, each looked up in an embedding of width E."""

    vocabulary_size: int
    embedding: int

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


Input = TokenInput | FeatureInput
Head = TokenHead | QuantileHead | LinearHead

_INPUTS: dict[str, type[Input]] = {"tokens": TokenInput, "features": FeatureInput}
_HEADS: dict[str, type[Head]] = {"next_token": TokenHead, "quantiles": QuantileHead, "linear": LinearHead}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that fixes a model's architecture.

    cell: one of CELLS. layers: L. hidden: H, units per layer. dropout: share of units dropped after every
    recurrent layer while training; the recurrence itself keeps all of them.
    """

    cell: str
    layers: int
    hidden: int
    input: Input
    head: Head
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.layers >= 1, "layers", self.layers, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")
        if isinstance(self.head, QuantileHead):
            features = self.input.width if isinstance(self.input, FeatureInput) else 0
            require(self.head.target < features, "target", self.head.target, f"one of the {features} input features")

    @property
    def state_names(self) -> tuple[str, ...]:
        """Graph inputs that carry state, each float32 [B, L, H]; the next ones are these with `_next` appended."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    def to_dict(self) -> dict[str, Any]:
        """As plain values (for a checkpoint); `from_dict` reads it back."""
        kinds = {kind: cls for table in (_INPUTS, _HEADS) for kind, cls in table.items()}
        kind_of = {cls: kind for kind, cls in kinds.items()}
        return asdict(self) | {
            "input": {"kind": kind_of[type(self.input)]} | asdict(self.input),
            "head": {"kind": kind_of[type(self.head)]} | asdict(self.head),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "ModelSpec":
        """Inverse of `to_dict`. Raises RecipeError where the values do not make a model."""
        try:
            fields = dict(values)
            given, head = dict(fields.pop("input")), dict(fields.pop("head"))
            return ModelSpec(input=_INPUTS[given.pop("kind")](**given), head=_HEADS[head.pop("kind")](**head), **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"model specification: {error}") from error
