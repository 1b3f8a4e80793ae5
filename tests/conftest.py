"""One thread a process, set before torch is imported: tests run beside each other and on small machines."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine counts as quiet: tests run beside others, and only those of the clock ask who ran."""
    if "export/timing" in request.node.nodeid:
        return
    from tersor.export.timing import benchmark, clock

    monkeypatch.setattr(benchmark, "MOST_SITTINGS", benchmark.FEWEST_SITTINGS)

    monkeypatch.setattr(clock.Signs, "busy", lambda *_, **__: None)
