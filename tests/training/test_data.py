"""Data: order of the split, what is fitted on which part, and bad files."""

import gzip
import importlib.metadata
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eddy.training.data import (
    NO_TOKEN,
    UNKNOWN,
    Vocabulary,
    describe_origin,
    split_points,
)
from eddy.training.errors import DataError
from eddy.training.recipe import Recipe
from eddy.training.table import read_columns
from eddy.training.tasks.series_data import SeriesSource, future_values, load_series, spaced_rows
from eddy.training.tasks.text import TextSource, load_text, read_text


def series_source(path: Path) -> SeriesSource:
    """One column `a`, one step ahead."""
    return SeriesSource(str(path), "CC0-1.0", ("a",), "a", "m", "level", 1, (1,), 2)


def write_column(path: Path, values: list[str]) -> Path:
    """A CSV with one column `a`."""
    path.write_text("\n".join(["a", *values]) + "\n", encoding="utf-8")
    return path


def test_text_is_split_in_order(text_recipe: Recipe) -> None:
    """Train, validation and test put together are the text; each target is the next character of its own part."""
    assert isinstance(text_recipe.data, TextSource)
    data = load_text(text_recipe.data)
    whole = read_text(text_recipe.data.source)
    parts = (data.train, data.validation, data.test)
    assert "".join(data.vocabulary.decode(part.inputs.tolist()) for part in parts) == whole
    assert len(data.train.inputs) == len(whole) * 8 // 10
    for part in parts:
        assert np.array_equal(part.targets[:-1], part.inputs[1:])
        assert part.targets[-1] == NO_TOKEN


def test_vocabulary_is_fitted_on_the_training_part_only(tmp_path: Path) -> None:
    """A character that only the last tenth has is unknown, and so is a rare one."""
    path = tmp_path / "text.txt"
    path.write_text("abab" * 20 + "q" + "baba" * 5 + "zzzzzzz", encoding="utf-8")
    data = load_text(TextSource(str(path), "CC0-1.0", min_count=3))
    assert data.vocabulary.symbols == (UNKNOWN, "a", "b")
    assert data.test.inputs[-1] == 0


def test_vocabulary_encodes_and_decodes() -> None:
    """Ids are indices into the symbols; unknown characters become the unknown symbol."""
    vocabulary = Vocabulary.fit("hello, hello, hello", 3)
    assert vocabulary.decode(vocabulary.encode("hello").tolist()) == "hello"
    assert vocabulary.encode("h?")[1] == 0
    assert vocabulary.decode([0]) == UNKNOWN


def test_series_scaling_is_fitted_on_the_training_part_only(tmp_path: Path) -> None:
    """A jump in the last fifth does not move mean and scale."""
    values = [float(i % 5) for i in range(80)] + [1000.0] * 20
    path = write_column(tmp_path / "jump.csv", [str(v) for v in values])
    data = load_series(series_source(path))
    assert data.mean == pytest.approx((np.mean(values[:80]),))
    assert data.scale == pytest.approx((np.std(values[:80]),))


def test_units_are_converted(tmp_path: Path) -> None:
    """Numbers of the file times the factor, plus the offset: 50 degF are 10 degC."""
    path = write_column(tmp_path / "fahrenheit.csv", ["50", "68"] * 30)
    data = load_series(replace(series_source(path), factor=5 / 9, offset=-160 / 9))
    assert data.values[:2, 0].tolist() == pytest.approx([10, 20], abs=1e-5)


def test_series_parts_are_in_order_and_do_not_leak(series_recipe: Recipe) -> None:
    """Inputs reach from the series' start to the part's end; targets lie wholly inside the part."""
    assert isinstance(series_recipe.data, SeriesSource)
    data = load_series(series_recipe.data)
    first, second = split_points(600)
    assert (first, second) == (480, 540) == data.starts
    borders = {"train": (0, 480), "validation": (480, 540), "test": (540, 600)}
    for name, (start, stop) in borders.items():
        part = getattr(data, name)
        assert np.array_equal(part.inputs, data.values[:stop])
        for k, horizon in enumerate(series_recipe.data.horizons):
            set_at = np.flatnonzero(~np.isnan(part.targets[:, k]))
            assert (set_at[0], set_at[-1]) == (start, stop - horizon - 1)
            assert np.array_equal(part.targets[set_at, k], data.values[set_at + horizon, data.target])


def test_future_values_by_hand() -> None:
    """A small series, horizons 1 and 2, from origin 1 on."""
    got = future_values(np.array([1, 2, 3, 4], np.float32), np.arange(4) * 60, (1, 2), 60, start=1)
    nan = np.nan
    assert np.array_equal(got, np.array([[nan, nan], [3, 4], [4, nan], [nan, nan]], np.float32), equal_nan=True)


def test_targets_across_a_gap_do_not_count() -> None:
    """Steps of 60 s, one of them 300 s late and one 20 s: only the rows on the far side of the gap have no target."""
    seconds = np.array([0, 60, 120, 480, 560, 600])
    got = future_values(np.arange(6, dtype=np.float32), seconds, (1, 2), 60)
    nan = np.nan
    wanted = [[1, 2], [2, nan], [nan, nan], [4, 5], [5, nan], [nan, nan]]
    assert np.array_equal(got, np.array(wanted, np.float32), equal_nan=True)


def test_readings_too_close_to_the_last_one_kept_are_dropped() -> None:
    """Two records a few seconds apart become one; a repeated time is dropped; exactly half a step is kept."""
    assert spaced_rows(np.array([0, 12, 60, 72, 120, 120, 150, 400]), 60).tolist() == [0, 2, 4, 6, 7]


def write_timed(path: Path, times: list[str]) -> SeriesSource:
    """A CSV with columns `when` and `a`, and its source with steps of a minute."""
    path.write_text("".join(["when,a\n", *(f"{time},{i % 7}\n" for i, time in enumerate(times))]), encoding="utf-8")
    return replace(series_source(path), time="when", step_seconds=60)


def test_a_record_with_times_is_read_by_the_clock(tmp_path: Path) -> None:
    """Rows too close together are gone, the gap stays a gap, and times without a zone are UTC."""
    times = [f"2026-01-01 {hour:02}:{minute:02}:00" for hour in (0, 5) for minute in range(20)]
    data = load_series(write_timed(tmp_path / "timed.csv", [times[0], "2026-01-01T01:00:05+01:00", *times[1:]]))
    assert len(data.values) == len(times)
    assert data.values[:3, 0].tolist() == [0, 2, 3]
    assert data.seconds[0] == 1_767_225_600
    assert np.flatnonzero(np.isnan(data.train.targets[:, 0])).tolist() == [19, 31]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2026-01-01", "soon"], r"line 3, column 'when': got 'soon', expected an ISO 8601 time"),
        (["2026-01-02", "2026-01-01"], r"line 3, column 'when': earlier than the line before, expected order"),
    ],
)
def test_bad_times_are_refused(tmp_path: Path, times: list[str], message: str) -> None:
    """Not a time, or out of order: the message names line and column."""
    with pytest.raises(DataError, match=message):
        load_series(write_timed(tmp_path / "bad.csv", times))


def test_columns_come_in_the_order_asked_for(series_file: Path, tmp_path: Path) -> None:
    """Column order is the recipe's, and a compressed file reads the same."""
    plain = read_columns(str(series_file), ("phase", "level"))
    assert plain.shape == (600, 2)
    assert plain[:3, 0].tolist() == [0, 1, 2]
    packed = tmp_path / "wave.csv.gz"
    packed.write_bytes(gzip.compress(series_file.read_bytes()))
    assert np.array_equal(read_columns(str(packed), ("phase", "level")), plain)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"0 lines, expected a header and at least one row"),
        ("a\n", r"1 lines, expected a header and at least one row"),
        ("b,c\n1,2\n", r"no column 'a'; the columns are 'b', 'c'"),
        ("a\n1\nx\n", r"line 3, column 'a': got 'x', expected a number"),
        ("b,a\n1,2\n1\n", r"line 3, column 'a': got 'nothing', expected a number"),
        ("a\n1\nnan\n", r"line 3, column 'a': got nan, expected a finite number"),
        ("a\n1\n-inf\n", r"line 3, column 'a': got -inf, expected a finite number"),
        ("a\n1e300\n", r"line 2, column 'a': got 1e\+300, expected a finite number"),
    ],
)
def test_bad_csv_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    """Empty, without the column, not numbers, not finite: the message names line and column."""
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_series(series_source(path))


def test_series_too_short_or_constant_are_refused(tmp_path: Path) -> None:
    """The test part must hold the longest horizon, and the training part must vary."""
    short = write_column(tmp_path / "short.csv", [str(i) for i in range(30)])
    with pytest.raises(DataError, match=r"30 rows are too few, the test part has 3 and the longest horizon is 4"):
        load_series(replace(series_source(short), horizons=(4,)))
    constant = write_column(tmp_path / "constant.csv", ["7"] * 40)
    with pytest.raises(DataError, match="column 'a' is constant in the training part"):
        load_series(series_source(constant))


def test_bad_text_files_are_refused(tmp_path: Path) -> None:
    """Missing, empty, not UTF-8, too short."""
    path = tmp_path / "text.txt"
    with pytest.raises(DataError, match="not readable as UTF-8"):
        read_text(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        read_text(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not readable as UTF-8"):
        read_text(str(path))
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="3 characters are too few"):
        load_text(TextSource(str(path), "CC0-1.0"))
    path.write_text("".join(chr(200 + i) for i in range(100)), encoding="utf-8")
    with pytest.raises(DataError, match="no character occurs 3 times"):
        load_text(TextSource(str(path), "CC0-1.0"))


def test_origins_carry_their_version(text_file: Path) -> None:
    """The standard library's text and packaged series name the version that they came with; a path stands alone."""
    assert describe_origin("pydoc_data.topics") == f"pydoc_data.topics of Python {platform.python_version()}"
    version = importlib.metadata.version("bokeh_sampledata")
    assert describe_origin("bokeh_sampledata:CGM.csv.gz") == f"CGM.csv.gz of bokeh_sampledata {version}"
    assert describe_origin(str(text_file)) == str(text_file)


def test_packages_that_are_not_there_are_named() -> None:
    """A data package that is not installed is said by name."""
    with pytest.raises(DataError, match="no installed package 'no_such_package'"):
        read_columns("no_such_package:file.csv", ("a",))
