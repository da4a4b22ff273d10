"""Shapes: which families there are, as far as recipes and specifications go.

Owns: the table from a family's tag to the dataclasses of its shape. Must not know torch: a recipe is checked without.
"""

from collections.abc import Mapping
from typing import Any

from eddy.training.errors import RecipeError
from eddy.training.families.recurrent.spec import RecurrentArchitecture, RecurrentSpec
from eddy.training.families.translation.spec import TranslationArchitecture, TranslationSpec
from eddy.training.fields import build, require
from eddy.training.spec import Architecture, Spec

# What a recipe or a checkpoint without a tag means: those from before there were families.
DEFAULT = RecurrentSpec.kind

_ARCHITECTURES: dict[str, type[Architecture]] = {
    RecurrentArchitecture.kind: RecurrentArchitecture,
    TranslationArchitecture.kind: TranslationArchitecture,
}
_SPECS: dict[str, type[Spec]] = {RecurrentSpec.kind: RecurrentSpec, TranslationSpec.kind: TranslationSpec}


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
