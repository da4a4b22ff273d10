"""Model cards: what a shipped model is, how good it is, what it was trained on and how to make it again.

Owns: the Markdown of `models/<name>/<version>/README.md`. Every number comes from the contract; nothing is computed.
What a task has to say of its figures and data, the task says.
"""

from pathlib import Path

from eddy.training.answers import Answers
from eddy.training.contract import precision_of, sample_path
from eddy.training.figures import IN_FLOAT32, SPEEDUP
from eddy.training.recipe import Recipe
from eddy.training.spec import FLOAT32
from eddy.training.storage import write_whole
from eddy.training.tasks.registry import find_task
from eddy.v1 import contract_pb2 as pb


def write_card(path: Path, recipe: Recipe, contract: pb.ModelContract) -> None:
    """Write the card beside a model file. Its sample of unseen input, if it is there, is answered in the card."""
    task, sample = find_task(recipe.data), sample_path(path, contract)
    values = {figure.name: figure.value for figure in contract.training.figures}
    title, text = task.show_answers(Answers(path, contract), sample.read_text("utf-8")) if sample.exists() else ("", "")
    is_plain = precision_of(contract) == FLOAT32
    sections = [
        f"# {contract.name}",
        f"{contract.description}. {contract.training.parameters:,} parameters.",
        "## Ports\n\n" + _ports(contract),
        "## Figures\n\n" + task.show_figures(values, recipe.data),
        *([] if is_plain else ["## Precision\n\n" + _precision(contract)]),
        *([f"## {title}\n\n{text}"] if title else []),
        "## Verification\n\n" + _numerics(contract),
        f"## Data\n\n{contract.training.data}, licence {recipe.data.licence}, "
        + task.show_data(recipe.data, sample.name),
        "## Make it again\n\n" + _commands(recipe, contract),
    ]
    write_whole(path.with_name("README.md"), ("\n\n".join(sections) + "\n").encode())


def _ports(contract: pb.ModelContract) -> str:
    """A table of inputs, outputs and states; shapes are those of a batch."""
    rows = ["| tensor | shape | meaning |", "|---|---|---|"]
    for kind, ports in (("in", contract.inputs), ("out", contract.outputs)):
        for port in ports:
            unit = f" ({port.unit})" if port.unit else ""
            labels = "".join(f"; {axis.name}: {', '.join(axis.labels)}" for axis in port.axes)
            shape = ", ".join(["B", "T", *map(str, port.shape)])
            rows.append(f"| {kind} `{port.name}` | [{shape}] | {port.meaning}{unit}{labels} |")
    for port in contract.prime_inputs:
        shape = ", ".join(["B", f"up to {contract.max_prime_steps}", *map(str, port.shape)])
        rows.append(f"| read first: `{port.name}` | [{shape}] | {port.meaning} |")
    for state in contract.states:
        shape = ", ".join(["B", *map(str, state.shape)])
        after = "written once" if state.immutable else f"-> `{state.next_name}`"
        rows.append(f"| state `{state.name}` {after} | [{shape}] | {state.meaning} |")
    if contract.streaming.block_steps:
        rows += ["", _grid(contract)]
    return "\n".join(rows)


def _grid(contract: pb.ModelContract) -> str:
    """What a model that looks ahead emits when."""
    ports, block, ahead = contract.ports, contract.streaming.block_steps, contract.streaming.look_ahead_steps
    return (
        f"Outputs come in blocks of {block} steps, each once the {ahead} steps behind it have been read, so {ahead} to "
        f"{ahead + block - 1} steps late.\n`{ports.length}` says how many steps of each row a call holds, "
        f"`{ports.emitted}` how many outputs it gave;\n`{ports.flush}` ends a stream: what is left comes at once. "
        f"`{contract.graphs.whole}` reads whole sequences and is exact."
    )


def _precision(contract: pb.ModelContract) -> str:
    """What a precision other than float32 loses and gains."""
    figures, precision = {figure.name: figure for figure in contract.training.figures}, contract.precision
    rows = [f"| test part | float32 | {precision} |", "|---|---|---|"]
    for name, figure in figures.items():
        own = figures.get(name.removeprefix(IN_FLOAT32))
        if name.startswith(IN_FLOAT32) and own is not None:
            unit = f" ({figure.unit})" if figure.unit else ""
            rows.append(f"| {own.name.replace('_', ' ')}{unit} | {figure.value:.4f} | {own.value:.4f} |")
    gains = {name.removeprefix(SPEEDUP): f.value for name, f in figures.items() if name.startswith(SPEEDUP)}
    rows += ["", f"| rows of a call | {' | '.join(gains)} |", "|---" * (len(gains) + 1) + "|"]
    rows += [f"| steps per second over float32's | {' | '.join(f'{value:.2f}' for value in gains.values())} |", ""]
    rows += [
        "The same weights, with a scale a column, and hidden states in steps of 1/127 inside the layers; embedding,",
        "gates and output, and all that goes in and out, are float32. One step a call on one thread, in turns with the",
        "model in float32. The command below measures both and prints it.",
    ]
    return "\n".join(rows)


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
    # Nothing computes to the last bit what another program does: 0 says that none was asked.
    parity = numerics.parity_max_difference
    same = "" if precision_of(contract) == FLOAT32 else f", which computes the same in {contract.precision}"
    compared = f"Largest difference from PyTorch{same}: {parity:.1e}{unit}.\n" if parity else ""
    return (
        f"Outputs and final states are {verdict} over batches of {batches} and chunks of {chunks} steps.\n{compared}"
        f"Measured with {numerics.runtime} on {numerics.cpu}."
    )


def _commands(recipe: Recipe, contract: pb.ModelContract) -> str:
    """The two commands that lead here."""
    name, version = recipe.name, recipe.version
    streaming = contract.streaming
    grid = (
        f" --block {streaming.block_steps} --look-ahead {streaming.look_ahead_steps}" if streaming.block_steps else ""
    )
    precision = "" if precision_of(contract) == FLOAT32 else f" --precision {contract.precision}"
    return (
        f"```sh\neddy train {name} --output runs/{name}\n"
        f"eddy export runs/{name}/checkpoint.pt --output models/{contract.name}/{version}{grid}{precision}\n```"
    )
