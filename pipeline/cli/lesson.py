"""`tersor lesson`: the reports' exercises, repeated on a network of yours."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tersor.pipeline.cli.options import (
    RUNS,
    BatchOption,
    DataOption,
    FinishedArg,
    ImagesOption,
    JsonOption,
    QuietOption,
    RunArg,
    SecondsOption,
    ThreadsOption,
    application,
    names,
    print_json,
)

app = application("Repeat the reports' lessons: shrink, collapse, one matrix product, sparse linear models.")


@app.command()
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
    from tersor.pipeline.stages.run_folder import Run

    found, picture = shrink_run.run_shrink(
        Run(run),
        data,
        layers=names(layers),
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


@app.command()
def collapse(
    run: FinishedArg,
    data: DataOption = None,
    layer: Annotated[str | None, typer.Option(help="A linear layer; default: the last but one.")] = None,
    images: ImagesOption = 2000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's collapse (10 % left without one neuron): a right rebuild, six wrong ones, and the proof."""
    from tersor.pipeline.lessons import collapse as lesson
    from tersor.pipeline.lessons.collapse_run import run_collapse
    from tersor.pipeline.shipping.opened import open_finished

    found, picture = run_collapse(open_finished(run), data, layer=layer, images=images, quiet=quiet)
    if as_json:
        print_json(lesson.as_json(found))
    else:
        typer.echo(lesson.collapse_markdown(found))
        typer.echo(str(picture))


@app.command()
def gemm(
    run: Annotated[
        Path | None, typer.Argument(help="A finished run or a bundle; default: R3's network, fresh weights.")
    ] = None,
    batch: BatchOption = 32,
    threads: ThreadsOption = 1,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R3's convolution as unfold + matmul, timed against Conv2d and ONNX Runtime; outputs must agree."""
    from tersor.pipeline.lessons import gemm as lesson
    from tersor.pipeline.shipping.opened import open_finished

    finished = open_finished(run) if run is not None else None
    found = lesson.run_lesson(finished, batch=batch, threads=threads, seconds=seconds, quiet=quiet)
    print_json(lesson.as_json(found)) if as_json else typer.echo(lesson.lesson_markdown(found))


@app.command("sparse-linear")
def sparse_linear(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = RUNS / "sparse-linear.png",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """R4's exercise: five ways to a sparse linear model, their losses and weights drawn."""
    from tersor.pipeline.lessons.sparse_linear import as_json as plain
    from tersor.pipeline.lessons.sparse_linear import run_all

    found = run_all(out, (lambda _: None) if quiet or as_json else typer.echo)
    print_json({"ways": plain(found), "picture": str(out)}) if as_json else typer.echo(str(out))
