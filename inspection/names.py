"""Names: whether the names of an input and an output say that one is the next value of the other.

Owns the words. A name is a hint: who uses it looks at shapes and at the flow of data as well.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache

# Words that say "before" and "after"; they stand before or behind the name of the state.
_BEFORE = ("pastkeyvalues", "previous", "initial", "prev", "past", "init", "last", "old", "0")
_AFTER = ("presentkeyvalues", "present", "updated", "current", "final", "next", "new", "last", "cur", "n", "t")
# Words that say only on which side a tensor lies.
_INTO = ("inputs", "input", "in")
_OUT_OF = ("outputs", "output", "out")
# The ones that are too short to stand in front: "n" of "name", "0" of nothing.
_BEHIND_ONLY = {"0", "n", "t"}

_STATE_WORDS = {"h", "c", "s", "hc", "hx", "cx", "hs", "cs", "kv", "ctx", "tail", "ring", "past", "mem", "z", "k", "v"}
_STATE_PARTS = (
    "state", "hidden", "cell", "cache", "buf", "memory", "carry", "hist", "lstm", "gru", "rnn", "conv", "context",
    "past", "recurrent", "ring", "queue", "delay", "accum",
)  # fmt: skip


class Match(IntEnum):
    """How much two names say, less to more."""

    NONE = 0
    # "x_in", "x_out": two sides of something.
    SIDES = 1
    # "cache_in", "cache_out": two sides of something that is called like a state.
    STATE = 2
    # "h0", "hn"; "prev_x", "x": a moment and the next.
    NEXT = 3


def match(given: str, result: str) -> Match:
    """What the names of an input and an output say about each other."""
    best = Match.NONE
    results = _forms(result, _AFTER, _OUT_OF)
    for stem, is_before in _forms(given, _BEFORE, _INTO).items():
        if stem not in results or not stem:
            continue
        if is_before or results[stem]:
            best = Match.NEXT
        else:
            best = max(best, Match.STATE if is_state_word(stem) else Match.SIDES)
    return best


def is_state_word(name: str) -> bool:
    """The name is one that states have."""
    stem = _compact(name)
    bare = stem.rstrip("0123456789")
    return bare in _STATE_WORDS or any(part in stem for part in _STATE_PARTS)


def _compact(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


@lru_cache(maxsize=4096)
def _forms(name: str, moments: tuple[str, ...], sides: tuple[str, ...]) -> dict[str, bool]:
    """The name without one word of its ends -> whether that word was one of a moment."""
    compact = _compact(name)
    found = {compact: False}
    for words, is_moment in ((sides, False), (moments, True)):
        for word in words:
            if compact.endswith(word):
                found.setdefault(compact[: -len(word)], is_moment)
            if compact.startswith(word) and word not in _BEHIND_ONLY:
                found.setdefault(compact[len(word) :], is_moment)
    return found
