"""docs/settings.md says what the models say."""

import re
from pathlib import Path

from tersor.pipeline.show.settings_page import settings_page

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_in_docs_is_the_one_the_models_make() -> None:
    told = "write it anew: .venv/bin/tersor recipe settings > docs/settings.md"
    assert (DOCS / "settings.md").read_text() == settings_page(), told


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    page = settings_page()
    headings = {
        re.sub(r"[`:/.]", "", line[3:]).lower().replace(" ", "-") for line in re.findall(r"## .*", page)
    }
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert links
    assert links <= headings, links - headings


def test_limits_defaults_and_choices_are_told() -> None:
    page = settings_page()
    assert "| `pixels` | whole number, at least 4 | needed | height and width" in page
    assert "| `macs` | number, above 0, below 1 | - | fraction of the baseline's |" in page
    assert "| `optimizer` | `sgd` or `adam` | `adam` |" in page  # tune's, which differs from train's
    assert "| `stage` |" not in page
