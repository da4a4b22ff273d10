"""What a task is: its [data] table, its data, its baselines and figures, and what they mean to a person.

Owns: the protocol that everything else in training knows tasks by. Must not know torch, so that a model file can be
measured without it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from eddy.training.answers import Answers
from eddy.training.chart import Level
from eddy.training.curve import Measure
from eddy.training.data import SetData, StreamData
from eddy.training.figures import Figure
from eddy.training.spec import Head, Input
from eddy.v1 import contract_pb2 as pb


class Source(Protocol):
    """A recipe's [data] table: a frozen dataclass of its task. kind: the task's tag, `kind` in the table."""

    kind: ClassVar[str]

    @property
    def source(self) -> str:
        """Where the data comes from: a name, a path, PACKAGE:FILE or wheel:NAME:PATH."""

    @property
    def licence(self) -> str:
        """Its licence, an SPDX name."""


class Task(Protocol):
    """One task. `source` and `data` are what its own `table` and `load` made."""

    @property
    def table(self) -> type[Any]:
        """The dataclass of the [data] table; its `kind` is the task's."""

    @property
    def baselines(self) -> Mapping[str, str]:
        """By the end of their figures' names, best first as a rule: what a person calls them."""

    def load(self, source: Any) -> Any:
        """Read and split the data: a StreamData or a SetData. Raises DataError, PackageError."""

    def ports(self, data: Any, source: Any) -> tuple[Input, tuple[Head, ...]]:
        """What goes into a model of this task and what comes out. The architecture chooses an embedding's width."""

    def symbols(self, data: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The vocabularies of the step graph's and of the prime graph's tokens, each empty where there is none."""

    def sample(self, data: Any, source: Any) -> str:
        """Real input that the model was not trained on: a text where it reads tokens, else CSV with a header."""

    def curve(self, data: Any, source: Any) -> tuple[Measure, tuple[Level, ...]]:
        """What the loss is for a person, and what the baselines reach of it on the validation part, if it is that."""

    def measure(self, answers: Answers, data: Any, source: Any) -> list[Figure]:
        """The figures of the test part: the model's by its answers, and the baselines'."""

    def describe(
        self, contract: pb.ModelContract, source: Any, symbols: tuple[str, ...], source_symbols: tuple[str, ...]
    ) -> None:
        """Say in the contract what its ports mean: task, meanings, units, vocabularies."""

    def show_figures(self, values: Mapping[str, float], source: Any) -> str:
        """The card's section on figures, in Markdown. values: the contract's figures by name."""

    def show_data(self, source: Any, sample: str) -> str:
        """What the card says of the data after its origin and licence. sample: the name of the sample's file."""

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """A section of the card on what the model does with its sample: title and Markdown, empty for none."""


TaskData = StreamData | SetData
