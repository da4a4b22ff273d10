"""Series: quantiles of a column's future values.

Owns: errors beside those of the baselines, and what a card says of them. Must not know torch or models.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from eddy.training.answers import Answers
from eddy.training.chart import Level
from eddy.training.curve import Measure
from eddy.training.data import Floats
from eddy.training.figures import SHARE, Figure, cells
from eddy.training.spec import FeatureInput, Head, Input, QuantileHead
from eddy.training.tasks.series_baselines import season_steps, series_baselines
from eddy.training.tasks.series_data import SeriesData, SeriesSource, load_series
from eddy.v1 import contract_pb2 as pb

# What loading does with a record that has times.
GAPS = """
A reading less than half a step after the one before is dropped. Gaps are not filled: the model reads what is left as
consecutive steps, and forecasts that reach across a gap count neither in training nor in the figures. The season's
baseline goes by the clock: the last value at or before that time."""


def series_figures(predicted: Floats, data: SeriesData, source: SeriesSource) -> list[Figure]:
    """Errors on the test part, of the model and of the baselines (see `series_baselines`).

    predicted: float32 [N, K, Q] for every step of the series. The model's forecast is its middle quantile.
    """
    targets, horizons, quantiles, unit = _floats(data.test.targets), source.horizons, source.quantiles, source.unit
    middle = predicted[:, :, len(quantiles) // 2]
    baselines = series_baselines(data, source)
    inside = (predicted[:, :, 0] <= targets) & (targets <= predicted[:, :, -1])
    counted = ~np.isnan(targets)
    figures = [
        Figure("mae", mean_absolute(middle, targets), unit),
        *(Figure(f"mae_{b.name}", mean_absolute(b.points, targets), unit) for b in baselines),
        Figure("pinball_loss", pinball(predicted, targets, quantiles), unit),
        *(Figure(f"pinball_loss_{b.name}", pinball(b.quantiles, targets, quantiles), unit) for b in baselines),
        Figure("season_steps", season_steps(data, source), "steps"),
        Figure("interval_coverage", float(inside[counted].mean()), SHARE),
        Figure("interval_coverage_nominal", quantiles[-1] - quantiles[0], SHARE),
    ]
    for k, horizon in enumerate(horizons):
        one = slice(k, k + 1)
        figures += [
            Figure(f"mae_{horizon}", mean_absolute(middle[:, k], targets[:, k]), unit),
            *(Figure(f"mae_{horizon}_{b.name}", mean_absolute(b.points[:, k], targets[:, k]), unit) for b in baselines),
            Figure(f"pinball_loss_{horizon}", pinball(predicted[:, one], targets[:, one], quantiles), unit),
            *(
                Figure(
                    f"pinball_loss_{horizon}_{b.name}", pinball(b.quantiles[:, one], targets[:, one], quantiles), unit
                )
                for b in baselines
            ),
            Figure(f"interval_coverage_{horizon}", float(inside[counted[:, k], k].mean()), SHARE),
        ]
    return figures


def pinball(predicted: Floats, targets: Floats, quantiles: Sequence[float]) -> float:
    """Mean pinball loss (Koenker and Bassett, 1978) over the targets that are not NaN; [N, K, Q] and [N, K]."""
    error = targets[:, :, None] - predicted
    levels = np.asarray(quantiles)
    return float(np.nanmean(np.maximum(levels * error, (levels - 1) * error)))


def mean_absolute(predicted: Floats, targets: Floats) -> float:
    """Mean absolute error over the targets that are not NaN."""
    return float(np.nanmean(np.abs(predicted - targets)))


def _floats(values: npt.NDArray[np.generic]) -> Floats:
    return values.astype(np.float32, copy=False)


class SeriesTask:
    """The task of series; see `Task`."""

    table = SeriesSource
    baselines: ClassVar[Mapping[str, str]] = {
        "linear": "linear",
        "last_value": "last value",
        "seasonal_last_value": "seasonal last value",
    }

    def load(self, source: SeriesSource) -> SeriesData:
        """Read, split and scale."""
        return load_series(source)

    def ports(self, data: SeriesData, source: SeriesSource) -> tuple[Input, tuple[Head, ...]]:
        """Values in their own units in, quantiles out."""
        return FeatureInput(data.mean, data.scale), (QuantileHead(source.horizons, source.quantiles, data.target),)

    def symbols(self, data: SeriesData) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """None."""
        return (), ()

    def sample(self, data: SeriesData, source: SeriesSource) -> str:
        """The validation and test parts as CSV."""
        lines = [",".join(source.columns)]
        lines += [",".join(f"{v:.6g}" for v in row) for row in data.values[data.starts[0] :]]
        return "\n".join(lines) + "\n"

    def curve(self, data: SeriesData, source: SeriesSource) -> tuple[Measure, tuple[Level, ...]]:
        """Pinball loss in the series' own unit."""
        targets = _floats(data.validation.targets)
        losses = {
            b.name: pinball(b.quantiles[: len(targets)], targets, source.quantiles)
            for b in series_baselines(data, source)
        }
        levels = tuple(Level(label, losses[name]) for name, label in self.baselines.items())
        return Measure(f"pinball loss, {source.unit}", data.scale[data.target]), levels

    def measure(self, answers: Answers, data: SeriesData, source: SeriesSource) -> list[Figure]:
        """Errors on the test part, the state carried from the series' first step."""
        (found,) = answers([{answers.contract.inputs[0].name: data.values}])
        return series_figures(_floats(found[answers.contract.outputs[0].name]), data, source)

    def describe(
        self,
        contract: pb.ModelContract,
        source: SeriesSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """Meanings and units."""
        contract.inputs[0].meaning = ", ".join(source.columns) + f": {source.meaning}, now"
        contract.inputs[0].unit = source.unit
        step = f"{source.step_seconds} s"
        contract.outputs[0].meaning = f"quantiles of {source.meaning}, a number of steps of {step} ahead"
        contract.outputs[0].unit = source.unit

    def show_figures(self, values: Mapping[str, float], source: SeriesSource) -> str:
        """Errors by horizon, the baselines' beside them."""
        nominal, season = values["interval_coverage_nominal"], values["season_steps"]
        names = ("", *(f"_{name}" for name in self.baselines))
        baselines = " | ".join(self.baselines.values())
        rows = [
            (
                f"Mean absolute error in {source.unit} on the test part (the last tenth of the series), lower is "
                "better, and the"
            ),
            f"share of true values between the outer quantiles, where {nominal:.0%} should lie:",
            "",
            f"| steps of {source.step_seconds} s ahead | this model | {baselines} | between |",
            "|---|---|---|---|---|---|",
        ]
        ends = [(str(h), f"_{h}") for h in source.horizons] + [("all", "")]
        for label, end in ends:
            rows.append(f"| {label} | {cells(values, f'mae{end}', names)} | {values[f'interval_coverage{end}']:.0%} |")
        rows += [
            "",
            f"Pinball loss in {source.unit}, lower is better:",
            "",
            f"| steps of {source.step_seconds} s ahead | this model | {baselines} |",
            "|---|---|---|---|---|",
        ]
        for label, end in ends:
            rows.append(f"| {label} | {cells(values, f'pinball_loss{end}', names)} |")
        where = f"a season is {season:.0f} steps, from the recipe"
        if source.season_steps is None:
            where = f"a season is {season:.0f} steps, found in the training part"
            if season == 1:
                where = "no season was found in the training part, so it is the last value"
        rows += [
            "",
            (
                "Linear: from the present value and the latest three changes, by least squares on the training part. "
                "Seasonal"
            ),
            "last value: the value one season before the time that the forecast is for, or as many as reach it;",
            f"{where}.",
            "A baseline's quantiles are its forecast plus the quantiles of its own errors on the training part.",
        ]
        return "\n".join(rows)

    def show_data(self, source: SeriesSource, sample: str) -> str:
        """Split, scaling, gaps and sample."""
        lines = [
            "split 80/10/10 in time order.",
            "Scaling was fitted on the training part and lives inside the graph: values go in and come out in",
            f"{source.unit}. `{sample}` holds the validation and test parts; its second half is the test part.",
        ]
        if source.time:
            lines.append(GAPS)
        if source.note:
            lines.append(source.note)
        return "\n".join(lines)

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """None: `eddy plot` shows them."""
        return "", ""
