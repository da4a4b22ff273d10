"""The plan: all sections of the study in order, and all of their runs.

Owns: which sections there are. Pure: the same size gives the same runs.
"""

from collections.abc import Sequence

from eddy.training.errors import OptionError
from eddy.training.study.attention import AttentionSection
from eddy.training.study.cells import CellsSection
from eddy.training.study.clips import ClipsSection
from eddy.training.study.depth import DepthSection
from eddy.training.study.job import Job, Size
from eddy.training.study.look_ahead import LookAheadSection
from eddy.training.study.recall import RecallSection
from eddy.training.study.section import Section

SECTIONS: tuple[Section, ...] = (
    RecallSection(),
    CellsSection(),
    DepthSection(),
    LookAheadSection(),
    ClipsSection(),
    AttentionSection(),
)


def find_sections(names: Sequence[str]) -> tuple[Section, ...]:
    """The named sections in the study's order; all of them for no name. Raises OptionError."""
    known = [section.name for section in SECTIONS]
    for name in names:
        if name not in known:
            raise OptionError(f"section: got {name!r}, expected some of {', '.join(known)}")
    return tuple(section for section in SECTIONS if not names or section.name in names)


def plan_jobs(sections: Sequence[Section], size: Size) -> tuple[Job, ...]:
    """All runs of these sections, in order."""
    return tuple(job for section in sections for job in section.jobs(size))
