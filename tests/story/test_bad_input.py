"""Every bad input gives one paragraph that helps, its exit code, and leaves earlier results as they were.

`python tests/story/test_bad_input.py` prints the table: case, exit code, message.
"""

import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that this file also runs by itself
from story import bad_data, bad_files, bad_networks, bad_places, bad_recipes, bad_stages
from story.cases import Case, Result, run_case
from story.harness import Server, tiny_recipe, write_recipe

CASES = [
    *bad_recipes.CASES,
    *bad_data.CASES,
    *bad_networks.CASES,
    *bad_files.CASES,
    *bad_places.CASES,
    *bad_stages.CASES,
]

PROGRESS = re.compile(r"\[\d/\d\] [\w-]+ ")


def complaints(case: Case, result: Result) -> list[str]:
    """Everything about a result that is not as the case wants it; empty when all is well."""
    outcome, message = result.outcome, result.outcome.message
    said = outcome.stderr[: outcome.stderr.find("tersor:")].splitlines()
    found = [
        (outcome.code != case.code, f"exit code {outcome.code}, wanted {case.code}"),
        (not message.startswith("tersor: "), "no message that starts with `tersor:`"),
        ("\n" in message, "the message is more than one paragraph"),
        ("Traceback" in outcome.stdout + outcome.stderr, "a traceback"),
        ("bug in tersor" in message, "it is called a bug of ours"),
        (any(not PROGRESS.match(line) for line in said), f"noise before the message: {said}"),
        (bool(result.lost), f"earlier files changed or gone: {result.lost}"),
        (bool(result.added), f"files added: {result.added}"),
        (bool(result.leftovers), f"half-written things left: {result.leftovers}"),
        (result.forbidden, f"{case.must_not_exist} was made"),
    ]
    found += [(words not in message, f"the message lacks {words!r}") for words in case.says]
    return [text for wrong, text in found if wrong]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_told_and_harms_nothing(case: Case, story, server: Server, tmp_path: Path) -> None:
    result = run_case(case, story.folder, tmp_path / "work", server)
    assert complaints(case, result) == [], result.outcome.stderr


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


def print_table() -> int:
    """Run all cases and print case, exit code and message; the exit code says whether all are right."""
    server, wrong = Server(), 0
    with tempfile.TemporaryDirectory() as temporary:
        finished = Path(temporary, "finished")
        finished.mkdir()
        recipe = write_recipe(finished, tiny_recipe()).name
        for command in ("compress", "deploy"):
            assert server.run(command, recipe, cwd=finished).code == 0
        for case in CASES:
            result = run_case(case, finished, Path(temporary, "work"), server)
            shutil.rmtree(Path(temporary, "work"))
            faults = complaints(case, result)
            wrong += bool(faults)
            print(f"{'WRONG ' if faults else ''}{case.name}  ->  {result.outcome.code}")
            for text in [result.outcome.message, *faults]:
                print(textwrap.indent(textwrap.fill(text, 106), "    "))
    server.close()
    print(f"{len(CASES)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(print_table())
