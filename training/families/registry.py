"""The registry of families: from a specification to its family.

Owns: the table of families and what is asked of whichever family a specification belongs to.
"""

from pathlib import Path
from typing import Any

from eddy.training.builder import check_structure
from eddy.training.contract import STEP_FILE, attach_contract, save_model
from eddy.training.families.bidirectional.family import BIDIRECTIONAL
from eddy.training.families.family import Family, Model
from eddy.training.families.recurrent.family import RECURRENT
from eddy.training.families.translation.family import TRANSLATION
from eddy.training.spec import Spec
from eddy.v1 import contract_pb2 as pb

_FAMILIES: dict[str, Family[Any, Any]] = {family.kind: family for family in (RECURRENT, BIDIRECTIONAL, TRANSLATION)}


def family_of(spec: Spec) -> Family[Any, Any]:
    """The family that a specification belongs to."""
    return _FAMILIES[spec.kind]


def build_model(spec: Spec) -> Model:
    """A model with fresh weights, drawn from torch's generator."""
    model: Model = family_of(spec).build(spec)
    return model


def build_contract(model: Model, name: str, description: str = "") -> pb.ModelContract:
    """What follows from the model: task, ports, states, graphs, streaming. The caller adds the meanings."""
    return family_of(model.spec).contract(model, name, description)


def write_graphs(model: Model, directory: Path, contract: pb.ModelContract) -> None:
    """Write every graph of a model into a folder, checked, the contract in the step graph. Raises ExportError."""
    for name, graph in family_of(model.spec).graphs(model).items():
        check_structure(graph)
        if name == STEP_FILE:
            attach_contract(graph, contract)
        save_model(directory / name, graph)


def all_examples() -> dict[str, Spec]:
    """Small specifications of every variant of every family, by name."""
    found: dict[str, Spec] = {}
    for family in _FAMILIES.values():
        examples = family.examples()
        assert not set(examples) & set(found), "examples have different names"
        found |= examples
    return found
