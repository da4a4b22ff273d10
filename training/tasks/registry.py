"""The registry of tasks: each by its kind, the tag of a recipe's [data] table.

Owns: which tasks there are. A new one is added here and nowhere else.
"""

from typing import Any

from eddy.training.errors import RecipeError
from eddy.training.tasks.accents import AccentsTask
from eddy.training.tasks.activity import ActivityTask
from eddy.training.tasks.clips import ClipsTask
from eddy.training.tasks.recall import RecallTask
from eddy.training.tasks.series import SeriesTask
from eddy.training.tasks.speech import SpeechTask
from eddy.training.tasks.task import Source, Task
from eddy.training.tasks.text import TextTask
from eddy.training.tasks.translation import TranslationTask

_TASKS: tuple[Task, ...] = (
    TextTask(),
    SeriesTask(),
    RecallTask(),
    AccentsTask(),
    ActivityTask(),
    SpeechTask(),
    ClipsTask(),
    TranslationTask(),
)
TASKS: dict[str, Task] = {task.table.kind: task for task in _TASKS}
# All baselines of all tasks: the end of their figures' names, and what a person calls them.
BASELINES: dict[str, str] = {name: label for task in _TASKS for name, label in task.baselines.items()}


def find_task(source: Source) -> Task:
    """The task of a recipe's [data]."""
    return TASKS[source.kind]


def find_table(kind: Any) -> type[Any]:
    """The dataclass of a [data] table of that kind. Raises RecipeError."""
    if kind not in TASKS:
        raise RecipeError(f"data.kind: got {kind!r}, expected {' or '.join(repr(known) for known in TASKS)}")
    return TASKS[kind].table
