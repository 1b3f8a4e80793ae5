"""Every verb answers alike: --json, --quiet, -h; the daily ones come first; an option means one thing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tersor.pipeline.cli.main import app

GROUPS = {
    "look": ["cost", "weights", "sensitivity", "predictions", "influence", "channels"],
    "lesson": ["shrink", "collapse", "gemm", "sparse-linear"],
    "table": ["r1", "r2", "r3", "r1-bits", "r4-bits", "r5", "networks", "operators"],
    "kept": ["add", "check"],
    "recipe": ["settings", "schema", "plan"],
}
DAILY = [
    "compress",
    "deploy",
    "verify",
    "benchmark",
    "report",
    "pack",
    "unpack",
    "inspect",
    "study",
    "profile",
]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


ROOT = typer.main.get_command(app)
VERBS = dict(commands(ROOT))


def options(command: Any) -> dict[str, Any]:
    return {name: p for p in command.params for name in p.opts if name.startswith("-")}


def test_the_verbs_are_these_the_daily_ones_first() -> None:
    assert list(ROOT.commands) == [*DAILY, *GROUPS]  # type: ignore[attr-defined]
    assert list(VERBS) == [*DAILY, *(f"{group} {verb}" for group, verbs in GROUPS.items() for verb in verbs)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json_and_quiet_and_says_what_it_does(verb: str) -> None:
    assert {"--json", "--quiet", "-q"} <= set(options(VERBS[verb]))
    assert VERBS[verb].help
    assert all(getattr(p, "help", None) or p.name == "help" for p in VERBS[verb].params)


@pytest.mark.parametrize("option", ["--batch", "--threads", "--data", "--runs"])
def test_an_option_means_the_same_everywhere(option: str) -> None:
    found = [options(command)[option] for command in VERBS.values() if option in options(command)]
    told = {parameter.help.split(";")[0].rstrip(".") for parameter in found}
    assert len(told - {"Folder with MNIST as torchvision lays it out"}) == 1, told


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tersor.pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_shows_the_daily_verbs_before_the_groups() -> None:
    text = run("-h")
    assert text.index("Every day:") < text.index("compress") < text.index("In groups:") < text.index("look ")
    assert run("look", "cost", "-h") == run("look", "cost", "--help")


def test_the_version_is_told() -> None:
    from tersor.version import __version__

    assert run("--version").strip() == f"tersor {__version__}"


def test_the_schema_is_json_and_knows_every_stage() -> None:
    schema = json.loads(run("recipe", "schema"))
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "sharing" in json.dumps(schema)
