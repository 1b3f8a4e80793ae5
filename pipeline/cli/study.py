"""The commands for studying compression: sweeps, sensitivity, predictions, the reports' tables."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tersor.pipeline.cli.options import (
    DataOption,
    JsonOption,
    QuietOption,
    RecipeArg,
    RunsOption,
    SetOption,
    print_json,
    print_table,
)

RUNS, RESULTS = Path("runs"), Path("results")
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the kept results.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(study)
    app.command()(sensitivity)
    app.command()(predictions)
    app.command("table-r1")(table_r1)
    app.command("table-r2")(table_r2)
    app.command("table-r3")(table_r3)
    app.command("table-r5")(table_r5)
    app.command("table-bits")(table_bits)
    app.command()(keep)
    app.command("verify-results")(verify_results)
    app.command("sparse-linear")(sparse_linear)
    app.command()(weights)


def sensitivity(
    recipe: RecipeArg,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = RUNS,
    method: Annotated[
        Literal["sparsity", "bits", "sharing"], typer.Option(help="bits: a grid; sharing: k-means.")
    ] = "sparsity",
    levels: Annotated[str, typer.Option(help="Comma-separated fractions, or bits.")] = "",
    stage: Annotated[str | None, typer.Option(help="Whose network; default: the first stage's.")] = None,
    images: Annotated[int, typer.Option(help="At most this many validation images.")] = 5000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Accuracy of a run's network with one layer at a time compressed, without retraining."""
    from tersor.pipeline.lessons.sensitivity_run import run_sensitivity
    from tersor.pipeline.recipe.read import read_recipe

    page, points = run_sensitivity(
        read_recipe(recipe, overrides or (), data),
        runs,
        method=method,
        levels=levels,
        stage=stage,
        limit=images,
        quiet=quiet,
    )
    print_json([vars(point) for point in points]) if as_json else typer.echo(str(page))


def predictions(
    bundle: Annotated[Path, typer.Argument(help="A bundle, such as dist/digits.")],
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/<name>/predictions.")] = None,
) -> None:
    """Confusion, per-class accuracy and the most damaged test images, before and after."""
    from tersor.errors import BadInput
    from tersor.export.bundle.folder import read_manifest
    from tersor.pipeline.lessons.predictions import write_predictions
    from tersor.pipeline.shipping.recheck import bundle_data

    manifest = read_manifest(bundle)
    found = bundle_data(manifest, data)
    if found is None:
        raise BadInput("the bundle's data are needed", where=bundle, todo="Say where they are with --data")
    folder = out or RUNS / str(manifest["name"]) / "predictions"
    typer.echo(str(write_predictions(folder, bundle=bundle, data=found)))


def study(
    study_file: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: Annotated[bool, typer.Option("--fast", help="The study's small variant: minutes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run more than 10,000 points.")] = False,
    engine: Annotated[str | None, typer.Option(help="local or ray, instead of the study's.")] = None,
    workers: Annotated[int | None, typer.Option(help="How many trials at once.")] = None,
    tracking: Annotated[str | None, typer.Option(help="MLflow tracking URI, or sqlite.")] = None,
    or_local: Annotated[
        bool, typer.Option("--or-local", help="Go on here when the cluster or tracking server is not there.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a study: many recipes that differ in a few settings, each once, resumable."""
    from tersor.errors import TersorError
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.results import top_tables
    from tersor.pipeline.study.run import run_study

    changes = {"engine": engine, "workers": workers, "tracking": tracking, "or_local": or_local or None}
    asked = read_study(study_file, fast=fast, changes={k: v for k, v in changes.items() if v is not None})
    folder, records = run_study(asked, runs, data, yes=yes, quiet=quiet)
    failed = [record for record in records if record["state"] == "failed"]
    if as_json:
        print_json({"study": str(folder), "trials": records})
    else:
        for table in top_tables(asked, records):
            print_table(table)
        typer.echo(f"{len(records)} trials, {len(failed)} failed; page: {folder / 'report.html'}")
    for record in failed[:3]:
        typer.echo(f"tersor: trial {record['trial']} {record['settings']}: {record['error']}", err=True)
    if len(failed) == len(records):
        raise TersorError(
            "all trials failed",
            got=failed[0]["error"],
            where=folder,
            todo="Mend the study or its recipe and run it again",
        )


def table_r5(
    data: Annotated[Path, typer.Option("--data", help="Folder with MNIST as torchvision lays it out.")],
    runs: RunsOption = RUNS,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the table as Markdown too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report R5's table beside ours: MNIST, NNI pruners, time in torch and ONNX Runtime."""
    from tersor.pipeline.reports import r5

    rows = r5.make_table(data, runs, overrides or [], out)
    print_json(rows) if as_json else r5.print_table(rows)


FastOption = Annotated[bool, typer.Option("--fast", help="The small variant: minutes.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the table as Markdown there.")]


def table_r1(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report R1's pruning tables beside ours: LeNet, all layers and one at a time, without retraining."""
    from tersor.pipeline.reports import r1

    rows, text = r1.make_table(data, runs, fast=fast, quiet=quiet)
    _tell_table("R1", rows, text, out, as_json)


def table_r2(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report R2's pruning and sharing beside ours: VGG16-half, no retraining; a picture beside the table."""
    from tersor.files import writing
    from tersor.pipeline.reports import r2

    rows, text = r2.make_table(data, runs, fast=fast, quiet=quiet)
    if out is not None:
        with writing(out):  # a full disk or a folder that is not there is told in words
            r2.draw(rows, out.with_suffix(".png"))
        text += f"\n![accuracy against sparsity]({out.with_suffix('.png').name})\n"
    _tell_table("R2", rows, text, out, as_json)


def table_r3(
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report R3's first grid beside ours: 72 networks on Fashion-MNIST, by accuracy and by time."""
    from tersor.pipeline.reports import r3

    rows, text = r3.make_table(data, runs, fast=fast, quiet=quiet)
    _tell_table("R3", rows, text, out, as_json)


def table_bits(
    report: Annotated[str, typer.Argument(help="r1 or r4.")],
    data: DataOption = None,
    runs: RunsOption = RUNS,
    fast: FastOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report R1's or R4's quantization table beside ours; --out draws the curves beside it (.png)."""
    from tersor.pipeline.reports import bits

    rows, text = bits.make_table(report, data, runs, fast=fast, quiet=quiet)
    if out is not None:
        from tersor.files import writing

        picture = out.with_suffix(".png")
        with writing(picture):
            bits.draw(rows, f"{bits.REPORTS[report].title}: accuracy by bits", picture)
        text += f"\n![accuracy by bits]({picture.name})\n"
    _tell_table(report, rows, text, out, as_json, "-bits", "quantization table")


def _tell_table(
    report: str,
    rows: list[dict[str, Any]],
    text: str,
    out: Path | None,
    as_json: bool,
    target: str = "",
    what: str = "table",
) -> None:
    from tersor.files import writing

    if out is not None:
        command = f"make table-{report.lower()}{target} DATA=..."
        with writing(out):
            out.write_text(
                f"# Report {report.upper()}'s {what}\n\nMade by `{command}`.\n\n{text}", encoding="utf-8"
            )
    print_json(rows) if as_json else typer.echo(text)


def keep(
    run: Annotated[Path, typer.Argument(help="A finished run, such as runs/mnist-deep.")],
    data: DataOption = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Keep a run's packed file, recipe and figures in results/, to be re-measured without training."""
    from tersor.pipeline.shipping.kept import keep as keep_run

    typer.echo(str(keep_run(run, results, data)))


def verify_results(data: DataOption = None, results: ResultsOption = RESULTS) -> None:
    """Measure bytes and accuracy of all kept results again."""
    from tersor.export.bundle.verify import raise_if_broken
    from tersor.pipeline.shipping.kept import recheck_all, table

    checked = recheck_all(results, data)
    typer.echo(table(checked))
    raise_if_broken([check for _, checks in checked for check in checks])


def sparse_linear(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = RUNS / "sparse-linear.png",
) -> None:
    """R4's exercise: five ways to a sparse linear model, their losses and weights drawn."""
    from tersor.pipeline.lessons.sparse_linear import run_all

    run_all(out, typer.echo)
    typer.echo(str(out))


def weights(
    run: Annotated[Path, typer.Argument(help="A finished run, such as runs/digits.")],
    out: Annotated[Path | None, typer.Option(help="The picture; default: RUN/weights.png.")] = None,
) -> None:
    """Histograms of every layer's weights before and after they were shared or rounded."""
    from tersor.pipeline.lessons.weights_picture import draw_run

    path = out or run / "weights.png"
    draw_run(run, path)
    typer.echo(str(path))
