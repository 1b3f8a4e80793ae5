"""Options that several commands share, how results are printed, and what makes an application of commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

DEFAULT_RECIPE, RUNS, DIST = Path("recipes/digits.yaml"), Path("runs"), Path("dist")

RecipeArg = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
FinishedArg = Annotated[Path, typer.Argument(help="A finished run such as runs/digits, or a bundle.")]
RunArg = Annotated[Path, typer.Argument(help="A finished run, such as runs/digits.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME.SETTING=VALUE", help="Override a setting.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Where the data set lies.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of runs and of the stage cache.")]
DistOption = Annotated[Path, typer.Option("--dist", help="Folder of the bundles.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CoderOption = Annotated[
    Literal["huffman", "static", "adaptive", "auto"],
    typer.Option(
        help="static: smaller for many zeros; adaptive: smaller, slower to decode; auto: the smallest."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no words about it.")]
StageOption = Annotated[str | None, typer.Option(help="Whose network; default: the first stage's.")]
LayersOption = Annotated[str, typer.Option(help="Comma-separated patterns; default: all.")]
ImagesOption = Annotated[int, typer.Option(min=1, help="At most this many validation images.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Images at once.")]
BatchesOption = Annotated[
    list[int] | None, typer.Option("--batch", min=1, help="Images at once; may be given several times.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of one computation.")]
ManyThreadsOption = Annotated[
    list[int] | None,
    typer.Option("--threads", min=1, help="Threads of one computation; may be given several times."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Keep times that were taken on a busy machine, marked as such.")
]
ShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3x224x224",
        help="Of an input with free dimensions beside the batch; where there is one, no name is needed.",
    ),
]
ScenarioOption = Annotated[
    Literal["single-stream", "offline", "server"] | None,
    typer.Option(help="As MLPerf names them; server: the rate that --p99-ms allows."),
]
P99Option = Annotated[
    float | None, typer.Option("--p99-ms", help="Server: bound on 99 of 100 latencies, waiting included.")
]
EngineOption = Annotated[
    Literal["tersor", "loadgen"] | None,
    typer.Option(help="What issues a scenario's queries; default: tersor."),
]
QueriesOption = Annotated[
    int | None, typer.Option(min=1, help="Server: queries of each rate tried; default: up to 5,000.")
]
PeerOption = Annotated[
    list[str] | None,
    typer.Option(help="openvino, torch or torch-compile, on one file; PyTorch's need a run or a bundle."),
]
SecondsOption = Annotated[float, typer.Option(min=0.01, help="Timing budget of each file or way.")]


class Panels(TyperGroup):
    """A group whose help lists its commands panel by panel, in the order they were added.

    Rich would draw the same with boxes and take a third of a second to be imported.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                (name, command.get_short_help_str(300))
            )
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def application(help: str, **settings: Any) -> typer.Typer:
    """A group of commands: help at -h and without arguments, tracebacks as Python prints them."""
    return typer.Typer(
        cls=Panels,
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def names(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part for part in text.split(",") if part]


def print_json(content: Any) -> None:
    """Print a result as JSON on stdout."""
    print(json.dumps(content, indent=2, default=str))


def print_table(table: Any) -> None:
    """Print a rich table on stdout."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(table)
