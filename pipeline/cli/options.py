"""Options that several commands share, and how results are printed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RecipeArg = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME.SETTING=VALUE", help="Override a setting.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Where the data set lies.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of runs and of the stage cache.")]
DistOption = Annotated[Path, typer.Option("--dist", help="Folder of the bundles.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CoderOption = Annotated[
    Literal["huffman", "adaptive", "auto"],
    typer.Option(help="adaptive: smaller, slower to decode; auto: the smaller one for each tensor."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def print_json(content: Any) -> None:
    """Print a result as JSON on stdout."""
    print(json.dumps(content, indent=2, default=str))


def print_table(table: Any) -> None:
    """Print a rich table on stdout."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(table)
