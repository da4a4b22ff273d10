"""The models in the repository: present, small, verified, and better than the baselines that their cards name."""

from pathlib import Path

import pytest

from eddy.training.contract import read_contract
from eddy.training.recipe import RECIPES, load_recipe
from eddy.training.tasks.series_data import SeriesSource
from eddy.training.verify import verify

MODELS = Path(__file__).parents[2] / "models"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
MAX_BYTES = 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_is_small_and_keeps_its_contract(name: str) -> None:
    """At most 2 MB, contract and card present, verified bit for bit, a sample beside it."""
    folder = MODELS / name / "1"
    path = folder / "model.onnx"
    contract = read_contract(path)
    assert path.stat().st_size <= MAX_BYTES
    assert contract.name == name
    assert contract.numerics.bitwise
    # Verification draws inputs around the mean; an output of hundreds cannot be closer than its own spacing.
    scaling = contract.inputs[0].normalization
    largest = max([1.0, *(mean + 6 * scale for mean, scale in zip(scaling.mean, scaling.scale, strict=True))])
    assert contract.numerics.parity_max_difference <= 1e-5 * largest
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    sample = "sample.txt" if contract.HasField("vocabulary") else "sample.csv"
    assert (folder / sample).stat().st_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_beats_its_baselines(name: str) -> None:
    """Text below pairs by a bit and below 4-grams; forecasts below all baselines everywhere, intervals hold."""
    contract = read_contract(MODELS / name / "1" / "model.onnx")
    figures = {figure.name: figure.value for figure in contract.training.figures}
    data = load_recipe(Path(name)).data
    if not isinstance(data, SeriesSource):
        assert figures["bits_per_character"] < figures["bits_per_character_bigram"] - 1
        assert figures["bits_per_character"] < figures["bits_per_character_4gram"] - 0.1
        return
    for key in ("mae", *(f"mae_{horizon}" for horizon in data.horizons)):
        assert figures[key] < 0.85 * figures[f"{key}_last_value"]
        assert figures[key] < 0.6 * figures[f"{key}_seasonal_last_value"]
        assert figures[key] < 0.97 * figures[f"{key}_linear"]
        loss = key.replace("mae", "pinball_loss")
        for baseline in ("last_value", "seasonal_last_value", "linear"):
            assert figures[loss] < 0.95 * figures[f"{loss}_{baseline}"]
    # The interval's share may be a few points off: the last weeks differ a little from those trained on.
    assert abs(figures["interval_coverage"] - figures["interval_coverage_nominal"]) < 0.05


def test_a_shipped_model_verifies_here(tmp_path: Path) -> None:
    """The smallest shipped model passes on this machine, in a copy, since the verdict is written into the file."""
    source = min((MODELS / name / "1" / "model.onnx" for name in NAMES), key=lambda path: path.stat().st_size)
    copy = tmp_path / "model.onnx"
    copy.write_bytes(source.read_bytes())
    verify(copy)
