"""Location: which file a person means by a name, a folder or a path.

Owns: the order in which places are looked at. Must not read what lies there.
"""

from pathlib import Path

from eddy.training.contract import STEP_FILE
from eddy.training.errors import LocationError

MODELS = Path("models")
RUNS = Path("runs")
CHECKPOINT_FILE = "checkpoint.pt"


def find_model(given: Path) -> Path:
    """The model file that is meant: a file, a folder with one, a folder of versions, or a name in `models`.

    Of several versions the highest. Raises LocationError.
    """
    found = _model_in(given) or (_model_in(MODELS / given) if not given.is_absolute() else None)
    if found is None:
        raise LocationError(
            f"{given}: got no model there, expected an ONNX file, a folder with {STEP_FILE}, or {_known_names()}"
        )
    return found


def find_model_or_checkpoint(given: Path) -> Path:
    """As `find_model`, and a run's folder means its checkpoint; a name in `models` wins over one in `runs`."""
    for folder in (given, RUNS / given):
        checkpoint = folder / CHECKPOINT_FILE
        if checkpoint.is_file() and not (folder is not given and _model_in(MODELS / given)):
            return checkpoint
    return find_model(given)


def is_run(given: Path) -> bool:
    """True for a folder that training has written a checkpoint into."""
    return (given / CHECKPOINT_FILE).is_file()


def _model_in(place: Path) -> Path | None:
    if place.is_file():
        return place
    if (place / STEP_FILE).is_file():
        return place / STEP_FILE
    if not place.is_dir():
        return None
    versions = [
        int(child.name) for child in place.iterdir() if child.name.isdecimal() and (child / STEP_FILE).is_file()
    ]
    return place / str(max(versions)) / STEP_FILE if versions else None


def _known_names() -> str:
    names = sorted(child.name for child in MODELS.iterdir() if _model_in(child)) if MODELS.is_dir() else []
    return f"one of {', '.join(names)}" if names else f"a name in the folder {MODELS}, which is not here"
