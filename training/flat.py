"""Flat modules: anybody's module as a function from named tensors to named tensors.

Owns names: inputs are called as `forward` calls them, outputs as the module's dictionary does, or by their place. Must
not know ONNX.
"""

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from eddy.training.errors import ExportError

Example = Tensor | Sequence[Any] | Mapping[str, Any]


class FlatModule(nn.Module):
    """A copy of a module, ready to be exported: evaluation mode, on the CPU, tensors in and tensors out.

    input_names, output_names: in the order of `forward`'s arguments and results.
    """

    def __init__(self, module: nn.Module, example: Example) -> None:
        """example: a tensor, the tuple of positional arguments, or the dictionary of keyword arguments.

        Raises ExportError where the module does not run on it, or takes or gives what is no tensor.
        """
        super().__init__()
        _check_plain(module)
        self.module = copy.deepcopy(module).cpu().eval()
        arguments, keywords = _call_of(example)
        names = _argument_names(self.module, arguments, keywords)
        leaves, self._given = tree.tree_flatten_with_path((arguments, keywords))
        self.input_names = [_called(names, path) for path, _ in leaves]
        self.example = tuple(_tensor(value, name) for name, (_, value) in zip(self.input_names, leaves, strict=True))
        if not self.example:
            raise ExportError("example: got no tensor, expected at least one, [B, T, ...]")
        try:
            with torch.no_grad():
                answer = self.module(*arguments, **keywords)
        except Exception as error:  # somebody else's module raises what it likes
            raise ExportError(f"the module does not run on the example: {type(error).__name__}: {error}") from error
        found = [(path, value) for path, value in tree.tree_flatten_with_path(answer)[0] if value is not None]
        self.output_names = _unique([_word(path) or "output" for path, _ in found])
        for name, (_, value) in zip(self.output_names, found, strict=True):
            _tensor(value, name)
        _check_apart(self.input_names, self.output_names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The module's tensors, in the order of `output_names`."""
        arguments, keywords = tree.tree_unflatten(list(tensors), self._given)
        answer = self.module(*arguments, **keywords)
        return tuple(value for value in tree.tree_leaves(answer) if value is not None)


def _check_plain(module: nn.Module) -> None:
    """Torch's exporter traces, and does not look into modules that are compiled."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"its part {name!r}" if name else "it"
            raise ExportError(
                f"torch cannot export the module: {where} is a module under torch.jit.script, which cannot be traced; "
                "script a function with the loop alone, and call that from an ordinary module"
            )


def _call_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example.cpu(),), {}
    arguments, keywords = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    moved: tuple[tuple[Any, ...], dict[str, Any]] = tree.tree_map_only(Tensor, Tensor.cpu, (arguments, keywords))
    return moved


def _argument_names(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[str]:
    """What `forward` calls the positional arguments."""
    try:
        bound = inspect.signature(module.forward).bind(*arguments, **keywords)
    except TypeError as error:
        raise ExportError(f"example: does not fit the module's forward: {error}") from error
    names: list[str] = []
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(len(arguments) - len(names))]
        else:
            names.append(parameter.name)
    return names[: len(arguments)]


def _called(names: Sequence[str], path: tuple[Any, ...]) -> str:
    """An argument's name; tensors inside it are numbered or called by their keys."""
    side, first, *rest = path
    name = names[first.idx] if side.idx == 0 else str(first.key)
    return "_".join([name, *(_words((step,)) for step in rest)])


def _word(path: tuple[Any, ...]) -> str:
    """An output's name from its place: {"logits": ...} is logits, the second of a tuple is output_1."""
    word = _words(path)
    return f"output_{word}" if word[:1].isdigit() else word


def _words(path: tuple[Any, ...]) -> str:
    """A place in a structure: the keys on the way to it."""
    words = []
    for step in path:
        if isinstance(step, tree.SequenceKey):
            words.append(str(step.idx))
        elif isinstance(step, tree.MappingKey):
            words.append(str(step.key))
        else:
            words.append(str(getattr(step, "name", step)))
    return re.sub(r"\W+", "_", "_".join(words))


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ExportError(f"{name}: got {type(value).__name__}, expected a tensor; fix such arguments in the module")
    return value.detach()


def _unique(names: list[str]) -> list[str]:
    return [f"{name}_{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]


def _check_apart(inputs: list[str], outputs: list[str]) -> None:
    """Inputs and outputs share one space of names in a graph."""
    both = sorted(set(inputs) & set(outputs))
    if both:
        raise ExportError(f"{both[0]!r} is an input and an output of the module, expected different names")
