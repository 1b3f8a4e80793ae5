"""Tables for the terminal: latency, what a packed file is made of, what verify found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tersor.export.bundle.verify import Check
from tersor.export.timing.benchmark import Timings
from tersor.export.timing.latency import LatencyRow, ratio_told


def latency_table(rows: Sequence[LatencyRow]) -> Table:
    """One line a file, batch size and thread count; the device's columns only where it was timed."""
    on_device = any(row.device_p50_ms is not None for row in rows)
    table = Table(title="latency alone, and its ratio in turn; x is against the first file, 95 % interval")
    columns = [
        "file",
        "provider",
        "batch",
        "threads",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "images/s",
        "x",
        "in turn",
    ]
    for column in columns + (["device ms", "device x"] if on_device else []):
        table.add_column(column, justify="left" if column in ("file", "provider") else "right")
    for row in rows:
        ratio = ratio_told(row.speedup_low, row.speedup, row.speedup_high, "")
        in_turn = ratio_told(row.in_turn_speedup_low, row.in_turn_speedup, row.in_turn_speedup_high, "")
        device = ratio_told(row.device_speedup_low, row.device_speedup, row.device_speedup_high, "")
        cells = [f"{ms:.4g}" for ms in (row.p50_ms, row.p90_ms, row.p99_ms)]
        if row.device_p50_ms is None:  # doubts are of the ratio that decides
            ratio += _doubts(row)
        else:
            device += _doubts(row)
        cells += [f"{row.throughput_per_s:,.0f}", ratio, in_turn]
        if on_device:
            cells += ["" if row.device_p50_ms is None else f"{row.device_p50_ms:.4g}", device]
        place = row.provider.removesuffix("ExecutionProvider")
        table.add_row(Path(row.file or "").name, place, str(row.batch), str(row.threads), *cells)
    return table


def conditions_told(timed: Timings) -> list[str]:
    """What the clock saw, a sentence for each setting; and what was not measured."""
    lines = []
    for seen in timed.conditions:
        thrown = f", {seen.busy_sittings} thrown away because others ran" if seen.busy_sittings else ""
        lines.append(
            f"batch {seen.batch}, {seen.threads} thread(s): first file against itself within "
            f"{100 * seen.noise_fraction:.1f} %, {seen.sittings} sittings{thrown}; fed {seen.fed}"
        )
    lines += [
        f"{provider.removesuffix('ExecutionProvider')}: TF32 on: fp32 files multiply with 10-bit mantissas"
        for provider in dict.fromkeys(seen.provider for seen in timed.conditions if seen.tf32)
    ]
    lines += [
        f"batch {row.batch}, {Path(row.file or '').name}: no CUDA graph: {row.no_graph}"
        for row in timed.rows
        if row.no_graph is not None
    ]
    lines += [
        f"batch {refused.batch}, {refused.threads} thread(s): not measured: {refused.reason}"
        for refused in timed.refused
    ]
    return lines


def _doubts(row: LatencyRow) -> str:
    doubts = [
        ("not distinguishable", not row.distinguishable and row.decisive[1] != 1.0),
        ("wide", row.narrow is False),
        ("machine busy", row.busy is not None),
    ]
    told = [word for word, holds in doubts if holds]
    return f" {', '.join(told)}" if told else ""


def ledger_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What every byte of a packed file is spent on."""
    table = Table(title="bytes of the packed file")
    columns = (
        "section",
        "shape",
        "form",
        "values",
        "non-zero",
        "bytes",
        "packed",
        "bits each",
        "entropy",
        "code",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("section", "shape", "form") else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in LEDGER_KEYS))
    total = sum(row["packed_bytes"] for row in rows)
    table.add_section()
    table.add_row("total", "", "", "", "", f"{sum(r['original_bytes'] for r in rows):,}", f"{total:,}")
    return table


LEDGER_KEYS = (
    "name",
    "shape",
    "form",
    "distinct",
    "nonzeros",
    "original_bytes",
    "packed_bytes",
    "bits_per_weight",
    "entropy_bits",
    "average_code_bits",
)


def check_table(checks: Sequence[Check]) -> Table:
    """One line a check of verify."""
    table = Table(title="verify")
    for column in ("check", "holds", "got", "wanted", ""):
        table.add_column(column)
    for check in checks:
        table.add_row(
            check.name, "yes" if check.ok else "NO", str(check.got), str(check.wanted), check.detail
        )
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
