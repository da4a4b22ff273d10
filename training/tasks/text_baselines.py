"""Baselines of texts: what counting characters reaches, without any learning of states.

Owns: counts of single characters, pairs and groups of four. Everything is counted on the training part; only the
weights that mix counts are fitted on the validation part. The test part is never fitted to. Must not know models.
"""

import numpy as np
import numpy.typing as npt

from eddy.training.data import Tokens

# Characters of a counted group: three of context and the one that comes.
ORDER = 4
# Contexts that were seen about equally often share a weight: 1, 2-3, 4-7, ... times; the last class has no upper end.
CLASSES = 12
# Rounds of fitting; on the shipped text nothing moves by 0.001 bit after ten.
ROUNDS = 25

Doubles = npt.NDArray[np.float64]


def unigram_bits(train: Tokens, test: Tokens, size: int) -> float:
    """Mean bits of a test token under the training part's frequencies, each count raised by one."""
    counts = np.bincount(train, minlength=size) + 1.0
    return float(-np.log2(counts / counts.sum())[test].mean())


def bigram_bits(train: Tokens, test: Tokens, size: int) -> float:
    """Mean bits of a test token given the one before it, pair counts of the training part, each raised by one."""
    counts = np.ones((size, size))
    np.add.at(counts, (train[:-1], train[1:]), 1.0)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[test[:-1], test[1:]].mean())


def ngram_bits(train: Tokens, validation: Tokens, test: Tokens, size: int, order: int = ORDER) -> float:
    """Mean bits of a test token given the order - 1 before it, counts of all orders mixed (Jelinek and Mercer, 1980).

    share_n = w * (count of the n tokens / count of their first n - 1) + (1 - w) * share_{n-1}, down to 1 / size. Counts
    are the training part's; the weights w, one for each n and class of context count, are fitted on the validation
    part by expectation maximisation. Tokens int64 [N], all below `size`.
    """
    counts = _NgramCounts(train, validation, test, size, order)
    weights = _fit_weights(*counts.look_up(1), size)
    shares, classes = counts.look_up(2)
    return float(-np.log2(_mix(shares, classes, weights, size)[-1]).mean())


class _NgramCounts:
    """The training part's counts of all orders, looked up at every position of any of the three parts."""

    def __init__(self, train: Tokens, validation: Tokens, test: Tokens, size: int, order: int) -> None:
        parts = (train, validation, test)
        self._starts = np.cumsum([0, *map(len, parts)])
        tokens = np.concatenate(parts)
        # The first of a part has no token before it, the second only one, and so on: a part stands alone.
        self._before = np.concatenate([np.arange(len(part)) for part in parts])
        # Ids of the n tokens that end at each position: equal ids for equal groups, below the number of positions.
        groups = [np.zeros(len(tokens), np.int64), tokens]
        for _ in range(order - 1):
            earlier = np.concatenate([[0], groups[-1][:-1]])
            groups.append(np.unique(earlier * size + tokens, return_inverse=True)[1])
        self._groups = groups

    def look_up(self, part: int) -> tuple[Doubles, Tokens]:
        """For a part (0 to 2) but its first token: the shares that counts give and the context's class, each [n, N].

        Class 0 is a context that the training part lacks; its share is 0.
        """
        here = np.arange(self._starts[part] + 1, self._starts[part + 1])
        found = [self._count(n, here) for n in range(1, len(self._groups))]
        with_context = [np.maximum(context, 1) for _, context in found]
        shares = np.array([whole / context for (whole, _), context in zip(found, with_context, strict=True)])
        classes = np.array([np.minimum(np.frexp(context)[1], CLASSES - 1) for _, context in found])
        return shares, classes.astype(np.int64)

    def _count(self, n: int, here: Tokens) -> tuple[Tokens, Tokens]:
        """How often the n tokens that end at each position, and how often their first n - 1, were in training."""
        last = self._groups[n]
        context = np.concatenate([[0], self._groups[n - 1][:-1]])
        counted = np.flatnonzero(self._before[: self._starts[1]] >= n - 1)
        whole = np.bincount(last[counted], minlength=int(last.max()) + 1)[last[here]]
        first = np.bincount(context[counted], minlength=int(context.max()) + 1)[context[here]]
        known = self._before[here] >= n - 1
        return whole * known, first * known


def _fit_weights(shares: Doubles, classes: Tokens, size: int) -> Doubles:
    """The weights [n, CLASSES] that make these positions likeliest; 0 for contexts that were not seen."""
    weights = np.full((len(shares), CLASSES), 0.5)
    weights[:, 0] = 0.0
    for _ in range(ROUNDS):
        mixed = _mix(shares, classes, weights, size)
        # The chance that a position was decided at an order, and of what is left for the lower ones.
        left = np.ones(shares.shape[1])
        for n in range(len(shares) - 1, -1, -1):
            decided = weights[n][classes[n]] * shares[n] / mixed[n + 1]
            reached = np.bincount(classes[n], left, CLASSES)
            taken = np.bincount(classes[n], left * decided, CLASSES)
            # One more position, decided lower down: no weight gets to 1, so nothing is ever impossible.
            weights[n] = taken / (reached + 1)
            left = left * (1 - decided)
    return weights


def _mix(shares: Doubles, classes: Tokens, weights: Doubles, size: int) -> list[Doubles]:
    """The mixed share of every position by order, [N] each, the uniform share first."""
    mixed = [np.full(shares.shape[1], 1 / size)]
    for share, its_class, weight in zip(shares, classes, weights, strict=True):
        own = weight[its_class]
        mixed.append(own * share + (1 - own) * mixed[-1])
    return mixed
