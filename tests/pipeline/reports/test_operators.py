"""docs/operators.md says what the rules say."""

from pathlib import Path

from tersor.pipeline.reports.operators import operators_page
from tersor.pipeline.structure.rules import RULES

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_in_docs_is_the_one_the_rules_make() -> None:
    told = "write it anew: .venv/bin/tersor table operators --out docs/operators.md"
    assert (DOCS / "operators.md").read_text() == operators_page(), told


def test_every_operator_with_a_rule_is_on_the_page() -> None:
    page = operators_page()
    assert [n for n in RULES if f"`{n.removesuffix('.default')}`" not in page] == []
