"""Commands that repeat the reports' lessons on a network of yours, and the table of what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from tersor.pipeline.cli_options import DataOption, JsonOption, QuietOption, print_json, print_table

RunArg = Annotated[Path, typer.Argument(help="A finished run, such as runs/digits.")]
StageOption = Annotated[str | None, typer.Option(help="Whose network; default: the first stage's.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(influence)


def influence(
    run: RunArg,
    data: DataOption = None,
    layers: Annotated[str, typer.Option(help="Comma-separated patterns; default: all.")] = "",
    stage: StageOption = None,
    images: Annotated[int, typer.Option(min=1, help="At most this many validation images.")] = 10_000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's heuristic: a channel's influence predicted from its parameters, and measured by removing it."""
    from tersor.pipeline import influence_run

    patterns = [layer for layer in layers.split(",") if layer]
    found, picture = influence_run.run_influence(
        run, data, layers=patterns, stage=stage, images=images, quiet=quiet
    )
    if as_json:
        print_json(influence_run.as_json(found))
        return
    print_table(influence_run.influence_table(found))
    for layer, why in found.left_out.items():
        typer.echo(f"left out: {layer}, {why}")
    typer.echo(str(picture))
