"""One thread a process, set before torch is imported: tests run beside each other and on small machines."""

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    """The machine counts as quiet: tests run beside others, and only those of the clock ask who ran."""
    from tersor.export.timing import benchmark, clock

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MOST_SITTINGS", benchmark.FEWEST_SITTINGS)
        patch.setattr(clock.Signs, "busy", lambda *_, **__: None)
        yield


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Say why tests marked gpu were left out."""
    if "not gpu" in (config.option.markexpr or ""):
        terminalreporter.write_line(
            "left out: tests marked gpu need an NVIDIA GPU; `make test-gpu` runs them"
        )
