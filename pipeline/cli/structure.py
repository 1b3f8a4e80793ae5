"""The commands around structural pruning: the staircase of a machine, the table of networks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersor.errors import BadInput
from tersor.pipeline.cli.options import DataOption, JsonOption, QuietOption, RunsOption, print_json

if TYPE_CHECKING:
    from tersor.models.network import Network

RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command()(profile)
    app.command("table-structure")(table_structure)


def profile(
    what: Annotated[str, typer.Argument(help="A recipe, a finished run's folder, or a network of the zoo.")],
    data: DataOption = None,
    shape: Annotated[str, typer.Option(help="Of an image, for networks of the zoo.")] = "3,32,32",
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images a run.")] = 1,
    int8: Annotated[bool, typer.Option("--int8", help="Integer layers in place of fp32.")] = False,
    step: Annotated[int, typer.Option(min=1, help="Widths tried are multiples of this.")] = 4,
    runs: RunsOption = RUNS,
    out: Annotated[Path | None, typer.Option(help="The picture; default: in the folder of profiles.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Latency against width of a network's layers on this machine: the staircase."""
    from tersor.files import writing
    from tersor.pipeline.lessons import staircase_picture
    from tersor.pipeline.stages.store import Store
    from tersor.pipeline.structure import staircase
    from tersor.progress import Reporter

    network, name = _network(what, data, shape)
    profiles = Store(runs).profiles
    stairs = staircase.Staircase(profiles, staircase.Setting(threads, batch, int8))
    with Reporter([("timing layers", 1.0)], quiet=quiet or as_json) as reporter, reporter.step() as tell:
        rows = staircase.sweep(network, stairs, step, lambda done: tell(done, "one layer at a time"))
        tell(1.0, f"{len(rows)} distinct layers")
    precision, plural = ("int8" if int8 else "fp32"), ("" if threads == 1 else "s")
    setting = f"{precision}, {threads} thread{plural}, batch {batch}"
    path = out or profiles / f"{name}-{precision}-t{threads}-b{batch}.png"
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"{name}: {setting}, ONNX Runtime {stairs.machine['onnxruntime']}, {stairs.machine['model']}"
        staircase_picture.draw(rows, title, path)
    if as_json:
        print_json({"machine": stairs.machine, "layers": rows, "picture": str(path)})
    else:
        typer.echo(f"{staircase_picture.table(rows)}\n\npicture: {path}   measurements: {stairs.path}")


def table_structure(
    networks: Annotated[list[str] | None, typer.Argument(help="Default: all of the table.")] = None,
    pixels: Annotated[int, typer.Option(min=32, help="Height and width of ImageNet networks' images.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Prune, rebuild, prove, export and time many networks with random weights."""
    from tersor.files import writing
    from tersor.pipeline.reports import networks as table

    rows = table.make(networks or list(table.NETWORKS), pixels, typer.echo if not as_json else lambda _: None)
    if as_json:
        print_json(rows)
        return
    text = table.markdown(rows, pixels)
    if out:
        with writing(out.parent):
            out.write_text(text, encoding="utf-8")
    typer.echo(text)


def _network(what: str, data: Path | None, shape: str) -> tuple["Network", str]:
    """The network to profile and its name; only its shapes matter.

    Raises:
        BadInput: neither a recipe, a run nor a network of the zoo; a shape that is none.
    """
    from tersor.models import network
    from tersor.models.preprocessing import Preprocessing
    from tersor.models.zoo import NETWORKS

    path = Path(what)
    if what in NETWORKS:
        parts = shape.split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
            raise BadInput("the shape is none", got=shape, wanted="channels,height,width", where="--shape")
        channels, height, width = (int(part) for part in parts)
        classes = tuple(str(i) for i in range(10))
        plain = Preprocessing(255.0, (0.5,) * channels, (0.5,) * channels)
        return network.create(what, {}, (channels, height, width), classes, plain), what
    if path.suffix in (".yaml", ".yml"):
        from tersor.pipeline.data.load import load_data
        from tersor.pipeline.recipe.read import read_recipe
        from tersor.pipeline.stages.table import fresh_network

        recipe = read_recipe(path, (), data)
        return fresh_network(recipe, load_data(**recipe.data.model_dump(), seed=recipe.seed)), recipe.name
    if (path / "network.safetensors").is_file():
        return network.load(path / "network.safetensors"), path.name
    raise BadInput(
        "there is nothing to profile",
        got=what,
        wanted=f"a recipe (.yaml), the folder of a finished run, or one of {', '.join(NETWORKS)}",
        where="argument WHAT",
    )
