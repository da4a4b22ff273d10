"""Memory that begins at a page, as a file that is written past the page cache wants it.

Owns the size of a page and the making of such arrays. Must not know what is in them.
"""

from __future__ import annotations

import numpy as np

# What every file system and disk that allows writing past the page cache is content with.
PAGE_BYTES = 4096


def empty(num_bytes: int) -> np.ndarray:
    """So many bytes that begin at a page, uint8, with anything in them."""
    room = np.empty(num_bytes + PAGE_BYTES, np.uint8)
    first = -_address(room) % PAGE_BYTES
    return room[first : first + num_bytes]


def begins_at_page(data: np.ndarray) -> bool:
    """Whether contiguous bytes do."""
    return _address(data) % PAGE_BYTES == 0


def padded(num_bytes: int) -> int:
    """The bytes of the pages that so many bytes take."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def _address(data: np.ndarray) -> int:
    address: int = data.__array_interface__["data"][0]
    return address
