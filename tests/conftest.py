"""One thread a process, set before torch is imported: tests run beside each other and on small machines."""

import os

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
