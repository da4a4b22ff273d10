"""Decoding: a translation model writes the target of a source, by its prime and its step graph.

Owns: greedy and beam search over a model file. Must not know corpora, figures or torch.

Rows are independent: sources of all lengths are read and written side by side, and none changes another's translation.
Beam search keeps the best unfinished targets of every source by the sum of their log-probabilities; finished ones are
compared by that sum divided by their number of symbols, the end included, to the power of the length penalty: above 1
longer ones gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.errors import ContractError, DataError
from eddy.training.pieces import END_ID, START_ID, UNKNOWN_ID, Pieces, Tokens
from eddy.training.runtime import Runtime, Tensors
from eddy.v1 import contract_pb2 as pb

# Sources that are read side by side.
MAX_ROWS = 64
ATTENTION = "attention"

Logits = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Translation:
    """A target.

    tokens: its symbols' ids, without start and end. score: what beams are compared by; without a length penalty the
    mean log-probability of symbols and end. attention: float32 [symbols, source symbols], where the model has it and
    the search was greedy.
    """

    text: str
    tokens: tuple[int, ...]
    score: float
    attention: Floats | None = None


class Translator:
    """A model file with a prime graph, ready to translate."""

    def __init__(self, path: Path, contract: pb.ModelContract, source: Pieces, target: Pieces) -> None:
        """Raises ContractError where the model has no prime graph of one token input."""
        if not contract.graphs.prime or len(contract.prime_inputs) != 1 or not contract.ports.prime_length:
            raise ContractError(f"{path}: graphs.prime: got none of one input and its length, expected a translator")
        self._contract, self._source, self._target = contract, source, target
        self._runtime = Runtime(path, contract)

    def translate(
        self, texts: Sequence[str], *, beams: int = 1, length_penalty: float = 1.0, max_steps: int = 96
    ) -> list[Translation]:
        """The translations of texts, in order; one that does not end after `max_steps` symbols is cut there.

        beams: 1 is greedy. Raises DataError for an empty text or one that is longer than the model reads.
        """
        sources = [self._encode(text) for text in texts]
        found: dict[int, Translation] = {}
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
        for start in range(0, len(order), MAX_ROWS):
            rows = order[start : start + MAX_ROWS]
            batch = [sources[row] for row in rows]
            if beams == 1:
                written = self._search_greedily(batch, max_steps)
            else:
                written = self._search_beams(batch, beams, length_penalty, max_steps)
            found |= dict(zip(rows, written, strict=True))
        return [found[row] for row in range(len(texts))]

    def _encode(self, text: str) -> Tokens:
        tokens = self._source.encode(text)
        if not 1 <= len(tokens) <= self._contract.max_prime_steps:
            expected = f"1 to {self._contract.max_prime_steps}"
            raise DataError(f"source {text!r}: got {len(tokens)} symbols, expected {expected}")
        return tokens

    def _begin(self, sources: Sequence[Tokens]) -> Tensors:
        """States after the sources, two rows at least: a single one is read twice, as a service would."""
        rows = [*sources, sources[0]] if len(sources) == 1 else list(sources)
        steps = max(map(len, rows))
        tokens = np.stack([np.pad(row, (0, steps - len(row))) for row in rows])
        lengths = np.array([len(row) for row in rows], np.int64)
        primed = {self._contract.prime_inputs[0].name: tokens, self._contract.ports.prime_length: lengths}
        return self._runtime.start(len(rows)) | self._runtime.prime(primed)

    def _advance(self, tokens: Tokens, states: Tensors) -> tuple[Logits, Tensors, Tensors]:
        """One symbol for each row: int64 [B]. Returns log-probabilities [B, V], all outputs and the states after.

        What stands for no text, the unknown symbol and the start, has none.
        """
        outputs, states = self._runtime.advance({self._contract.inputs[0].name: tokens[:, None]}, states)
        logits = outputs[self._contract.outputs[0].name][:, 0].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        chances = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        chances[:, [UNKNOWN_ID, START_ID]] = -np.inf
        return chances, outputs, states

    def _search_greedily(self, sources: Sequence[Tokens], max_steps: int) -> list[Translation]:
        states = self._begin(sources)
        rows = len(next(iter(states.values())))
        last, alive = np.full(rows, START_ID), np.ones(rows, bool)
        written: list[list[int]] = [[] for _ in sources]
        looks: list[list[Floats]] = [[] for _ in sources]
        sums, counts = np.zeros(rows), np.zeros(rows)
        for _step in range(max_steps):
            chances, outputs, states = self._advance(last, states)
            last = chances.argmax(axis=1)
            sums += np.where(alive, chances.max(axis=1), 0.0)
            counts += alive
            alive &= last != END_ID
            for row, source in enumerate(sources):
                if alive[row]:
                    written[row].append(int(last[row]))
                    if ATTENTION in outputs:
                        looks[row].append(outputs[ATTENTION][row, 0, : len(source)].astype(np.float32))
            if not alive.any():
                break
        means = sums / counts
        return [
            Translation(self._target.decode(tokens), tuple(tokens), float(mean), np.stack(look) if look else None)
            for tokens, look, mean in zip(written, looks, means, strict=False)
        ]

    def _search_beams(
        self, sources: Sequence[Tokens], beams: int, length_penalty: float, max_steps: int
    ) -> list[Translation]:
        # Rows of a source stand together: row i * beams + b is beam b of source i.
        primed = self._begin(sources)
        states = {name: np.repeat(value[: len(sources)], beams, axis=0) for name, value in primed.items()}
        searches = [Beams(beams, length_penalty) for _ in sources]
        for _step in range(max_steps):
            last = np.array([token for search in searches for token in search.last], np.int64)
            chances, _, states = self._advance(last, states)
            kept: list[int] = []
            for i, search in enumerate(searches):
                before = search.extend(chances[i * beams : (i + 1) * beams])
                kept += [i * beams + row for row in before]
            states = {name: value[kept] for name, value in states.items()}
            if all(search.is_finished for search in searches):
                break
        found = [search.best() for search in searches]
        return [Translation(self._target.decode(tokens), tokens, score) for tokens, score in found]


class Beams:
    """The search for one source's target. What it holds changes in `extend` only."""

    def __init__(self, width: int, length_penalty: float = 1.0) -> None:
        self._width, self._penalty = width, length_penalty
        # Symbols and summed log-probability of the unfinished targets, then of the finished ones with their scores.
        self._open: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        self._done: list[tuple[tuple[int, ...], float]] = []

    @property
    def is_finished(self) -> bool:
        """True where as many targets are finished as there are beams, or none is open."""
        return len(self._done) >= self._width or not self._open

    @property
    def last(self) -> list[int]:
        """The symbol that each beam reads next; beams that are not used read the start."""
        tokens = [symbols[-1] if symbols else START_ID for symbols, _ in self._open]
        return tokens + [START_ID] * (self._width - len(tokens))

    def extend(self, chances: Logits) -> list[int]:
        """Add a symbol: log-probabilities [width, V] of what follows each beam. Returns which beam each came from."""
        if self.is_finished:
            return list(range(self._width))
        symbols = chances.shape[1]
        sums = np.concatenate([total + chances[row] for row, (_, total) in enumerate(self._open)])
        # Twice as many as are kept: of each beam only one can end.
        candidates = np.argsort(-sums, kind="stable")[: 2 * self._width]
        grown: list[tuple[tuple[int, ...], float]] = []
        before: list[int] = []
        for place in candidates.tolist():
            row, token = divmod(place, symbols)
            tokens = self._open[row][0]
            if token == END_ID:
                self._done.append((tokens, float(sums[place]) / (len(tokens) + 1) ** self._penalty))
            elif len(grown) < self._width:
                grown.append(((*tokens, token), float(sums[place])))
                before.append(row)
        self._open = grown
        return before + [0] * (self._width - len(before))

    def best(self) -> tuple[tuple[int, ...], float]:
        """The finished target with the best score, or an unfinished one where the search was cut before any ended."""
        found = self._done or [(tokens, total / max(1, len(tokens)) ** self._penalty) for tokens, total in self._open]
        return max(found, key=lambda one: one[1])
