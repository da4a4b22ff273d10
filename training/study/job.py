"""Jobs: one run of the study each: a recipe, a seed and what is measured of the trained model.

Owns: what makes two runs the same: the digest of all that the plan states of them. Must not know torch, files or
how a job is done.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from eddy.training.recipe import Recipe, parse_recipe

# Raised when a measurement is done in another way, so that stored results of the old way are not taken for the new.
FORMAT = 1


class Probe(StrEnum):
    """What is measured. TRAIN: losses and the test part's figures. The others add to that, but for SPEED.

    GRADIENT: how much of the loss's gradient reaches inputs further back. ATTENTION: where a translator looks. SPEED:
    steps per second of fresh weights in ONNX Runtime, without training; such a job runs alone.
    """

    TRAIN = "train"
    GRADIENT = "gradient"
    ATTENTION = "attention"
    SPEED = "speed"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: seeds, and the share of the full number of epochs."""

    name: str
    seeds: tuple[int, ...]
    share: float

    def epochs(self, full: int) -> int:
        """So many of the full number of epochs, at least one."""
        return max(1, round(full * self.share))

    def seeds_for(self, probe: Probe) -> tuple[int, ...]:
        """The seeds of such jobs: of speed, which chance hardly moves, only one where little time is to be spent."""
        return self.seeds if self.is_full or probe is not Probe.SPEED else self.seeds[:1]

    @property
    def is_full(self) -> bool:
        """True where nothing is left out."""
        return self.share == 1.0


SMALL = Size("small", (1, 2, 3), 1.0)
QUICK = Size("quick", (1, 2), 0.1)


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    section: whose question it answers. variant: what is compared there. tables: a recipe's [data], [model] and
    [training] as plain values, without the seed.
    """

    section: str
    variant: str
    seed: int
    probe: Probe
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The name of its result's file, without the ending; no other job has it."""
        kind = f"-{self.probe}" if self.probe is Probe.SPEED else ""
        return f"{self.section}/{self.variant}{kind}-{self.seed}"

    @property
    def is_alone(self) -> bool:
        """True where another job beside it would change what is measured."""
        return self.probe is Probe.SPEED

    def recipe(self) -> Recipe:
        """What is trained. No validation ends it early: its epochs are its budget. Raises RecipeError."""
        tables = {name: dict(table) for name, table in self.tables.items()}
        tables["training"] |= {"seed": self.seed, "patience": tables["training"]["epochs"]}
        return parse_recipe({"name": f"{self.section}-{self.variant}", "description": "A run of the study", **tables})

    def digest(self) -> str:
        """SHA-256 of what is stated here. Not in it: defaults of recipes, data, code and the versions of libraries."""
        text = json.dumps({"format": FORMAT} | asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
