"""`tersor benchmark` with --scenario or --peer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tersor.errors import BadInput
from tersor.pipeline.cli.options import print_json, print_table


@dataclass(frozen=True)
class Served:
    """What the options of `tersor benchmark` say about scenarios and peers."""

    scenario: str | None
    p99_ms: float | None
    engine: str | None
    queries: int | None
    peers: Sequence[str]

    @property
    def asked(self) -> bool:
        """Whether any of them was given.

        Raises:
            BadInput: one that belongs to a scenario, without one.
        """
        given = {"--p99-ms": self.p99_ms, "--engine": self.engine, "--queries": self.queries}
        loose = [name for name, value in given.items() if value is not None]
        if loose and self.scenario is None:
            raise BadInput(
                f"{loose[0]} belongs to a scenario",
                todo="Give --scenario single-stream, offline or server, too",
            )
        return self.scenario is not None or bool(self.peers)


def tell_served(
    models: Sequence[Path],
    served: Served,
    *,
    target: str,
    batches: Sequence[int] | None,
    threads: Sequence[int],
    seconds: float,
    shapes: Sequence[str],
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the scenario, or time the peers in turn, and print a table or JSON.

    Raises:
        TersorError: see `run_scenarios` and `run_peers`.
    """
    from tersor.export.timing.feeds import parse_shape
    from tersor.pipeline.lessons.scenarios_run import run_peers, run_scenarios
    from tersor.pipeline.show.scenario_tables import peer_table, scenario_table
    from tersor.progress import Reporter

    what, sizes = served.scenario or "peers", dict(map(parse_shape, shapes))
    with Reporter([("timing", 1.0)], quiet=quiet) as reporter, reporter.step() as tell:

        def progress(done: float) -> None:
            """Show how far it is."""
            tell(done, what)

        if served.scenario is None:
            if target != "cpu":
                raise BadInput("peers run on the CPU only", got=f"target {target}", wanted="target cpu")
            timed = run_peers(
                models,
                served.peers,
                batches=batches or (1,),
                threads=threads,
                seconds=seconds,
                shapes=sizes,
                force=force,
                progress=progress,
            )
            rows = [row.plain() for row in timed]
        else:
            ran = run_scenarios(
                models,
                served.scenario,
                p99_ms=served.p99_ms,
                engine=served.engine or "tersor",
                peers=served.peers,
                target=target,
                batches=batches,
                threads=threads,
                seconds=seconds,
                queries=served.queries,
                shapes=sizes,
                force=force,
                progress=progress,
            )
            rows = [row.plain() for row in ran]
    if as_json:
        print_json(rows)
    else:
        print_table(peer_table(rows) if served.scenario is None else scenario_table(rows))
