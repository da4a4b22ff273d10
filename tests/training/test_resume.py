"""Runs that stop and go on: the same bits as in one go, and nothing lost when a stop comes at a bad moment."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eddy.training.__main__ import main
from eddy.training.checkpoint import Checkpoint, load_checkpoint
from eddy.training.curve import read_curve
from eddy.training.errors import CheckpointError, Stopped, StorageError
from eddy.training.export import export_checkpoint
from eddy.training.recipe import Recipe, parse_recipe
from eddy.training.stop import Stop
from eddy.training.train import train

FILES = ["checkpoint.pt", "curve.json", "curve.svg", "figures.json"]
# Steps until each stop: in the first epoch, at a step that ends one, and long ones.
STOPS = (1, 7, 60, 1, 137, 10**6)


def run(recipe: Recipe, folder: Path, **options: Any) -> Checkpoint:
    """Train on the CPU without a bar; the checkpoint that comes out."""
    return load_checkpoint(train(recipe, folder, device="cpu", show_progress=False, **options))


def run_until_stopped(recipe: Recipe, folder: Path, steps: int, **options: Any) -> Stopped:
    """Train until a stop after so many steps; what was raised."""
    with pytest.raises(Stopped) as caught:
        run(recipe, folder, stop=Stop(steps), **options)
    return caught.value


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    """Weights bit for bit, figures, losses of every epoch, and everything else."""
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert replace(one, weights={}) == replace(other, weights={})


@pytest.fixture
def hard_recipe(text_table: dict[str, Any]) -> Recipe:
    """A text model with everything that chance or state enters: dropout, two layers, resets, early stopping."""
    text_table["model"] |= {"layers": 2, "dropout": 0.3}
    text_table["training"] |= {"reset_share": 0.2, "epochs": 12, "patience": 2, "learning_rate": 0.05}
    return parse_recipe(text_table)


@pytest.fixture
def short_series(series_table: dict[str, Any]) -> Recipe:
    """The tiny forecaster with few epochs."""
    series_table["training"] |= {"epochs": 6, "patience": 3}
    return parse_recipe(series_table)


@pytest.mark.parametrize("kind", ["hard_recipe", "short_series"])
def test_a_resumed_run_has_the_same_bits(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Stopped again and again, in the middle of epochs and at their ends, a run ends in the very same checkpoint."""
    recipe = request.getfixturevalue(kind)
    whole = run(recipe, tmp_path / "whole")
    folder, resume = tmp_path / "parts", False
    for steps in STOPS:
        try:
            run(recipe, folder, stop=Stop(steps), resume=resume)
        except Stopped:
            # Other random numbers drawn in between must not matter.
            torch.rand(5)
            resume = True
    assert_same(load_checkpoint(folder / "checkpoint.pt"), whole)
    for name in FILES[1:]:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_early_stopping_survives_a_stop(hard_recipe: Recipe, tmp_path: Path) -> None:
    """A run that validation ends early ends at the same epoch when it was stopped within its patience."""
    wild = replace(hard_recipe, training=replace(hard_recipe.training, learning_rate=5.0, weight_decay=0.0))
    whole = run(wild, tmp_path / "whole")
    assert len(whole.epochs) < wild.training.epochs
    before_last = whole.epochs[-2].steps
    run_until_stopped(wild, tmp_path / "parts", before_last)
    assert_same(run(wild, tmp_path / "parts", resume=True), whole)


class PowerFailure(Stop):
    """The process ends in the middle of everything, after so many steps."""

    def count_step(self) -> None:
        """One step was done, and perhaps the last."""
        super().count_step()
        if self.is_due:
            raise EOFError("power failure")


def test_checkpoints_come_every_so_many_steps(text_recipe: Recipe, tmp_path: Path) -> None:
    """With 10 steps between checkpoints, a run that is cut off at step 23 left the one of step 20."""
    with pytest.raises(EOFError, match="power failure"):
        run(text_recipe, tmp_path, stop=PowerFailure(23), checkpoint_steps=10)
    progress = load_checkpoint(tmp_path / "checkpoint.pt").progress
    assert progress is not None
    assert (progress.trainer["steps"], progress.trainer["pass"]["next_window"]) == (20, 20)


def start(recipe_file: Path, folder: Path, *options: str) -> "subprocess.Popen[str]":
    """A real `eddy train` in a process of its own."""
    command = [sys.executable, "-m", "eddy.training", "train", str(recipe_file), "--output", str(folder)]
    return subprocess.Popen(  # noqa: S603  # our own command
        [*command, "--device", "cpu", "--quiet", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(process: "subprocess.Popen[str]", is_there: Callable[[], bool]) -> None:
    """Wait for something that a process does; it must not end before."""
    for _ in range(1200):
        if is_there():
            return
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        break
    _, errors = process.communicate()
    pytest.fail(f"the process ended with {process.returncode}: {errors}")


def count_epochs(folder: Path) -> int:
    """Epochs that a run's curve has so far; 0 before there is one."""
    return len(read_curve(folder).epochs) if (folder / "curve.json").exists() else 0


@pytest.fixture
def long_recipe_file(text_file: Path, tmp_path: Path) -> Path:
    """A recipe of many short epochs, as a file."""
    path = tmp_path / "long.toml"
    path.write_text(
        f'name = "long"\ndescription = "x"\n[data]\nkind = "text"\nsource = "{text_file.as_posix()}"\n'
        'licence = "CC0-1.0"\n[model]\ncell = "gru"\nhidden = 12\ndropout = 0.2\n'
        "[training]\nepochs = 16\nstreams = 8\nsteps = 32\npatience = 16\n",
        encoding="utf-8",
    )
    return path


def test_signals_leave_a_checkpoint_to_go_on_from(long_recipe_file: Path, tmp_path: Path) -> None:
    """SIGINT ends with 130, SIGTERM with 143 and SIGKILL at once; resumed after all three the run has the same bits.

    The two that can be caught say in one line where the checkpoint is and how to go on.
    """
    folder, epochs = tmp_path / "stopped", 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        options = ["--resume"] if epochs else []
        process = start(long_recipe_file, folder, *options)
        wait_until(process, lambda past=epochs: count_epochs(folder) > past)
        process.send_signal(number)
        output, errors = process.communicate()
        assert process.returncode == code
        epochs = len(load_checkpoint(folder / "checkpoint.pt").epochs)
        assert epochs < 16
        assert not list(folder.glob("*.part")) or number == signal.SIGKILL
        if number != signal.SIGKILL:
            [line] = errors.splitlines()
            assert line.startswith(f"eddy train: stopped by {number.name}, at step ")
            assert line.endswith(f"resume: eddy train {long_recipe_file} --output {folder} --device cpu --resume")
            assert output == ""
    recipe = load_checkpoint(folder / "checkpoint.pt").recipe
    assert_same(run(recipe, folder, resume=True), run(recipe, tmp_path / "whole"))


def test_a_stop_wish_comes_from_a_signal_or_a_number() -> None:
    """A real signal is noted with its exit code; handlers are as before afterwards, and after the first signal."""
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stop.on_signals():
        assert not stop.is_due
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_due
        assert (stop.exit_code, stop.reason) == (143, "by SIGTERM")
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before
    counted = Stop(2)
    counted.count_step()
    assert not counted.is_due
    counted.count_step()
    assert (counted.is_due, counted.exit_code) == (True, 0)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from eddy.training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_file_that_cannot_grow_keeps_the_last_checkpoint(long_recipe_file: Path, tmp_path: Path) -> None:
    """Where the system refuses to write, the run ends with code 1 and one line; the checkpoint before is untouched."""
    folder = tmp_path / "run"
    words = ["train", str(long_recipe_file), "--output", str(folder), "--device", "cpu", "--quiet"]
    assert main([*words, "--max-steps", "5"]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    failed = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-c", LIMITED, *words, "--resume"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    [line] = failed.stderr.splitlines()
    assert line.startswith(f"eddy train: StorageError: {folder}/checkpoint.pt: got 'File too large' while writing ")
    assert line.endswith("what was there before is unchanged")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    recipe = load_checkpoint(folder / "checkpoint.pt").recipe
    run_until_stopped(recipe, folder, 1, resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(text_recipe: Recipe, tmp_path: Path) -> None:
    """On a disk without room the error is typed and the checkpoint before it still resumes to the same bits."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("no mount command here")
    words = [mount, "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:  # noqa: S603
        pytest.skip("mounting a small disk needs a permission that is not there")
    try:
        run_until_stopped(text_recipe, disk / "run", 5)
        before = (disk / "run" / "checkpoint.pt").read_bytes()
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        with pytest.raises(StorageError, match=r"checkpoint.pt: got 'No space left on device' while writing"):
            run(text_recipe, disk / "run", resume=True)
        assert (disk / "run" / "checkpoint.pt").read_bytes() == before
        assert not list((disk / "run").glob("*.part"))
        (disk / "filler").unlink()
        assert_same(run(text_recipe, disk / "run", resume=True), run(text_recipe, tmp_path / "whole"))
    finally:
        subprocess.run([umount, str(disk)], check=True)  # noqa: S603


def test_a_folder_that_cannot_be_made_shows_before_training(text_recipe: Recipe, tmp_path: Path) -> None:
    """A file where a folder should be is named before the first step."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/run: got 'Not a directory', expected a folder that can be written"):
        run(text_recipe, tmp_path / "file" / "run", stop=Stop(1))


def test_an_unfinished_run_is_not_overwritten_unasked(text_recipe: Recipe, tmp_path: Path) -> None:
    """A fresh start in its folder is refused with both ways out; asked for, it begins again."""
    run_until_stopped(text_recipe, tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"has not ended, expected an empty folder.*--resume.*--overwrite"):
        run(text_recipe, tmp_path)
    run_until_stopped(text_recipe, tmp_path, 2, overwrite=True)
    progress = load_checkpoint(tmp_path / "checkpoint.pt").progress
    assert progress is not None
    assert progress.trainer["steps"] == 2


def test_resuming_an_ended_run_changes_nothing(text_recipe: Recipe, text_checkpoint: Path) -> None:
    """The checkpoint stays as it is."""
    before = text_checkpoint.read_bytes()
    assert train(text_recipe, text_checkpoint.parent, resume=True) == text_checkpoint
    assert text_checkpoint.read_bytes() == before


def test_what_would_change_the_bits_is_refused(text_recipe: Recipe, text_file: Path, tmp_path: Path) -> None:
    """No checkpoint, another recipe, data, thread count, a broken entry: each is named with what was expected."""
    with pytest.raises(CheckpointError, match="got no such file, expected a checkpoint to go on from"):
        run(text_recipe, tmp_path, resume=True)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text_file.read_bytes())
    recipe = replace(text_recipe, data=replace(text_recipe.data, source=str(copy)))
    folder = tmp_path / "run"
    run_until_stopped(recipe, folder, 5)
    more = replace(recipe, training=replace(recipe.training, epochs=9))
    with pytest.raises(CheckpointError, match=r"training.epochs: got 9, expected 3 as in the checkpoint"):
        run(more, folder, resume=True)
    torch.set_num_threads(2)
    try:
        with pytest.raises(CheckpointError, match="threads: got 2, expected 1 as in the checkpoint; choose them by"):
            run(recipe, folder, resume=True)
    finally:
        torch.set_num_threads(1)
    copy.write_text(copy.read_text().replace("back", "rock"))
    with pytest.raises(CheckpointError, match=r"data: got .* as in the checkpoint; the training data has changed"):
        run(recipe, folder, resume=True)
    copy.write_bytes(text_file.read_bytes())
    values = torch.load(folder / "checkpoint.pt", weights_only=True)
    del values["progress"]["trainer"]["rng"]
    torch.save(values, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="progress: broken entry: 'rng'"):
        run(recipe, folder, resume=True)


def test_an_unfinished_run_is_not_exported(text_recipe: Recipe, tmp_path: Path) -> None:
    """Its checkpoint has no figures yet; the message says how to get them."""
    run_until_stopped(text_recipe, tmp_path, 5)
    with pytest.raises(CheckpointError, match="stands at 0 of 3 epochs, expected one that has ended"):
        export_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_checkpoints_of_the_first_format_are_read(text_checkpoint: Path, tmp_path: Path) -> None:
    """Format 1 had no epochs and no progress: it is an ended run."""
    values = torch.load(text_checkpoint, weights_only=True)
    old = {key: value for key, value in values.items() if key not in ("epochs", "progress")} | {"format": 1}
    torch.save(old, tmp_path / "old.pt")
    checkpoint = load_checkpoint(tmp_path / "old.pt")
    assert (checkpoint.progress, checkpoint.epochs) == (None, ())
    assert checkpoint.figures == load_checkpoint(text_checkpoint).figures
