"""Charts: their scales, the picture, the terminal, and what is drawn of models and runs."""

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from eddy.training.__main__ import main
from eddy.training.chart import Band, Chart, Level, Line, Mark, tick_label, ticks
from eddy.training.curve import Curve, Epoch, Measure, chart_curve, read_curve, write_curve
from eddy.training.errors import LocationError
from eddy.training.plot import Window, chart_forecast, chart_text, read_surprise
from eddy.training.svg import BOTTOM, LEFT, RIGHT, TOP, draw_svg
from eddy.training.terminal import draw_terminal

MODELS = Path(__file__).parents[2] / "models"
SVG = "{http://www.w3.org/2000/svg}"
CHART = Chart(
    title="a <b> & c",
    x_label="step",
    y_label="m",
    lines=(Line("one", (0, 1, 2, 3), (0.0, 1.0, math.nan, 4.0)), Line("two", (0, 3), (2.0, 2.0), is_dashed=True)),
    bands=(Band("between", (0, 3), (1.0, 1.0), (3.0, 3.0)),),
    levels=(Level("near", 5.0), Level("far", 50.0)),
    mark=Mark("best", 3, 4.0),
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, (0, 2, 4, 6, 8, 10)),
        (1.7, 4.9, (2, 3, 4)),
        (-0.03, 0.04, (-0.02, 0, 0.02, 0.04)),
        (40, 277, (50, 100, 150, 200, 250)),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: tuple[float, ...]) -> None:
    """1, 2 or 5 times a power of ten apart, at most as many as asked for."""
    assert ticks(low, high, 6) == pytest.approx(expected)


def test_whole_numbers_have_whole_ticks() -> None:
    """An axis of three epochs has ticks at 1, 2 and 3 only, without decimals."""
    span = replace(CHART, lines=(Line("one", (1, 2, 3), (0, 0, 0)),), bands=(), is_x_whole=True).x_span
    assert [tick_label(tick, span) for tick in span.ticks] == ["1", "2", "3"]


def test_levels_far_away_do_not_squash_the_lines() -> None:
    """A level beside the lines widens the axis; one far above is named with an arrow and not drawn."""
    assert [level.name for level in CHART.near_levels] == ["near"]
    assert 5 < CHART.y_span.high < 6
    assert "far 50 ↑" in draw_svg(CHART)
    assert "far 50 ↑" in draw_terminal(CHART).plain


def test_a_chart_without_a_point_is_refused() -> None:
    """Nothing finite, nothing to scale by."""
    with pytest.raises(ValueError, match="at least one finite point"):
        _ = replace(CHART, lines=(Line("one", (0,), (math.nan,)),), bands=()).y_span


def test_the_picture_is_valid_and_everything_is_inside_it() -> None:
    """The SVG parses; lines break at what is missing; every point lies within the plot; texts are escaped."""
    root = ElementTree.fromstring(draw_svg(CHART))  # noqa: S314  # our own document
    lines = root.findall(f".//{SVG}polyline")
    assert len(lines) == 3
    for line in [*lines, *root.findall(f".//{SVG}polygon")]:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert LEFT <= x <= RIGHT
            assert TOP <= y <= BOTTOM
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a <b> & c", "step", "m", "one", "two", "between", "near 5", "best"} <= set(texts)


def test_the_terminal_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Title, axes, all names and braille dots, no line wider than 100 columns, nothing but text without a terminal."""
    Console(width=100).print(draw_terminal(CHART), no_wrap=True)
    shown = capsys.readouterr().out
    for words in ("a <b> & c", "⠒⠒ one", "┄┄ two", "░░ between", "╌╌ near 5", "◉ best", "step"):
        assert words in shown
    assert re.search("[\u2801-\u28ff]", shown)
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in shown


def test_a_curve_is_written_and_read_back(tmp_path: Path) -> None:
    """Numbers as they were; the picture shows the best epoch, losses in the measure's unit and the baselines."""
    epochs = (Epoch(1, 10, 2.0, 1.5, 0.1), Epoch(2, 20, 1.0, 0.5, 0.1), Epoch(3, 30, 0.5, 0.75, 0.05))
    curve = Curve("river", Measure("bits", 2.0), epochs, (Level("pairs", 3.5),))
    write_curve(tmp_path, curve)
    assert read_curve(tmp_path) == curve
    chart = chart_curve(curve)
    assert chart.lines[0].y == (4.0, 2.0, 1.0)
    assert chart.mark == Mark("best: epoch 2, 1", 2, 1.0)
    picture = (tmp_path / "curve.svg").read_text()
    for words in (
        "river: learning curve",
        "training",
        "validation",
        "pairs 3.5",
        "best: epoch 2, 1",
        ">epoch<",
        ">bits<",
    ):
        assert words in picture
    with pytest.raises(LocationError, match=r"nothing/curve.json: got .* expected the learning curve"):
        read_curve(tmp_path / "nothing")


def test_a_forecast_is_drawn_at_the_time_that_it_is_for() -> None:
    """The truth is the sample's own second half, the last value the truth shifted by the horizon, the band in order."""
    folder = MODELS / "forecast-gru" / "1"
    values = [float(line) for line in (folder / "sample.csv").read_text().splitlines()[1:]]
    chart = chart_forecast(
        folder / "model.onnx", folder / "sample.csv", Window(horizon=6, start=100, steps=50), whole=False
    )
    first = len(values) // 2 + 100
    truth, median, last = chart.lines
    assert truth.x == tuple(range(100, 150))
    assert truth.y == pytest.approx(values[first : first + 50], rel=1e-6)
    assert last.y == pytest.approx(values[first - 6 : first + 44], rel=1e-6)
    [band] = chart.bands
    assert all(low <= middle <= high for low, middle, high in zip(band.low, median.y, band.high, strict=True))


def test_surprise_falls_as_a_session_goes_on() -> None:
    """A shipped text model is worse at a session's start than later; the coloured text is the sample's."""
    folder = MODELS / "text-rnn" / "1"
    chart = chart_text(folder / "model.onnx", folder / "sample.txt")
    [line] = chart.lines
    assert len(line.y) == 100
    assert line.y[0] > sum(line.y[50:]) / 50 + 1
    surprises = read_surprise(folder / "model.onnx", folder / "sample.txt")
    text = (folder / "sample.txt").read_text()
    assert "".join(surprise.character for surprise in surprises) == text[1:801]
    assert 0 < sum(surprise.bits for surprise in surprises) / len(surprises) < 4


def test_plot_draws_models_and_runs(text_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the terminal, and as a file where one is named."""
    for model, words in (
        (MODELS / "forecast-gru", "80% interval"),
        (MODELS / "text-rnn" / "1" / "model.onnx", "bits a character cost"),
        (text_checkpoint.parent, "learning curve"),
    ):
        assert main(["plot", str(model)]) == 0
        assert words in capsys.readouterr().out
        picture = tmp_path / f"{model.name}.svg"
        assert main(["plot", str(model), "--output", str(picture)]) == 0
        assert capsys.readouterr().out == f"{picture}\n"
        assert ElementTree.fromstring(picture.read_text()).tag == f"{SVG}svg"  # noqa: S314  # our own document
