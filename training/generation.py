"""Generation: a character model writes on from a prompt, one drawn character after another.

Owns: the sampling loop, and the stream that a model file is read through. Must not know torch: a model is anything
that reads tokens and answers with logits, its state kept between calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eddy.training.contract import read_contract
from eddy.training.data import Tokens, Vocabulary
from eddy.training.errors import ContractError, OptionError
from eddy.training.runtime import Runtime
from eddy.v1 import contract_pb2 as pb

# What the card shows of a model: this much is read first, and then so much is written.
PROMPT_CHARACTERS = 200
CARD_CHARACTERS = 400

Logits = npt.NDArray[np.floating]


class TokenStream(Protocol):
    """A model of next tokens that keeps its state between calls."""

    def read(self, tokens: Tokens) -> Logits:
        """Read on: int64 [T] token ids; returns the logits after each, [T, V]."""


class OnnxStream:
    """A model file of next tokens, from its initial state on."""

    def __init__(self, path: Path) -> None:
        """Raises ContractError where the file is no character model that streams."""
        self.contract = read_contract(path)
        if not self.contract.vocabulary.symbols:
            raise ContractError(f"{path}: vocabulary: got none, expected a model of characters")
        if self.contract.vocabulary.unit != "character" or not self.contract.streaming.streamable:
            raise ContractError(f"{path}: expected a model that streams single characters")
        if self.contract.task != pb.TASK_NEXT_TOKEN:
            came = pb.Task.Name(self.contract.task)
            raise ContractError(f"{path}: task: got {came}, expected a model of the next character")
        self.vocabulary = Vocabulary(tuple(self.contract.vocabulary.symbols))
        self._runtime = Runtime(path, self.contract)
        self._states = self._runtime.start(1)  # Written by `read` only.

    def read(self, tokens: Tokens) -> Logits:
        """Read on; see `TokenStream`."""
        outputs, self._states = self._runtime.advance({self.contract.inputs[0].name: tokens[None]}, self._states)
        logits: Logits = outputs[self.contract.outputs[0].name][0].astype(np.float32, copy=False)
        return logits


@dataclass(frozen=True, slots=True)
class Sampling:
    """How characters are drawn.

    temperature: the logits are divided by it; below 1 the likelier symbols gain, 0 takes the likeliest every time.
    top_k: only so many of the likeliest are drawn from; None means all. seed: the same one gives the same text.
    """

    length: int = 400
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise OptionError(f"length: got {self.length}, expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise OptionError(f"temperature: got {self.temperature}, expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise OptionError(f"top_k: got {self.top_k}, expected at least 1")
        if self.seed < 0:
            raise OptionError(f"seed: got {self.seed}, expected 0 or more")


def continue_text(stream: TokenStream, vocabulary: Vocabulary, prompt: str, sampling: Sampling) -> Iterator[str]:
    """Read a prompt of at least one character, then draw and yield characters. The unknown symbol is never drawn."""
    if not prompt:
        raise OptionError("prompt: got nothing, expected at least one character")
    rng = np.random.default_rng(sampling.seed)
    logits = stream.read(vocabulary.encode(prompt))
    for _ in range(sampling.length):
        token = _draw(logits[-1].astype(np.float64), sampling, rng)
        yield vocabulary.symbols[token]
        logits = stream.read(np.array([token]))


def _draw(logits: npt.NDArray[np.float64], sampling: Sampling, rng: np.random.Generator) -> int:
    """One token from the logits [V]."""
    logits[0] = -np.inf
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    if sampling.top_k is not None and sampling.top_k < len(logits):
        least = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        logits[logits < least] = -np.inf
    shares = np.exp((logits - logits.max()) / sampling.temperature)
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def continue_sample(path: Path, sample: str) -> str:
    """What a model file writes after the first lines of its sample, for its card."""
    stream = OnnxStream(path)
    sampling = Sampling(length=CARD_CHARACTERS)
    return "".join(continue_text(stream, stream.vocabulary, sample[:PROMPT_CHARACTERS], sampling))
