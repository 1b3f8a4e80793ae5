"""`tersor kept`: results that are kept to be measured again without training."""

from pathlib import Path
from typing import Annotated

import typer

from tersor.pipeline.cli.options import DataOption, JsonOption, QuietOption, RunArg, application, print_json

app = application("Keep a run's packed file and figures; measure kept results again.")

ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the kept results.")]


@app.command()
def add(
    run: RunArg,
    data: DataOption = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Keep a run's packed file, recipe and figures, to be re-measured without training."""
    from tersor.pipeline.shipping.kept import keep

    folder = keep(run, results, data)
    print_json({"kept": str(folder)}) if as_json else typer.echo(str(folder))


@app.command()
def check(
    data: DataOption = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure bytes and accuracy of all kept results again."""
    from tersor.export.bundle.verify import raise_if_broken
    from tersor.pipeline.shipping.kept import recheck_all, table

    checked = recheck_all(results, data)
    if as_json:
        print_json([{**result, "checks": [vars(c) for c in checks]} for result, checks in checked])
    else:
        typer.echo(table(checked))
    raise_if_broken([check for _, checks in checked for check in checks])
