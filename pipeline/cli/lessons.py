"""Commands that repeat the reports' lessons on a network of yours, and the table of what it costs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tersor.pipeline.cli.options import DataOption, JsonOption, QuietOption, print_json, print_table

RunArg = Annotated[Path, typer.Argument(help="A finished run, such as runs/digits.")]
StageOption = Annotated[str | None, typer.Option(help="Whose network; default: the first stage's.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(cost)
    app.command()(influence)
    app.command()(shrink)
    app.command()(collapse)
    app.command("gemm-lesson")(gemm_lesson)


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
    from tersor.pipeline.lessons import influence_run

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


def shrink(
    run: RunArg,
    data: DataOption = None,
    layers: Annotated[str, typer.Option(help="Comma-separated, in order; default: all.")] = "",
    widths: Annotated[
        list[str] | None, typer.Option(metavar="LAYER=N,N,...", help="Visit these; default: every width.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of fine-tuning after each removal.")] = 5,
    learning_rate: Annotated[float, typer.Option(help="Of the fine-tuning (Adam).")] = 1e-3,
    max_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Validation accuracy a step may cost, a fraction.")
    ] = 0.01,
    against: Annotated[
        Literal["step", "start"], typer.Option(help="A drop from the step before (R3), or from the start.")
    ] = "step",
    by: Annotated[
        Literal["squares", "l1", "l2", "taylor"], typer.Option(help="Prediction of influence.")
    ] = "squares",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's pruning: channels out one by one, fine-tuned after each, until one costs too much. Resumable."""
    from tersor.pipeline.lessons import shrink_run

    found, picture = shrink_run.run_shrink(
        run,
        data,
        layers=[name for name in layers.split(",") if name],
        widths=widths or [],
        settings={"max_drop": max_drop, "against": against, "by": by},
        tuning={"epochs": epochs, "learning_rate": learning_rate},
        quiet=quiet,
    )
    if as_json:
        print_json(shrink_run.as_json(found))
    else:
        typer.echo(shrink_run.shrink_markdown(found))
        typer.echo(str(picture))


def collapse(
    run: RunArg,
    data: DataOption = None,
    layer: Annotated[str | None, typer.Option(help="A linear layer; default: the last but one.")] = None,
    images: Annotated[int, typer.Option(min=1, help="At most this many validation images.")] = 2000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's collapse (10 % left without one neuron): a right rebuild, six wrong ones, and the proof."""
    from tersor.pipeline.lessons import collapse as lesson
    from tersor.pipeline.lessons.collapse_run import run_collapse

    found, picture = run_collapse(run, data, layer=layer, images=images, quiet=quiet)
    if as_json:
        print_json(lesson.as_json(found))
    else:
        typer.echo(lesson.collapse_markdown(found))
        typer.echo(str(picture))


def gemm_lesson(
    run: Annotated[
        Path | None, typer.Argument(help="A finished run; default: R3's chosen network, fresh weights.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch and ONNX Runtime.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="Timing budget of each way.")] = 2.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's convolution as unfold + matmul, timed against Conv2d and ONNX Runtime; outputs must agree."""
    from tersor.pipeline.lessons import gemm as lesson

    found = lesson.run_lesson(run, batch=batch, threads=threads, seconds=seconds, quiet=quiet)
    print_json(lesson.as_json(found)) if as_json else typer.echo(lesson.lesson_markdown(found))


def cost(
    run: RunArg,
    batch: Annotated[int, typer.Option(help="Images at once, for the memory figures.")] = 1,
    bits: Annotated[int, typer.Option(help="Bits per weight of the compressed network.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Parameters, MACs, FLOPs and memory of a run's network, layer by layer, before and after."""
    from tersor.pipeline.lessons import cost_table

    before, after = cost_table.run_costs(run, batch=batch, bits=bits)
    print_json(cost_table.as_json(before, after)) if as_json else typer.echo(
        cost_table.cost_markdown(before, after)
    )
