"""`tersor table`: the tables of the five reports beside ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

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

app = application("The tables of reports R1 to R5 beside ours, of many networks, of operators.")

FastOption = Annotated[bool, typer.Option("--fast", help="The small variant: minutes.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the table as Markdown there.")]


@dataclass(frozen=True)
class Table:
    """A report's table that studies make.

    name: of the command, and of docs/table-<name>.md; help: of the command; title: of the page.
    picture: what the picture beside the page shows; None: it has none.
    """

    name: str
    help: str
    title: str
    picture: str | None = None

    def make(self, data: Path | None, runs: Path, fast: bool, quiet: bool) -> tuple[Any, str]:
        """Rows and Markdown."""
        if self.name.endswith("-bits"):
            from tersor.pipeline.reports import bits

            return bits.make_table(self.name.removesuffix("-bits"), data, runs, fast=fast, quiet=quiet)
        from importlib import import_module

        report = import_module(f"tersor.pipeline.reports.{self.name}")
        return report.make_table(data, runs, fast=fast, quiet=quiet)

    def draw(self, rows: Any, path: Path) -> None:
        """The picture."""
        from tersor.pipeline.reports import bits, r2

        if self.name.endswith("-bits"):
            report = bits.REPORTS[self.name.removesuffix("-bits")]
            bits.draw(rows, f"{report.title}: {self.picture}", path)
        else:
            r2.draw(rows, path)


TABLES = (
    Table(
        "r1",
        "R1's pruning tables: LeNet, all layers and one at a time, without retraining.",
        "Report R1's table",
    ),
    Table(
        "r2",
        "R2's pruning and sharing tables: VGG16-half, no retraining; a picture beside the table.",
        "Report R2's table",
        "accuracy against sparsity",
    ),
    Table(
        "r3", "R3's first grid: 72 networks on Fashion-MNIST, by accuracy and by time.", "Report R3's table"
    ),
    Table(
        "r1-bits",
        "R1's quantization table; --out draws the curves beside it (.png).",
        "Report R1's quantization table",
        "accuracy by bits",
    ),
    Table(
        "r4-bits",
        "R4's quantization tables; --out draws the curves beside them (.png).",
        "Report R4's quantization table",
        "accuracy by bits",
    ),
)


def _command(table: Table) -> Callable[..., None]:
    def command(
        data: DataOption = None,
        runs: RunsOption = RUNS,
        fast: FastOption = False,
        out: OutOption = None,
        as_json: JsonOption = False,
        quiet: QuietOption = False,
    ) -> None:
        """What the table's `help` says."""
        rows, text = table.make(data, runs, fast, quiet)
        if out is not None and table.picture is not None:
            text += _picture(out, table.picture, lambda path: table.draw(rows, path))
        if out is not None:
            _write(out, f"# {table.title}\n\nMade by `make table REPORT={table.name} DATA=...`.\n\n{text}")
        print_json(rows) if as_json else typer.echo(text)

    return command


for _table in TABLES:
    app.command(_table.name, help=_table.help)(_command(_table))


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


@app.command()
def networks(
    which: Annotated[
        list[str] | None, typer.Argument(help="Of the table, torchvision:NAME or timm:NAME; default: all.")
    ] = None,
    sparsity: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Fraction of every layer's channels.")
    ] = 0.5,
    pruner: Annotated[Literal["l1norm", "l2norm", "fpgm", "taylor"], typer.Option(help="Scores.")] = "l1norm",
    pixels: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 64,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize the exported files too.")] = False,
    beside: Annotated[Path | None, typer.Option(help="Another pruner's results, as JSON.")] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prune, rebuild, prove and export many networks with random weights: which come out as asked."""
    from tersor.pipeline.recipe.structure import Structure
    from tersor.pipeline.reports import networks as report

    others = report.read_beside(beside) if beside is not None else {}
    settings = Structure(
        stage="structure", sparsity=sparsity, pruner=pruner, linear=True, allow_less=True, taylor_batches=4
    )
    say = (lambda _: None) if quiet else partial(typer.echo, err=True)
    rows = report.make(which or report.NETWORKS, settings, pixels, say, int8=int8)
    text = report.markdown(rows, settings, others)
    if out is not None:
        _write(out, text)
    print_json(rows) if as_json else typer.echo(text)


@app.command()
def operators(out: OutOption = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """The operators that structural pruning knows, and what each does to channels."""
    from tersor.pipeline.reports.operators import operators_page
    from tersor.pipeline.structure.rules import RULES

    page = operators_page()
    if out is not None:
        _write(out, page)
    print_json(sorted(RULES)) if as_json else typer.echo(page)


def _picture(out: Path, words: str, draw: Callable[[Path], None]) -> str:
    """Draw beside the table that goes to `out`; returns what shows the picture there."""
    from tersor.files import made_folder

    picture = out.with_suffix(".png")
    with made_folder(picture.parent):
        draw(picture)
    return f"\n![{words}]({picture.name})\n"


def _write(out: Path, text: str) -> None:
    from tersor.files import made_folder, write_whole

    with made_folder(out.parent):
        write_whole(out, text)
