"""The commands. Heavy imports wait until a command needs them, so that --help answers at once."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersor.errors import FormatError, TersorError, Unavailable
from tersor.pipeline.cli import lessons as cli_lessons
from tersor.pipeline.cli import structure as cli_structure
from tersor.pipeline.cli import study as cli_study
from tersor.pipeline.cli.options import (
    CoderOption,
    DataOption,
    DistOption,
    JsonOption,
    QuietOption,
    RecipeArg,
    RunsOption,
    SetOption,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from tersor.pipeline.recipe.recipe import Recipe

app = typer.Typer(
    name="tersor",
    help="Make a PyTorch CNN small and fast, prove that it still works, ship it as ONNX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DEFAULT_RECIPE, DIST = Path("recipes/digits.yaml"), Path("dist")


@app.command()
def compress(
    recipe: RecipeArg = DEFAULT_RECIPE,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the stages and what is cached.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe: train, prune, tune, share, pack. Finished stages are reused."""
    from tersor.pipeline import run
    from tersor.pipeline.show import report
    from tersor.pipeline.stages.run_folder import stage_metrics
    from tersor.pipeline.stages.store import Store

    resolved, store = _recipe(recipe, overrides, data), Store(runs)
    if dry_run:
        typer.echo(run.plan(resolved, store))
        return
    folder = run.compress(resolved, store, quiet=quiet)
    stages = stage_metrics(folder)
    if as_json:
        print_json({"run": str(folder), "stages": stages})
    else:
        print_table(report.stage_table(stages))
        typer.echo(f"run: {folder}   next: {_next('deploy', recipe, overrides, data, runs)}")


def _next(
    command: str,
    what: Path,
    overrides: list[str] | None = None,
    data: Path | None = None,
    runs: Path = Path("runs"),
) -> str:
    """The command line that goes on with the same settings, from a recipe or with a bundle."""
    words = ["tersor", command, str(what), *(["--data", str(data)] if data else [])]
    words += [word for override in overrides or [] for word in ("--set", override)]
    return shlex.join(words + (["--runs", str(runs)] if runs != Path("runs") else []))


@app.command()
def deploy(
    recipe: RecipeArg = DEFAULT_RECIPE,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    dist: DistOption = DIST,
    require: Annotated[
        list[str] | None, typer.Option(help="Fail with exit code 4 if this target cannot be timed.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a finished run into a checked bundle: ONNX files, parity, accuracy, timing, report."""
    from tersor.pipeline.deploy import deploy as make_bundle
    from tersor.pipeline.show import report
    from tersor.pipeline.stages.store import Store

    resolved = _recipe(recipe, overrides, data)
    folder, manifest = make_bundle(resolved, Store(runs), dist, require=require or [], quiet=quiet)
    if as_json:
        print_json(manifest)
    else:
        print_table(report.before_after_table(manifest))
        check = _next("verify", folder, data=data)
        typer.echo(f"bundle: {folder}   picture: {folder / 'report.html'}   re-check: {check}")


@app.command()
def benchmark(
    models: Annotated[list[Path], typer.Argument(help=".onnx or .tsr files; the first is the baseline.")],
    target: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Thread counts.")] = None,
    seconds: Annotated[float, typer.Option(help="Timing budget of a file at a batch size.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Time ONNX files against the first one, interleaved in one process."""
    from tersor.pipeline.show.terminal import latency_table, time_files

    rows = time_files(models, target, tuple(batch or (1, 64)), tuple(threads or (1,)), seconds)
    if as_json:
        print_json(rows)
    else:
        print_table(latency_table(rows))


@app.command()
def pack(onnx: Path, tsr: Path, coder: CoderOption = "huffman") -> None:
    """Pack any ONNX file, losslessly."""
    from tersor.export.codec.pack import pack as pack_file

    report = pack_file(onnx, tsr, coder=coder)
    ratio = report.original_bytes / report.packed_bytes
    typer.echo(f"{report.original_bytes:,} -> {report.packed_bytes:,} bytes ({ratio:.2f}x)")


@app.command()
def unpack(tsr: Path, onnx: Path) -> None:
    """Give back the packed file, byte for byte."""
    from tersor.export.codec.pack import unpack as unpack_file

    with _reading(tsr):
        unpack_file(tsr, onnx)
    typer.echo(f"{onnx}: {onnx.stat().st_size:,} bytes")


@app.command()
def inspect(tsr: Path, as_json: JsonOption = False) -> None:
    """Show what every byte of a packed file is spent on."""
    from tersor.export.codec.ledger import inspect as ledger_of
    from tersor.pipeline.show.terminal import ledger_table

    with _reading(tsr):
        rows = [dict(vars(row)) for row in ledger_of(tsr)]
    print_json(rows) if as_json else print_table(ledger_table(rows))


@app.command()
def verify(bundle: Path, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Re-check a bundle from its files: hashes, ratio, parity, and accuracy where the data are at hand."""
    from tersor.export.bundle.verify import raise_if_broken
    from tersor.pipeline.shipping.recheck import recheck
    from tersor.pipeline.show.terminal import check_table

    checks = recheck(bundle, data)
    if as_json:
        print_json([vars(c) for c in checks])
    else:
        print_table(check_table(checks))
    if not any("accuracy" in check.name for check in checks):
        print(
            "accuracy not checked: give the folder of the data with --data (DATA= in make)", file=sys.stderr
        )
    raise_if_broken(checks)


@app.command()
def report(
    bundle: Path,
    picture: Annotated[Path | None, typer.Option(help="Write the trade as a PNG (1200x600) too.")] = None,
) -> None:
    """Write report.html of a bundle anew from its manifest."""
    from tersor.export.bundle.folder import read_manifest
    from tersor.pipeline.deploy import rewrite_report

    typer.echo(str(rewrite_report(bundle)))
    if picture is not None:
        from tersor.pipeline.show.report import write_picture

        manifest = read_manifest(bundle)
        write_picture(picture, manifest, manifest.get("stages", []))
        typer.echo(str(picture))


@app.command()
def settings() -> None:
    """Print every setting of a recipe with its default, as Markdown (docs/settings.md)."""
    from tersor.pipeline.recipe.settings_page import settings_page

    typer.echo(settings_page(), nl=False)


cli_structure.register(app)
cli_study.register(app)
cli_lessons.register(app)


def main() -> None:
    """Run the commands; every failure becomes one paragraph on stderr and an exit code."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer swallows an interrupt and gives its exit code back
            raise KeyboardInterrupt
        sys.exit(code)
    except TersorError as error:
        _fail(str(error), error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("Interrupted. Run the same command again to go on where it stopped.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        _unforeseen(error)


def _unforeseen(error: Exception) -> None:
    """Usage errors are click's own; a refusal by the system is told as such; the rest is our bug."""
    if hasattr(error, "format_message"):  # click.ClickException
        text, command = error.format_message(), getattr(getattr(error, "ctx", None), "command_path", "tersor")
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(text)
            sys.exit(2)
        _fail(f"{text if text.endswith('?') else text.rstrip('.') + '.'} Try `{command} --help`.", 2)
    if isinstance(error, ImportError) and not (error.name or "").startswith("tersor"):
        missing = Unavailable(
            "a library that this command needs is not installed",
            got=error,
            todo="pip install 'tersor[cpu,compress]'",
        )
        _fail(str(missing), missing.exit_code)
    if isinstance(error, OSError):
        from tersor.files import writing

        try:
            with writing(Path(error.filename or ".")):
                raise error
        except TersorError as told:
            _fail(str(told), told.exit_code)
        except OSError:
            pass
    if os.environ.get("TERSOR_DEBUG"):
        raise error
    _fail(f"{type(error).__name__}: {error}. This is a bug in tersor; TERSOR_DEBUG=1 shows where.", 1)


def _fail(text: str, code: int) -> None:
    print(f"tersor: {text}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Let errors about a packed file's contents name the file."""
    try:
        yield
    except FormatError as e:
        raise FormatError(e.what, got=e.got, wanted=e.wanted, where=f"{path}, {e.where}", todo=e.todo) from e


def _recipe(path: Path, overrides: list[str] | None, data: Path | None) -> "Recipe":
    from tersor.pipeline.recipe.read import read_recipe

    return read_recipe(path, overrides or (), data)
