"""`tersor look`: what a finished run or a bundle shows when it is looked at."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tersor.pipeline.cli.options import (
    BatchOption,
    DataOption,
    FinishedArg,
    ImagesOption,
    JsonOption,
    LayersOption,
    QuietOption,
    StageOption,
    application,
    names,
    print_json,
    print_table,
)

app = application("Look at a finished run or a bundle: cost, weights, sensitivity, predictions ...")

OutOption = Annotated[Path | None, typer.Option(help="Where it goes; default: the run's own folder.")]


@app.command()
def cost(
    run: FinishedArg,
    batch: BatchOption = 1,
    bits: Annotated[int, typer.Option(help="Bits per weight of the compressed network.")] = 32,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Parameters, MACs, FLOPs and memory, layer by layer, before and after."""
    from tersor.pipeline.lessons import cost_table
    from tersor.pipeline.shipping.opened import open_finished

    before, after = cost_table.run_costs(open_finished(run), batch=batch, bits=bits)
    if as_json:
        print_json(cost_table.as_json(before, after))
    else:
        typer.echo(cost_table.cost_markdown(before, after))


@app.command()
def weights(
    run: FinishedArg, out: OutOption = None, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Histograms of every layer's weights before and after they were shared or rounded: a PNG."""
    from tersor.pipeline.lessons.weights_picture import draw_run
    from tersor.pipeline.shipping.opened import open_finished

    path = draw_run(open_finished(run), out)
    print_json({"picture": str(path)}) if as_json else typer.echo(str(path))


@app.command()
def sensitivity(
    run: FinishedArg,
    data: DataOption = None,
    method: Annotated[
        Literal["sparsity", "bits", "sharing"], typer.Option(help="bits: a grid; sharing: k-means.")
    ] = "sparsity",
    levels: Annotated[str, typer.Option(help="Comma-separated fractions, or bits.")] = "",
    stage: StageOption = None,
    images: ImagesOption = 5000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Accuracy with one layer at a time compressed, without retraining: a page, a CSV."""
    from tersor.pipeline.lessons.sensitivity_run import run_sensitivity
    from tersor.pipeline.shipping.opened import open_finished

    page, points = run_sensitivity(
        open_finished(run), data, method=method, levels=levels, stage=stage, limit=images, quiet=quiet
    )
    print_json([vars(point) for point in points]) if as_json else typer.echo(str(page))


@app.command()
def predictions(
    run: FinishedArg,
    data: DataOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Confusion, accuracy by class and the most damaged test images, before and after: a page, a CSV."""
    from tersor.pipeline.lessons.predictions import write_predictions
    from tersor.pipeline.shipping.opened import open_finished

    page = write_predictions(open_finished(run), data, out)
    print_json({"page": str(page)}) if as_json else typer.echo(str(page))


@app.command()
def influence(
    run: FinishedArg,
    data: DataOption = None,
    layers: LayersOption = "",
    stage: StageOption = None,
    images: ImagesOption = 10_000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's heuristic: a channel's influence predicted from its parameters, and measured by removing it."""
    from tersor.pipeline.lessons import influence_run
    from tersor.pipeline.shipping.opened import open_finished

    found, picture = influence_run.run_influence(
        open_finished(run), data, layers=names(layers), stage=stage, images=images, quiet=quiet
    )
    if as_json:
        print_json(influence_run.as_json(found))
        return
    print_table(influence_run.influence_table(found))
    for layer, why in found.left_out.items():
        typer.echo(f"left out: {layer}, {why}")
    typer.echo(str(picture))


@app.command()
def channels(
    run: FinishedArg,
    stage: StageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Which channels go together, and which must stay and why: what `structure` can prune."""
    from tersor.pipeline.lessons import channels_table
    from tersor.pipeline.shipping.opened import open_finished

    spaces = channels_table.spaces_of(open_finished(run).network(stage or 0))
    if as_json:
        print_json([vars(space) for space in spaces])
    else:
        typer.echo(channels_table.sentences(spaces))
