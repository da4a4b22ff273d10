"""The documents as a whole: the README's order, a page for each concern, licence, changelog, the demo's picture.

And what the image's recipe leaves out.
"""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CONCERNS = (
    "abuse",
    "architecture",
    "bring-your-own",
    "client",
    "configuration",
    "deployment",
    "log",
    "metrics",
    "open-inference-protocol",
    "repository",
    "state",
    "training",
    "wire",
)


def test_the_readme_is_in_order() -> None:
    """From what it is to its limits, in the order in which a stranger asks."""
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == [
        "Quick start",
        "Data flow",
        "What Eddy promises",
        "Wire contract",
        "Configuration",
        "Metrics",
        "Benchmarks",
        "Files",
        "Development",
        "Limits",
    ]
    head = README.partition("\n## ")[0]
    assert head.startswith("# Eddy\n")
    assert "It is for " in head
    assert "It is not " in head


def test_every_concern_has_a_page() -> None:
    """One page each in `docs`, none beside them, and the README leads to all of them."""
    assert sorted(path.stem for path in (ROOT / "docs").glob("*.md")) == list(CONCERNS)
    for concern in CONCERNS:
        assert f"docs/{concern}.md" in README, concern


def test_the_readme_has_the_containers_lines() -> None:
    """What starts one container, and what starts it together with Prometheus and Grafana, stand in the quick start."""
    quick = README.partition("\n## Quick start\n")[2].partition("\n## ")[0]
    for line in ("docker build ", "docker run ", "docker compose --file deploy/compose.yaml up"):
        assert f"\n{line}" in quick


def test_the_demos_picture_is_a_recording() -> None:
    """The README shows an SVG file of the terminal, with what all of the demo's scenes say."""
    [name] = re.findall(r"!\[[^\]]+\]\((docs/pictures/\S+)\)", README)
    root = ElementTree.parse(ROOT / name).getroot()  # noqa: S314  # our own picture
    assert root.tag.endswith("svg")
    words = " ".join(" ".join(root.itertext()).replace("\N{NO-BREAK SPACE}", " ").split())
    for said in (
        "Text, token by token",
        "A time series, value by value",
        "A smartwatch, reading by reading",
        "Accents restored",
        "Film, frame by frame",
        "Translation, token by token",
        "Many sessions at once",
        "Sent again",
    ):
        assert said in words, said


def test_licence_and_changelog() -> None:
    """The licence is the one that the package names; the changelog begins with what is not released yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Apache License\n" in licence
    assert "Version 2.0, January 2004" in licence
    releases = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert releases[0] == "Unreleased"
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"make {target}" in contributing for target in ("test", "lint", "types"))


def test_the_image_holds_nothing_that_builds() -> None:
    """Stages that build, and a last one that only copies: no stage installs a system package, the last one no package.

    So no compiler gets into any of them beyond the base image's own, which is the slim one.
    """
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) >= 3
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    assert not re.search(r"\b(apt|apt-get|apk|dpkg|gcc|make)\b", "\n".join(lines))
    assert "--only-binary :all:" in DOCKERFILE
    last = stages[-1]
    assert last.startswith("base AS runtime")
    runs = re.findall(r"^RUN (.*(?:\\\n.*)*)", last, re.MULTILINE)
    assert all(re.match(r"(groupadd|useradd)\b", run) for run in runs)
    assert "-slim-" in stages[0] or "-slim-" in DOCKERFILE.partition("FROM ")[0]
    for name in ("cpu", "gpu"):
        locked = (ROOT / "deploy" / f"requirements-{name}.txt").read_text(encoding="utf-8")
        assert not re.search(r"^(torch|pip|setuptools|wheel|ninja|cmake)==", locked, re.MULTILINE)
