"""Shapes: which families there are, as far as recipes and specifications go.

Owns: the table from a family's tag to the dataclasses of its shape. Must not know torch: a recipe is checked without.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eddy.training.errors import OptionError, RecipeError
from eddy.training.families.bidirectional.spec import BidirectionalArchitecture, BidirectionalSpec
from eddy.training.families.recurrent.spec import RecurrentArchitecture, RecurrentSpec
from eddy.training.families.translation.spec import TranslationArchitecture, TranslationSpec
from eddy.training.fields import build, require
from eddy.training.spec import FLOAT32, Architecture, Spec

# What a recipe or a checkpoint without a tag means: those from before there were families.
DEFAULT = RecurrentSpec.kind

_ARCHITECTURES: dict[str, type[Architecture]] = {
    RecurrentArchitecture.kind: RecurrentArchitecture,
    BidirectionalArchitecture.kind: BidirectionalArchitecture,
    TranslationArchitecture.kind: TranslationArchitecture,
}
_SPECS: dict[str, type[Spec]] = {
    RecurrentSpec.kind: RecurrentSpec,
    BidirectionalSpec.kind: BidirectionalSpec,
    TranslationSpec.kind: TranslationSpec,
}


def parse_architecture(table: Mapping[str, Any]) -> Architecture:
    """A recipe's [model] table; `family` chooses what the other keys are. Raises RecipeError."""
    plain = dict(table)
    family = plain.pop("family", DEFAULT)
    require(family in _ARCHITECTURES, "model.family", family, f"one of {', '.join(_ARCHITECTURES)}")
    return build(_ARCHITECTURES[family], plain, "model")


def spec_from_dict(values: Mapping[str, Any]) -> Spec:
    """A specification from the plain values that its `to_dict` gave. Raises RecipeError."""
    family = values.get("family", DEFAULT)
    if family not in _SPECS:
        raise RecipeError(f"model specification: family: got {family!r}, expected one of {', '.join(_SPECS)}")
    return _SPECS[family].from_dict(values)


def on_grid(spec: Spec, block_steps: int | None, look_ahead_steps: int | None) -> Spec:
    """A bidirectional model's specification with another grid; None leaves that part as it is.

    Raises OptionError for models of other families, which have none, RecipeError for an impossible grid.
    """
    if block_steps is None and look_ahead_steps is None:
        return spec
    if not isinstance(spec, BidirectionalSpec):
        raise OptionError(f"block and look-ahead: got a {spec.kind} model, expected a bidirectional one")
    block_steps = spec.block_steps if block_steps is None else block_steps
    return spec.on_grid(block_steps, spec.look_ahead_steps if look_ahead_steps is None else look_ahead_steps)


def at_precision(spec: Spec, precision: str) -> Spec:
    """A recurrent model's specification in another precision, one of PRECISIONS; "" leaves it as it is.

    Raises OptionError for models of other families in anything but float32, RecipeError for those of this one that have
    no such precision.
    """
    if isinstance(spec, RecurrentSpec):
        return replace(spec, precision=precision or spec.precision)
    if precision not in ("", FLOAT32):
        raise OptionError(f"precision {precision}: got a {spec.kind} model, expected a recurrent one")
    return spec
