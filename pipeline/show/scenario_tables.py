"""Tables for the terminal: scenarios, and runtimes beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tersor.pipeline.show.units import NOT_MEASURED

TITLES = {
    "single-stream": "single stream: one query at a time; MLPerf's figure is p90, in brackets its range",
    "offline": "offline: all samples at hand, at the best batch; in brackets the range of the runs",
    "server": "server: largest rate whose p99 keeps within the bound; in brackets by other arrivals (95 %)",
}
COLUMNS = {
    "single-stream": ("p50 ms", "p90 ms", "p99 ms", "queries/s", "queries"),
    "offline": ("batch", "samples/s", "of each batch", "samples"),
    "server": ("bound ms", "queries/s", "not at", "p50 ms", "p99 ms", "p99 alone ms", "queries"),
}


def scenario_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a file, runtime and thread count, all of one scenario."""
    scenario = rows[0]["scenario"]
    table = Table(title=TITLES[scenario])
    for column in ("file", "on", "threads", "engine", *COLUMNS[scenario]):
        table.add_column(column, justify="left" if column in ("file", "on", "engine") else "right")
    for row in rows:
        own = {"single-stream": _single_stream, "offline": _offline, "server": _server}[scenario](row)
        table.add_row(_file(row), _provider(row), str(row["threads"]), row["engine"], *own)
    return table


def peer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a runtime on a file; what proves that it ran there is in the last column."""
    table = Table(title="runtimes in turn on the same file; x is against ONNX Runtime, 95 % interval")
    for column in ("file", "on", "batch", "threads", "p50 ms", "p90 ms", "x", "difference", "proof"):
        table.add_column(column, justify="left" if column in ("file", "on", "proof") else "right")
    for row in rows:
        ratio = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
        table.add_row(
            _file(row),
            _provider(row),
            str(row["batch"]),
            str(row["threads"]),
            _figure(row["p50_ms"]),
            _figure(row["p90_ms"]),
            ratio if row["distinguishable"] else f"{ratio} not distinguishable",
            f"{row['max_abs_diff']:.1e} of {row['bound']:.1e}",
            _proof(row["proof"]),
        )
    return table


def _single_stream(row: Mapping[str, Any]) -> list[str]:
    p90 = f"{_figure(row['p90_ms'])} {_range(row['p90_low_ms'], row['p90_high_ms'])}"
    rate, queries = f"{row['queries_per_s']:,.0f}", f"{row['queries']:,}"
    return [_figure(row["p50_ms"]), p90, _figure(row["p99_ms"]), rate, queries]


def _offline(row: Mapping[str, Any]) -> list[str]:
    rate = f"{row['samples_per_s']:,.0f} {_range(row['samples_low_per_s'], row['samples_high_per_s'])}"
    tried = ", ".join(f"{batch}: {samples:,.0f}" for batch, samples in row["tried"].items())
    return [str(row["batch"]), rate, tried, f"{row['samples']:,}"]


def _server(row: Mapping[str, Any]) -> list[str]:
    rate = "none meets it"
    if row["rate_per_s"] is not None:
        rate = f"{_figure(row['rate_per_s'])} {_range(row['rate_low_per_s'], row['rate_high_per_s'])}"
    times = [_figure(row[key]) for key in ("p50_ms", "p99_ms", "service_p99_ms")]
    return [f"{row['bound_ms']:g}", rate, _figure(row["next_rate_per_s"]), *times, f"{row['queries']:,}"]


def _file(row: Mapping[str, Any]) -> str:
    return Path(row["file"]).name + (" (machine busy)" if row.get("busy") else "")


def _provider(row: Mapping[str, Any]) -> str:
    return str(row["provider"]).removesuffix("ExecutionProvider")


def _figure(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4g}"


def _range(low: float, high: float) -> str:
    return f"[{_figure(low)}, {_figure(high)}]"


def _proof(proof: Mapping[str, Any]) -> str:
    """Devices, types, counts: `devices CPU; layers Convolution u8: 19, ...`."""
    return "; ".join(f"{name} {_plain(value)}" for name, value in proof.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
