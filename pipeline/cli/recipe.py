"""`tersor recipe`: what may stand in a recipe, and what one would do."""

from pathlib import Path

import typer

from tersor.pipeline.cli.options import (
    DEFAULT_RECIPE,
    RUNS,
    DataOption,
    JsonOption,
    QuietOption,
    RecipeArg,
    RunsOption,
    SetOption,
    application,
    print_json,
)

app = application("What may stand in a recipe, and what one would do.")


@app.command()
def settings(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Print every setting of a recipe with its default, as Markdown (docs/settings.md)."""
    from tersor.pipeline.recipe.schema import recipe_schema
    from tersor.pipeline.show.settings_page import settings_page

    print_json(recipe_schema()) if as_json else typer.echo(settings_page(), nl=False)


@app.command()
def schema(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML by it."""
    from tersor.pipeline.recipe.schema import recipe_schema

    print_json(recipe_schema())


@app.command()
def plan(
    recipe: RecipeArg = DEFAULT_RECIPE,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the stages of a recipe and what is cached; the same as compress --dry-run."""
    tell_plan(recipe, overrides, data, runs, as_json=as_json)


def tell_plan(
    recipe: Path, overrides: list[str] | None, data: Path | None, runs: Path, *, as_json: bool
) -> None:
    """Print what a run would do."""
    from tersor.pipeline.recipe.read import read_recipe
    from tersor.pipeline.run import plan as plan_of
    from tersor.pipeline.run import plan_text
    from tersor.pipeline.stages.store import Store

    planned = plan_of(read_recipe(recipe, overrides or (), data), Store(runs))
    print_json(planned.to_json()) if as_json else typer.echo(plan_text(planned))
