"""The CPU's instruction set, as far as it decides which kernels run: bits hold only where it is the same.

Owns the reading of what the operating system says. Must not know records or models.
"""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# In the kernel's words, in this order; those for which libraries of matrices have kernels of their own.
_EXTENSIONS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "fphp", "bf16", "i8mm", "sve", "sve2", "sme"),
)
_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


@cache
def instruction_set() -> str:
    """The machine and its extensions, such as `x86_64 avx avx2 fma`; the machine alone where nothing tells more."""
    try:
        text = _CPU_INFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    return describe(platform.machine() or "unknown", text)


def describe(machine: str, cpu_info: str) -> str:
    """What `machine` has of the extensions that matter, by the text of `/proc/cpuinfo`; the first CPU's count."""
    found = _FLAGS.search(cpu_info)
    flags = set(found.group(1).split()) if found else set()
    return " ".join((machine, *(name for name in _EXTENSIONS if name in flags)))
