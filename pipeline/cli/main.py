"""The commands of every day; the others stand in groups: look, lesson, table, kept, recipe.

Heavy imports wait until a command needs them, so that --help answers at once.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tersor.errors import FormatError, TersorError, Unavailable
from tersor.machine import torchrun_processes
from tersor.pipeline.cli import kept, lesson, look, recipe, table
from tersor.pipeline.cli.options import (
    DEFAULT_RECIPE,
    DIST,
    RUNS,
    BatchesOption,
    BatchOption,
    CoderOption,
    DataOption,
    DistOption,
    EngineOption,
    ForceOption,
    JsonOption,
    ManyThreadsOption,
    P99Option,
    PeerOption,
    QueriesOption,
    QuietOption,
    RecipeArg,
    RunsOption,
    ScenarioOption,
    SecondsOption,
    SetOption,
    ShapesOption,
    ThreadsOption,
    application,
    print_json,
    print_table,
)
from tersor.pipeline.cli.recipe import tell_plan
from tersor.pipeline.cli.scenario import Served, tell_served

if TYPE_CHECKING:
    from tersor.pipeline.recipe.recipe import Recipe

DAILY, GROUPS = "Every day", "In groups"

app = application("Make a PyTorch CNN small and fast, prove that it still works, ship it as ONNX.")


def _show_version(asked: bool) -> None:
    if asked:
        from tersor.version import __version__

        typer.echo(f"tersor {__version__}")
        raise typer.Exit()


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a PyTorch CNN small and fast, prove that it still works, ship it as ONNX."""
    if torchrun_processes() and context.invoked_subcommand != "compress":
        from tersor.pipeline.training.ranks import check_alone

        check_alone(f"`tersor {context.invoked_subcommand}`")


@app.command(rich_help_panel=DAILY)
def compress(
    recipe: RecipeArg = DEFAULT_RECIPE,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = RUNS,
    ledger: Annotated[
        Literal["none", "last", "all"],
        typer.Option(help="After which stages the file also goes through gzip, zstd and xz."),
    ] = "last",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the stages and what is cached.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe: train, prune, tune, share, pack. Finished stages are reused."""
    if dry_run:
        tell_plan(recipe, overrides, data, runs, as_json=as_json)
        return
    from tersor.pipeline import run
    from tersor.pipeline.show import report
    from tersor.pipeline.show.pruned import pruned_told
    from tersor.pipeline.stages.store import Store

    start = run.compress_together if torchrun_processes() else run.compress
    done = start(_recipe(recipe, overrides, data), Store(runs), ledger=ledger, quiet=quiet)
    stages = [stage.to_json() for stage in done.stages]
    if as_json:
        print_json({"run": str(done.folder), "stages": stages})
    else:
        print_table(report.stage_table(stages))
        for told in pruned_told(stages):
            typer.echo(told)
        typer.echo(f"run: {done.folder}   next: {_next('deploy', recipe, overrides, data, runs)}")


def _next(
    command: str,
    what: Path,
    overrides: list[str] | None = None,
    data: Path | None = None,
    runs: Path = RUNS,
) -> str:
    """The command line that goes on with the same settings, from a recipe or with a bundle."""
    words = ["tersor", command, str(what), *(["--data", str(data)] if data else [])]
    words += [word for override in overrides or [] for word in ("--set", override)]
    return shlex.join(words + (["--runs", str(runs)] if runs != RUNS else []))


@app.command(rich_help_panel=DAILY)
def deploy(
    recipe: RecipeArg = DEFAULT_RECIPE,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = RUNS,
    dist: DistOption = DIST,
    require: Annotated[
        list[str] | None, typer.Option(help="Fail with exit code 4 if this target cannot be timed.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a finished run into a checked bundle: ONNX files, parity, accuracy, timing, report."""
    from tersor.pipeline.deploy import deploy as make_bundle
    from tersor.pipeline.show import report
    from tersor.pipeline.stages.store import Store

    resolved = _recipe(recipe, overrides, data)
    folder, manifest = make_bundle(
        resolved, Store(runs), dist, require=require or [], force=force, quiet=quiet
    )
    if as_json:
        print_json(manifest.to_json())
    else:
        print_table(report.before_after_table(manifest.to_json()))
        check = _next("verify", folder, data=data)
        typer.echo(f"bundle: {folder}   picture: {folder / 'report.html'}   re-check: {check}")


@app.command(rich_help_panel=DAILY)
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, such as dist/digits.")],
    data: DataOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Re-check a bundle from its files: hashes, ratio, parity, and accuracy where the data are at hand."""
    from tersor.export.bundle.verify import raise_if_broken
    from tersor.pipeline.shipping.recheck import recheck
    from tersor.pipeline.show.terminal import check_table

    checks = recheck(bundle, data)
    if as_json:
        print_json([vars(c) for c in checks])
    else:
        print_table(check_table(checks))
    if not quiet and not any("accuracy" in check.name for check in checks):
        print(
            "accuracy not checked: give the folder of the data with --data (DATA= in make)", file=sys.stderr
        )
    raise_if_broken(checks)


@app.command(rich_help_panel=DAILY)
def benchmark(
    models: Annotated[list[Path], typer.Argument(help=".onnx or .tsr files; the first is the baseline.")],
    target: Annotated[str, typer.Option(help="cpu, cuda or tensorrt.")] = "cpu",
    batch: BatchesOption = None,
    threads: ManyThreadsOption = None,
    seconds: SecondsOption = 2.0,
    shape: ShapesOption = None,
    force: ForceOption = False,
    scenario: ScenarioOption = None,
    p99_ms: P99Option = None,
    engine: EngineOption = None,
    queries: QueriesOption = None,
    peer: PeerOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time ONNX files: against the first one, in MLPerf's scenarios, or beside other runtimes."""
    served = Served(scenario, p99_ms, engine, queries, peer or ())
    if served.asked:
        tell_served(
            models,
            served,
            target=target,
            batches=batch,
            threads=threads or (1,),
            seconds=seconds,
            shapes=shape or (),
            force=force,
            as_json=as_json,
            quiet=quiet,
        )
        return
    from tersor.export.timing.benchmark import time_files
    from tersor.export.timing.feeds import parse_shape
    from tersor.pipeline.show.terminal import conditions_told, latency_table
    from tersor.progress import Reporter

    with Reporter([("timing", 1.0)], quiet=quiet) as reporter, reporter.step() as tell:
        timed = time_files(
            models,
            target,
            batches=batch,
            threads=threads or (1,),
            seconds=seconds,
            shapes=dict(map(parse_shape, shape or [])),
            force=force,
            progress=lambda done: tell(done, target),
        )
    if as_json:
        print_json(timed.to_json())
    else:
        print_table(latency_table(timed.rows))
        if not quiet:
            print("\n".join(conditions_told(timed)), file=sys.stderr)
    timed.needed()


@app.command(rich_help_panel=DAILY)
def report(
    bundle: Annotated[Path, typer.Argument(help="A bundle, such as dist/digits.")],
    picture: Annotated[Path | None, typer.Option(help="Write the trade as a PNG (1200x600) too.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write report.html of a bundle anew from its manifest."""
    from tersor.export.bundle.folder import read_manifest
    from tersor.pipeline.deploy import rewrite_report

    written = [rewrite_report(bundle)]
    if picture is not None:
        from tersor.pipeline.show.report import write_picture

        manifest = read_manifest(bundle)
        write_picture(picture, manifest.to_json(), manifest.stages or ())
        written.append(picture)
    if as_json:
        print_json({"report": str(written[0]), "picture": str(picture) if picture else None})
    else:
        typer.echo("\n".join(map(str, written)))


@app.command(rich_help_panel=DAILY)
def pack(
    onnx: Annotated[Path, typer.Argument(help="Any ONNX file.")],
    tsr: Annotated[Path, typer.Argument(help="The packed file to write.")],
    coder: CoderOption = "huffman",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pack any ONNX file, losslessly."""
    from tersor.export.codec.pack import pack as pack_file

    packed = pack_file(onnx, tsr, coder=coder)
    ratio = packed.original_bytes / packed.packed_bytes
    if as_json:
        print_json(vars(packed))
    else:
        typer.echo(f"{packed.original_bytes:,} -> {packed.packed_bytes:,} bytes ({ratio:.2f}x)")


@app.command(rich_help_panel=DAILY)
def unpack(
    tsr: Annotated[Path, typer.Argument(help="A packed file.")],
    onnx: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give back the packed file, byte for byte."""
    from tersor.export.codec.pack import unpack as unpack_file

    with _reading(tsr):
        unpack_file(tsr, onnx)
    size = onnx.stat().st_size
    print_json({"onnx": str(onnx), "bytes": size}) if as_json else typer.echo(f"{onnx}: {size:,} bytes")


@app.command(rich_help_panel=DAILY)
def inspect(
    tsr: Annotated[Path, typer.Argument(help="A packed file.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what every byte of a packed file is spent on."""
    from tersor.export.codec.ledger import inspect as ledger_of
    from tersor.pipeline.show.terminal import ledger_table

    with _reading(tsr):
        rows = [dict(vars(row)) for row in ledger_of(tsr)]
    print_json(rows) if as_json else print_table(ledger_table(rows))


@app.command(rich_help_panel=DAILY)
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
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.results import top_tables
    from tersor.pipeline.study.run import run_study

    changes = {"engine": engine, "workers": workers, "tracking": tracking, "or_local": or_local or None}
    asked = read_study(study_file, fast=fast, changes={k: v for k, v in changes.items() if v is not None})
    folder, trials = run_study(asked, runs, data, yes=yes, quiet=quiet)
    failed = [trial for trial in trials if not trial.finished]
    if as_json:
        print_json({"study": str(folder), "trials": [trial.to_json() for trial in trials]})
    else:
        for top in top_tables(asked, trials):
            print_table(top)
        typer.echo(f"{len(trials)} trials, {len(failed)} failed; page: {folder / 'report.html'}")
    for trial in failed[:3]:
        typer.echo(f"tersor: trial {trial.trial} {trial.settings}: {trial.error}", err=True)
    if len(failed) == len(trials):
        raise TersorError(
            "all trials failed",
            got=failed[0].error,
            where=folder,
            todo="Mend the study or its recipe and run it again",
        )


@app.command(rich_help_panel=DAILY)
def profile(
    what: Annotated[str, typer.Argument(help="A recipe, a finished run, a bundle, or a network's name.")],
    data: DataOption = None,
    shape: Annotated[str, typer.Option(help="Of an image, for networks of the zoo.")] = "3,32,32",
    batch: BatchOption = 1,
    threads: ThreadsOption = 1,
    int8: Annotated[bool, typer.Option("--int8", help="Integer layers in place of fp32.")] = False,
    step: Annotated[int, typer.Option(min=1, help="Widths tried are multiples of this.")] = 4,
    runs: RunsOption = RUNS,
    out: Annotated[Path | None, typer.Option(help="The picture; default: in the folder of profiles.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Latency against width of a network's layers on this machine: the staircase."""
    from tersor.pipeline.lessons import staircase_picture, staircase_run

    found = staircase_run.run_profile(
        what,
        data,
        runs,
        shape=shape,
        setting=(threads, batch, int8),
        step=step,
        out=out,
        quiet=quiet or as_json,
    )
    if as_json:
        print_json({"machine": found.machine, "layers": found.rows, "picture": str(found.picture)})
    else:
        table_of = staircase_picture.table(found.rows)
        typer.echo(f"{table_of}\n\npicture: {found.picture}   measurements: {found.measurements}")


for group, name in ((look, "look"), (lesson, "lesson"), (table, "table"), (kept, "kept"), (recipe, "recipe")):
    app.add_typer(group.app, name=name, rich_help_panel=GROUPS)


def main() -> None:
    """Run the commands; every failure becomes one paragraph on stderr and an exit code."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer swallows an interrupt and gives its exit code back
            raise KeyboardInterrupt
        sys.exit(code)
    except TersorError as error:
        if error.at_once:
            print(f"tersor: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
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
