"""The processor that this runs on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What tells libraries, before they are imported, how many threads to use."""


def cpu_features() -> dict[str, Any]:
    """The processor: `model` (name), `avx2`, `avx512`, `vnni` (True, False, or None if unknown).

    vnni tells whether 8-bit products accumulate without saturating (AVX512-VNNI, AVX-VNNI); on
    ARM it is True where the dot-product instructions are.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: the name is all the standard library tells
        name = platform.processor() or platform.machine() or "unknown"
        return {"model": name, "avx2": None, "avx512": None, "vnni": None}
    flags: set[str] = set()
    for line in re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)[:1]:
        flags = set(line.split())
    names = re.findall(r"^model name\s*:\s*(.*)$", text, re.M)
    return {
        "model": names[0].strip() if names else platform.machine() or "unknown",
        "avx2": "avx2" in flags,
        "avx512": "avx512f" in flags,
        "vnni": bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"}),
    }


def torchrun_processes() -> tuple[int, int] | None:
    """(processes, those on this machine) when torchrun started more than one, else None."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count < 2 or "RANK" not in os.environ:
        return None
    return count, int(os.environ.get("LOCAL_WORLD_SIZE") or count)
