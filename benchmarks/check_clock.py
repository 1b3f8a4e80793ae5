"""Can a busy machine fool the clock? Not run by pytest.

python benchmarks/check_clock.py BASE.onnx SMALL.onnx [...] [--tries 20] [--busy 6] [--seconds 0.5]
Each pair of files is timed on the idle machine, and then as often with other processes beside it. A try holds
where it is refused or within 5 % of the idle machine's median; exit code 1 if one does not. The idle machine
must be idle: what it refuses there is counted too. One thread, batch 1.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tersor.export.timing.benchmark import time_files

NEAR = 0.05
WORK = "import numpy as np\na = np.ones((300, 300))\nwhile True: a = a @ a * 1e-3"


def main() -> int:
    """Time every pair idle and busy; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--busy", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.5)
    asked = parser.parse_args()
    wrong = 0
    for base, small in zip(asked.files[::2], asked.files[1::2], strict=True):
        idle = [_ratio(base, small, asked.seconds) for _ in range(asked.tries)]
        known = [ratio for ratio in idle if ratio is not None]
        if not known:
            print(f"{base.name} / {small.name}: refused {len(idle)} times of {len(idle)} while idle")
            return 1
        middle = float(np.median(known))
        with _others(asked.busy):
            busy = [_ratio(base, small, asked.seconds) for _ in range(asked.tries)]
        told = [ratio for ratio in busy if ratio is not None]
        off = [ratio for ratio in told if abs(ratio / middle - 1) > NEAR]
        wrong += len(off)
        print(
            f"{base.name} / {small.name}: idle {middle:.2f}x, {min(known):.2f} to {max(known):.2f}, refused "
            f"{len(idle) - len(known)} of {len(idle)}; beside {asked.busy}: refused {len(busy) - len(told)} "
            f"of {len(busy)}, told {', '.join(f'{ratio:.2f}' for ratio in told) or 'none'}, off {len(off)}",
            flush=True,
        )
    return 1 if wrong else 0


def _ratio(base: Path, small: Path, seconds: float) -> float | None:
    """The speed-up; None where it was refused."""
    rows = time_files([base, small], "cpu", batches=(1,), seconds=seconds).rows
    return rows[1].speedup if rows else None


@contextlib.contextmanager
def _others(count: int) -> Iterator[None]:
    """Busy processes beside this one."""
    processes = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(count)]
    time.sleep(2.0)
    try:
        yield
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
