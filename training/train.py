"""Training: the loop that turns a recipe into a checkpoint.

Owns: seeds, the device, windows with carried state, the losses, early stopping and the run's folder. Must not know
ONNX. Order within a step: reset some rows, run a window from the carried state, back-propagate, clip, update, detach.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from eddy.training.checkpoint import Checkpoint, save_checkpoint
from eddy.training.data import NO_TOKEN, Part, SeriesData, TextData, describe_origin, load_series, load_text
from eddy.training.errors import TrainingError
from eddy.training.figures import Figure, series_figures, text_figures, write_figures
from eddy.training.model import RecurrentModel, State, count_parameters
from eddy.training.recipe import Recipe, Schedule, SeriesSource, TextSource
from eddy.training.spec import FeatureInput, ModelSpec, QuantileHead, TokenHead, TokenInput

# Streams and window of an evaluation pass over text: enough rows to be quick, few enough that the lost context at
# the start of each does not show. A series is read as one stream, as a session would.
TEXT_EVALUATION_STREAMS = 16
EVALUATION_STEPS = 512
# Steps before the validation part that a forecaster reads first, so that it enters with the state it would have.
WARM_UP_STEPS = 1000
SAMPLE_CHARACTERS = 2000


def train(recipe: Recipe, directory: Path, *, device: str | None = None, show_progress: bool = True) -> Path:
    """Train a recipe and write `checkpoint.pt` and `figures.json` into `directory`; returns the checkpoint's path.

    device: "cpu" or "cuda"; by itself CUDA where there is one. The same recipe, seed, device and torch build give the
    same weights on the CPU with one thread. Raises DataError for unusable data, TrainingError if the loss diverges.
    """
    # 1. Everything random follows from the seed.
    torch.manual_seed(recipe.training.seed)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # 2. The data, and the model's shape that follows from it.
    data = load_text(recipe.data) if isinstance(recipe.data, TextSource) else load_series(recipe.data)
    model = RecurrentModel(build_spec(recipe, data)).to(where)
    # 3. The weights.
    best = _fit(model, data, recipe, _progress(disable=not show_progress))
    model.load_state_dict(best.weights)
    # 4. What they are worth, and the files.
    figures = (
        Figure("parameters", count_parameters(model), ""),
        Figure("best_epoch", best.epoch, ""),
        Figure("validation_loss", best.loss, ""),
        *_measure(model, data, recipe),
    )
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(
        recipe=recipe,
        origin=describe_origin(recipe.data.source),
        spec=model.spec,
        weights=best.weights,
        figures=figures,
        symbols=data.vocabulary.symbols if isinstance(data, TextData) else (),
        sample=_sample(data, recipe),
    )
    path = directory / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    write_figures(directory / "figures.json", figures)
    return path


def build_spec(recipe: Recipe, data: TextData | SeriesData) -> ModelSpec:
    """The model's full shape: the recipe's recurrent part, input and head from the data."""
    given: TokenInput | FeatureInput
    head: TokenHead | QuantileHead
    if isinstance(data, TextData):
        size = len(data.vocabulary.symbols)
        given, head = TokenInput(size, recipe.model.embedding), TokenHead(size)
    else:
        assert isinstance(recipe.data, SeriesSource)
        given = FeatureInput(data.mean, data.scale)
        head = QuantileHead(recipe.data.horizons, recipe.data.quantiles, data.target)
    part = recipe.model
    return ModelSpec(part.cell, part.layers, part.hidden, given, head, part.dropout)


def windows(part: Part, streams: int, steps: int, offset: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a part into `streams` equal pieces and yield them side by side, `steps` at a time, in order.

    Yields inputs [B, T, ...] and targets [B, T, ...] with B = streams and T <= steps; row i of one window goes on in
    row i of the next. The first `offset` steps are skipped, and so is what does not divide by `streams`.
    """
    length = (len(part.inputs) - offset) // streams
    inputs, targets = (
        torch.from_numpy(a[offset : offset + streams * length].reshape(streams, length, *a.shape[1:]))
        for a in (part.inputs, part.targets)
    )
    for start in range(0, length, steps):
        yield inputs[:, start : start + steps], targets[:, start : start + steps]


def loss_sum(spec: ModelSpec, output: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Summed loss and the number of targets in it.

    Next token: cross-entropy in nats, output [B, T, V], targets int64 [B, T], NO_TOKEN left out. Quantiles: pinball
    loss in units of the training part's deviation, output [B, T, K, Q], targets float32 [B, T, K], NaN left out.
    """
    if isinstance(spec.head, TokenHead):
        flat, wanted = output.flatten(0, 1), targets.flatten()
        total = nn.functional.cross_entropy(flat, wanted, ignore_index=NO_TOKEN, reduction="sum")
        return total, int((wanted != NO_TOKEN).sum())
    assert isinstance(spec.head, QuantileHead)
    assert isinstance(spec.input, FeatureInput)  # ModelSpec has checked it
    counted = ~torch.isnan(targets)
    levels = torch.tensor(spec.head.quantiles, device=output.device)
    error = (targets[counted].unsqueeze(-1) - output[counted]) / spec.input.scale[spec.head.target]
    return torch.maximum(levels * error, (levels - 1) * error).sum(), int(error.numel())


@torch.no_grad()
def evaluate(model: RecurrentModel, part: Part, streams: int) -> float:
    """Mean loss (see `loss_sum`) over a part, state carried from its first step to its last."""
    model.eval()
    total, count, state = 0.0, 0, model.initial_state(streams)
    for x, targets in windows(part, streams, EVALUATION_STEPS):
        output, state = model(x.to(state[0].device), state)
        loss, number = loss_sum(model.spec, output, targets.to(output.device))
        total, count = total + float(loss), count + number
    return total / count


def _warmed_up(part: Part) -> Part:
    """A part without what lies more than WARM_UP_STEPS before its first target."""
    first = int(np.argmax((~np.isnan(part.targets)).any(axis=1)))
    start = max(0, first - WARM_UP_STEPS)
    return Part(part.inputs[start:], part.targets[start:])


@dataclass(frozen=True, slots=True)
class _Best:
    """The weights with the lowest validation loss so far."""

    loss: float
    epoch: int
    weights: dict[str, Tensor]


def _fit(model: RecurrentModel, data: TextData | SeriesData, recipe: Recipe, bar: Progress) -> _Best:
    """All epochs, or fewer when validation stops getting better."""
    plan = recipe.training
    rng = np.random.default_rng(plan.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    # Falls along a cosine to a twentieth: large steps find the region, small ones settle in it.
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs, plan.learning_rate / 20)
    streams = TEXT_EVALUATION_STREAMS if isinstance(data, TextData) else 1
    validation = data.validation if isinstance(data, TextData) else _warmed_up(data.validation)
    longest = len(data.train.inputs) // plan.streams
    if longest < 2:
        raise TrainingError(f"training.streams: got {plan.streams}, expected at most {len(data.train.inputs) // 2}")
    best = _Best(math.inf, 0, {})
    with bar:
        task = bar.add_task(recipe.name, total=plan.epochs, note="")
        for epoch in range(1, plan.epochs + 1):
            # A new offset each epoch moves the window borders, so no step is always far from a gradient's end.
            offset = int(rng.integers(min(plan.steps, longest)))
            trained = _epoch(model, data.train, plan, optimizer, rng, offset)
            decay.step()
            loss = evaluate(model, validation, streams)
            if not math.isfinite(loss):
                raise TrainingError(f"epoch {epoch}: validation loss is {loss}; expected a finite one, lower the rate")
            if loss < best.loss:
                best = _Best(loss, epoch, {k: v.detach().clone() for k, v in model.state_dict().items()})
            bar.update(task, advance=1, note=f"train {trained:.4f}  validation {loss:.4f}  best {best.loss:.4f}")
            if epoch - best.epoch >= plan.patience:
                break
    return best


def _epoch(
    model: RecurrentModel,
    part: Part,
    plan: Schedule,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    offset: int,
) -> float:
    """One pass over the training part; returns its mean loss."""
    model.train()
    total, count, state = 0.0, 0, model.initial_state(plan.streams)
    for x, targets in windows(part, plan.streams, plan.steps, offset):
        state = _reset(state, rng.random(plan.streams) < plan.reset_share)
        output, state = model(x.to(state[0].device), state)
        loss, number = loss_sum(model.spec, output, targets.to(output.device))
        if number == 0:
            continue
        optimizer.zero_grad()
        torch.autograd.backward(loss / number)
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        optimizer.step()
        state = tuple(s.detach() for s in state)
        total, count = total + float(loss.detach()), count + number
    return total / count


def _reset(state: State, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> State:
    """The state with the marked rows zeroed."""
    keep = torch.from_numpy(~rows).to(state[0].device, state[0].dtype)[:, None, None]
    return tuple(s * keep for s in state)


@torch.no_grad()
def _measure(model: RecurrentModel, data: TextData | SeriesData, recipe: Recipe) -> list[Figure]:
    """The figures on the test part, which nothing before has looked at."""
    if isinstance(data, TextData):
        return text_figures(evaluate(model, data.test, TEXT_EVALUATION_STREAMS), data)
    source = recipe.data
    assert isinstance(source, SeriesSource)
    model.eval()
    state = model.initial_state(1)
    output, _ = model(torch.from_numpy(data.values[None]).to(state[0].device), state)
    predicted = output[0].cpu().numpy()
    return series_figures(predicted, data, source)


def _sample(data: TextData | SeriesData, recipe: Recipe) -> str:
    """Real input that the model was not trained on: the test text's beginning, or validation and test as CSV."""
    if isinstance(data, TextData):
        return data.vocabulary.decode(data.test.inputs[:SAMPLE_CHARACTERS].tolist())
    assert isinstance(recipe.data, SeriesSource)
    lines = [",".join(recipe.data.columns)]
    lines += [",".join(f"{v:.6g}" for v in row) for row in data.values[data.starts[0] :]]
    return "\n".join(lines) + "\n"


def _progress(*, disable: bool) -> Progress:
    """A bar on standard error with the losses beside it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
