"""Here the clock is what is tested: it asks who ran, and goes on until its intervals are narrow."""

import pytest

from tersor.export.timing import benchmark, clock

BUSY, MOST_SITTINGS = clock.Signs.busy, benchmark.MOST_SITTINGS


@pytest.fixture(autouse=True)
def _asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock.Signs, "busy", BUSY)
    monkeypatch.setattr(benchmark, "MOST_SITTINGS", MOST_SITTINGS)
