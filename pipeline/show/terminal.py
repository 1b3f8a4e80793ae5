"""Tables for the terminal: latency, what a packed file is made of, what verify found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tersor.export.bundle.verify import Check


def latency_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a file, batch size and thread count."""
    table = Table(title="latency, interleaved; x is against the first file, 95 % interval")
    for column in ("file", "provider", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "images/s", "x"):
        table.add_column(column, justify="left" if column in ("file", "provider") else "right")
    for row in rows:
        ratio = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
        numbers = [f"{row[k]:.4g}" for k in ("p50_ms", "p90_ms", "p99_ms")]
        table.add_row(
            Path(row["file"]).name,
            row["provider"].removesuffix("ExecutionProvider"),
            str(row["batch"]),
            str(row["threads"]),
            *numbers,
            f"{row['throughput_per_s']:,.0f}",
            ratio if row["distinguishable"] else f"{ratio} not distinguishable",
        )
    return table


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
