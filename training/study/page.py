"""The page: README.md and its pictures, made from stored results alone.

Owns: the order of what a person reads, and which files the page consists of. A section's own words are its; what a
person concluded from committed results is read from `notes/SECTION.md` in the study's folder, where there is such a
file. Must not know torch.
"""

from collections.abc import Sequence
from pathlib import Path

from eddy.training.errors import StudyError
from eddy.training.storage import make_folder, write_whole
from eddy.training.study.job import Size
from eddy.training.study.result import Results, Store
from eddy.training.study.section import Claim, Section, table
from eddy.training.study.spread import Verdict

PAGE, NOTES = "README.md", "notes"
# In the page's first lines: which size it is of, so that one size never overwrites another's page.
MARK = "<!-- study: {} -->"
ABOUT = (
    "Textbooks say how plain, gated, deep, bidirectional, convolutional and attending recurrent models differ. Here "
    "each of these assertions is trained and measured, by the same code that trains, exports and serves the project's "
    'models: size "{size}", {seeds} seeds each, on the CPU, one thread a run. Every run stops by its own number of '
    "epochs, not by the clock. A small size shows what small models do in short trainings; it says nothing of large "
    "ones."
)
RULE = (
    "Numbers are the median of the seeds, with the lowest and the highest in brackets. An assertion *holds* where "
    "every seed of the one side is better than every seed of the other, *does not hold* where it is the other way "
    "round, and is *undecided* in between. Of an assertion in several parts the worst counts."
)
AGAIN = (
    "Again, or on from where it stopped: `.venv/bin/{command}`. Every run is one file in [results](results), with its "
    "recipe; a run whose recipe has changed is done again."
)

_PLURAL = {
    Verdict.HOLDS: "hold",
    Verdict.FAILS: "do not hold",
    Verdict.OPEN: "are undecided",
    Verdict.MISSING: "are not measured yet",
}


def check_folder(folder: Path, size: Size) -> None:
    """Raise StudyError where the folder holds a page of another size, or one that is not ours."""
    path = folder / PAGE
    if path.exists() and MARK.format(size.name) not in path.read_text(encoding="utf-8"):
        raise StudyError(f"{path}: got another page, expected none or one of the {size.name} study; choose --output")


def write_page(folder: Path, sections: Sequence[Section], size: Size) -> Path:
    """Write the page and its pictures from the results in the folder; returns the page's path.

    Raises StudyError, also where the folder holds another page; StorageError.
    """
    check_folder(folder, size)
    make_folder(folder)
    store = Store(folder)
    parts, claims, machines, seconds = [], [], set(), []
    for section in sections:
        results = store.find(section.jobs(size))
        if not results.found:
            continue
        shown = section.show(results, size)
        for name, picture in shown.pictures.items():
            write_whole(folder / name, picture.encode())
        parts.append(_section(section, results, shown.body, shown.claims, folder))
        claims += [(section, claim) for claim in shown.claims]
        machines |= {result.machine for result in results.found}
        seconds += [result.seconds for result in results.found]
    text = "\n\n".join([*_head(size, seconds, sorted(machines)), _summary(claims), *parts, _end(size)])
    write_whole(folder / PAGE, f"{text}\n".encode())
    return folder / PAGE


def _head(size: Size, seconds: Sequence[float], machines: Sequence[str]) -> list[str]:
    command = "eddy study" if size.is_full else "eddy study --quick"
    spent = (
        f"{len(seconds)} runs of {max(seconds):.0f} s at most, {sum(seconds) / 60:.0f} minutes of one core together."
        if seconds
        else "No run has ended yet."
    )
    return [
        "# What recurrent models do, measured",
        MARK.format(size.name),
        ABOUT.format(size=size.name, seeds=len(size.seeds)),
        RULE,
        spent,
        *(f"Measured with {machine}." for machine in machines),
        AGAIN.format(command=command),
    ]


def _summary(claims: Sequence[tuple[Section, Claim]]) -> str:
    parts = ["## What came out"]
    counts = {verdict: sum(claim.verdict is verdict for _, claim in claims) for verdict in Verdict}
    parts.append(
        f"{len(claims)} assertions: " + ", ".join(f"{n} {_PLURAL[verdict]}" for verdict, n in counts.items() if n) + "."
    )
    against = [claim for _, claim in claims if claim.verdict is Verdict.FAILS]
    if against:
        parts.append("These do not hold:")
        parts.append("\n".join(f"* *{claim.text}* {claim.measured}." for claim in against))
    rows = [(claim.text, f"[{section.name}](#{_anchor(section)})", f"**{claim.verdict}**") for section, claim in claims]
    parts.append(_plain_table(("assertion", "section", "measured"), rows))
    return "\n\n".join(parts)


def _section(section: Section, results: Results, body: str, claims: Sequence[Claim], folder: Path) -> str:
    parts = [f"## {section.title}", body]
    if len(results.found) < results.planned:
        parts.append(f"*{len(results.found)} of {results.planned} runs are done.*")
    rows = [(claim.text, claim.measured, f"**{claim.verdict}**") for claim in claims]
    parts.append(_plain_table(("assertion", "measured", "verdict"), rows))
    notes = folder / NOTES / f"{section.name}.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts)


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(head, rows).replace("--:", "---")


def _anchor(section: Section) -> str:
    """As Markdown viewers make it of a heading."""
    kept = (c for c in section.title.lower() if c.isalnum() or c in " -")
    return "".join(kept).replace(" ", "-")


def _end(size: Size) -> str:
    output = "" if size.is_full else " --quick"
    return (
        "## Commands\n\n"
        "```sh\n"
        f".venv/bin/eddy study{output}               # all sections; stop with Ctrl-C, go on with the same command\n"
        f".venv/bin/eddy study{output} recall depth  # some\n"
        f".venv/bin/eddy study{output} --page        # only the page, from the results that are there\n"
        "```"
    )
