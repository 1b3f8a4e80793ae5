"""`tersor table`: the tables of the five reports beside ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.pipeline.cli.options import (
    RUNS,
    DataOption,
    JsonOption,
    QuietOption,
    RunsOption,
    SetOption,
    application,
    print_json,
)

app = application("The tables of reports R1 to R5 beside ours, and of many networks.")

FastOption = Annotated[bool, typer.Option("--fast", help="The small variant: minutes.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the table as Markdown there.")]


@app.command()
def r1(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R1's pruning tables: LeNet, all layers and one at a time, without retraining."""
    from tersor.pipeline.reports import r1 as report

    rows, text = report.make_table(data, runs, fast=fast, quiet=quiet)
    _tell("r1", "Report R1's table", rows, text, out, as_json)


@app.command()
def r2(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R2's pruning and sharing tables: VGG16-half, no retraining; a picture beside the table."""
    from tersor.pipeline.reports import r2 as report

    rows, text = report.make_table(data, runs, fast=fast, quiet=quiet)
    text += _picture(out, "accuracy against sparsity", lambda path: report.draw(rows, path))
    _tell("r2", "Report R2's table", rows, text, out, as_json)


@app.command()
def r3(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's first grid: 72 networks on Fashion-MNIST, by accuracy and by time."""
    from tersor.pipeline.reports import r3 as report

    rows, text = report.make_table(data, runs, fast=fast, quiet=quiet)
    _tell("r3", "Report R3's table", rows, text, out, as_json)


@app.command()
def r5(
    data: Annotated[Path, typer.Option("--data", help="Folder with MNIST as torchvision lays it out.")],
    runs: RunsOption = RUNS,
    overrides: SetOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R5's table: MNIST, NNI pruners, time in torch and ONNX Runtime."""
    from tersor.pipeline.reports import r5 as report

    rows = report.make_table(data, runs, overrides or [], out, quiet=quiet)
    print_json(rows) if as_json else report.print_table(rows)


@app.command("r1-bits")
def r1_bits(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R1's quantization table; --out draws the curves beside it (.png)."""
    _bits("r1", data, runs, fast, out, as_json, quiet)


@app.command("r4-bits")
def r4_bits(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R4's quantization tables; --out draws the curves beside them (.png)."""
    _bits("r4", data, runs, fast, out, as_json, quiet)


@app.command()
def networks(
    which: Annotated[list[str] | None, typer.Argument(help="Networks; default: all of the table.")] = None,
    pixels: Annotated[int, typer.Option(min=32, help="Height and width of ImageNet networks' images.")] = 64,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prune, rebuild, prove, export and time many networks with random weights."""
    from tersor.pipeline.reports import networks as report

    say = (lambda _: None) if as_json or quiet else typer.echo
    rows = report.make(which or list(report.NETWORKS), pixels, say)
    text = report.markdown(rows, pixels)
    if out is not None:
        _write(out, text)
    print_json(rows) if as_json else typer.echo(text)


def _bits(
    name: str, data: Path | None, runs: Path, fast: bool, out: Path | None, as_json: bool, quiet: bool
) -> None:
    from tersor.pipeline.reports import bits as report

    rows, text = report.make_table(name, data, runs, fast=fast, quiet=quiet)
    title = f"{report.REPORTS[name].title}: accuracy by bits"
    text += _picture(out, "accuracy by bits", lambda path: report.draw(rows, title, path))
    _tell(f"{name}-bits", f"Report {name.upper()}'s quantization table", rows, text, out, as_json)


def _picture(out: Path | None, words: str, draw: Callable[[Path], None]) -> str:
    """Draw beside the table that goes to `out`; returns what shows the picture there."""
    from tersor.files import made_folder

    if out is None:
        return ""
    picture = out.with_suffix(".png")
    with made_folder(picture.parent):
        draw(picture)
    return f"\n![{words}]({picture.name})\n"


def _tell(name: str, title: str, rows: Any, text: str, out: Path | None, as_json: bool) -> None:
    if out is not None:
        _write(out, f"# {title}\n\nMade by `make table REPORT={name} DATA=...`.\n\n{text}")
    print_json(rows) if as_json else typer.echo(text)


def _write(out: Path, text: str) -> None:
    from tersor.files import made_folder, write_whole

    with made_folder(out.parent):
        write_whole(out, text)
