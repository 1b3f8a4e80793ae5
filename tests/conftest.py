"""One thread a process, set before torch is imported: tests run beside each other and on small machines."""

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Say why tests marked gpu were left out."""
    if "not gpu" in (config.option.markexpr or ""):
        terminalreporter.write_line(
            "left out: tests marked gpu need an NVIDIA GPU; `make test-gpu` runs them"
        )
