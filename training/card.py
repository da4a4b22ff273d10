"""Model cards: what a shipped model is, how good it is, what it was trained on and how to make it again.

Owns: the Markdown of `models/<name>/<version>/README.md`. Every number comes from the contract; nothing is computed.
"""

from pathlib import Path

from eddy.training.figures import SERIES_BASELINES, TEXT_BASELINES
from eddy.training.recipe import Recipe, SeriesSource
from eddy.training.storage import write_whole
from eddy.v1 import contract_pb2 as pb

# What `data` does with a record that has times.
GAPS = """
A reading less than half a step after the one before is dropped. Gaps are not filled: the model reads what is left as
consecutive steps, and forecasts that reach across a gap count neither in training nor in the figures. The season's
baseline goes by the clock: the last value at or before that time."""


def write_card(path: Path, recipe: Recipe, contract: pb.ModelContract, sample: str, written: str) -> None:
    """Write a model's card.

    sample: the name of the file with unseen input beside it. written: text that the model wrote, or nothing.
    """
    sections = [
        f"# {contract.name}",
        f"{contract.description}. {contract.training.parameters:,} parameters.",
        "## Ports\n\n" + _ports(contract),
        "## Figures\n\n" + _figures(contract, recipe),
        "## Verification\n\n" + _numerics(contract),
        "## Data\n\n" + _data(recipe, contract, sample),
        "## Make it again\n\n" + _commands(recipe),
    ]
    if written:
        sections.insert(4, "## What it writes\n\n" + _written(written))
    write_whole(path, ("\n\n".join(sections) + "\n").encode())


def _ports(contract: pb.ModelContract) -> str:
    """A table of inputs, outputs and states; shapes are those of a batch."""
    rows = ["| tensor | shape | meaning |", "|---|---|---|"]
    for kind, ports in (("in", contract.inputs), ("out", contract.outputs)):
        for port in ports:
            unit = f" ({port.unit})" if port.unit else ""
            labels = "".join(f"; {axis.name}: {', '.join(axis.labels)}" for axis in port.axes)
            shape = ", ".join(["B", "T", *map(str, port.shape)])
            rows.append(f"| {kind} `{port.name}` | [{shape}] | {port.meaning}{unit}{labels} |")
    for state in contract.states:
        shape = ", ".join(["B", *map(str, state.shape)])
        rows.append(f"| state `{state.name}` -> `{state.next_name}` | [{shape}] | {state.meaning} |")
    return "\n".join(rows)


def _figures(contract: pb.ModelContract, recipe: Recipe) -> str:
    """The test part's figures: bits per character, or errors by horizon; baselines beside them."""
    values = {figure.name: figure.value for figure in contract.training.figures}
    data = recipe.data
    if isinstance(data, SeriesSource):
        return _series_figures(values, data)
    names = ("", *(f"_{name}" for name in TEXT_BASELINES))
    return (
        "Bits per character on the test part (the last tenth of the text), lower is better:\n\n"
        f"| this model | {' | '.join(TEXT_BASELINES.values())} |\n|{'---|' * len(names)}\n"
        f"| {_cells(values, 'bits_per_character', names)} |\n\n"
        "The baselines count in the training part, without any model. 4-grams: each character by the three before it,\n"
        "mixed with shorter contexts (Jelinek and Mercer) by weights that were fitted on the validation part. Pairs:\n"
        "each by the one before it."
    )


def _series_figures(values: dict[str, float], data: SeriesSource) -> str:
    nominal, season = values["interval_coverage_nominal"], values["season_steps"]
    names = ("", *(f"_{name}" for name in SERIES_BASELINES))
    baselines = " | ".join(SERIES_BASELINES.values())
    rows = [
        f"Mean absolute error in {data.unit} on the test part (the last tenth of the series), lower is better, and the",
        f"share of true values between the outer quantiles, where {nominal:.0%} should lie:",
        "",
        f"| steps of {data.step_seconds} s ahead | this model | {baselines} | between |",
        "|---|---|---|---|---|---|",
    ]
    ends = [(str(h), f"_{h}") for h in data.horizons] + [("all", "")]
    for label, end in ends:
        rows.append(f"| {label} | {_cells(values, f'mae{end}', names)} | {values[f'interval_coverage{end}']:.0%} |")
    rows += [
        "",
        f"Pinball loss in {data.unit}, lower is better:",
        "",
        f"| steps of {data.step_seconds} s ahead | this model | {baselines} |",
        "|---|---|---|---|---|",
    ]
    for label, end in ends:
        rows.append(f"| {label} | {_cells(values, f'pinball_loss{end}', names)} |")
    where = f"a season is {season:.0f} steps, from the recipe"
    if data.season_steps is None:
        where = f"a season is {season:.0f} steps, found in the training part"
        if season == 1:
            where = "no season was found in the training part, so it is the last value"
    rows += [
        "",
        "Linear: from the present value and the latest three changes, by least squares on the training part. Seasonal",
        "last value: the value one season before the time that the forecast is for, or as many as reach it;",
        f"{where}.",
        "A baseline's quantiles are its forecast plus the quantiles of its own errors on the training part.",
    ]
    return "\n".join(rows)


def _cells(values: dict[str, float], figure: str, names: tuple[str, ...]) -> str:
    """One figure of the model and of the baselines as cells of a table's row."""
    return " | ".join(f"{values[figure + name]:.3f}" for name in names)


def _written(text: str) -> str:
    """Generated text in a code block, indented so that nothing in it can end the block."""
    return "After the first lines of the test part:\n\n" + "\n".join(f"    {line}" for line in text.splitlines())


def _numerics(contract: pb.ModelContract) -> str:
    """The verdict in words."""
    numerics = contract.numerics
    verdict = (
        "bit for bit the same"
        if numerics.bitwise
        else f"the same within {numerics.tolerance:.1e} (largest absolute difference)"
    )
    unit = f", outputs in {contract.outputs[0].unit}" if contract.outputs[0].unit else ""
    batches, chunks = (", ".join(map(str, values)) for values in (numerics.batches, numerics.chunk_steps))
    return (
        f"Outputs and final states are {verdict} over batches of {batches} and chunks of {chunks} steps.\n"
        f"Largest difference from PyTorch: {numerics.parity_max_difference:.1e}{unit}.\n"
        f"Measured with {numerics.runtime} on {numerics.cpu}."
    )


def _data(recipe: Recipe, contract: pb.ModelContract, sample: str) -> str:
    """Where the data comes from, how it was split and what lies beside the model."""
    data = recipe.data
    lines = [f"{contract.training.data}, licence {data.licence}, split 80/10/10 in time order."]
    if isinstance(data, SeriesSource):
        lines.append("Scaling was fitted on the training part and lives inside the graph: values go in and come out in")
        lines.append(f"{data.unit}. `{sample}` holds the validation and test parts; its second half is the test part.")
        if data.time:
            lines.append(GAPS)
        if data.note:
            lines.append(data.note)
    else:
        lines.append("The vocabulary was fitted on the training part; its symbol 0 stands for any other character.")
        lines.append(f"`{sample}` holds the beginning of the test part.")
    return "\n".join(lines)


def _commands(recipe: Recipe) -> str:
    """The two commands that lead here."""
    name, version = recipe.name, recipe.version
    return (
        f"```sh\neddy train {name} --output runs/{name}\n"
        f"eddy export runs/{name}/checkpoint.pt --output models/{name}/{version}\n```"
    )
