"""The page of a study shows what results.json says, in one file that loads nothing, whatever it holds."""

import copy
import importlib.util
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tersor.pipeline.show import study_data
from tersor.pipeline.show.study_page import front, write_page

# Loaded by file: with --import-mode=importlib a test folder is no package.
_spec = importlib.util.spec_from_file_location("study_samples", Path(__file__).with_name("study_samples.py"))
assert _spec
assert _spec.loader
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

ODD = "</script><script>alert(1)</script> <b onclick='x'>&amp; \" ' ${1} {{ 7*7 }} \u2028 \ud800 ü"


class Page(HTMLParser):
    """Checks that tags nest; gathers tags, attributes, words, and what the data scripts hold."""

    VOID = frozenset({"meta", "br", "input", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words, self.scripts = "", list[str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.words += data + " "

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", self.words)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def render(tmp_path: Path, content: dict[str, Any]) -> str:
    write_page(tmp_path / "report.html", content)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def content() -> dict[str, Any]:
    return samples.study(seeds=(0, 1))


def test_it_shows_the_headline_the_best_and_every_section(content: dict[str, Any], tmp_path: Path) -> None:
    page = Page(render(tmp_path, content))
    assert "36 trials of 18 settings, 2 seeds" in page.text
    best = content["top"][0]["rows"][0]
    mean, std = (best[k]["validation_accuracy_fraction"] for k in ("mean", "std"))
    assert f"{100 * mean:.2f} % highest validation accuracy" in page.text
    assert f"{100 * mean:.2f} ± {100 * std:.2f} %" in page.text
    assert "lowest training time" in page.text
    assert "Constraints: packed size at most 60.0 kB" in page.text
    for heading in (
        "The best",
        "The Pareto front",
        "Look around",
        "Learning curves",
        "All of them",
        "Failed",
    ):
        assert heading in page.text


def test_failed_trials_are_listed_with_their_errors(content: dict[str, Any], tmp_path: Path) -> None:
    page = Page(render(tmp_path, content))
    failed = [t for t in content["trials"] if t["state"] == "failed"]
    assert failed
    assert f"trials, {len(failed)} failed" in page.text
    assert page.text.count("training diverged: the loss is no longer a number") == len(failed)
    assert len(page.data["trials"]["error"]) == len(failed)


def test_the_embedded_data_are_the_trials(content: dict[str, Any], tmp_path: Path) -> None:
    data = Page(render(tmp_path, content)).data
    keys = [m["key"] for m in data["metrics"]]
    accuracies = data["trials"]["values"][keys.index("validation_accuracy_fraction")]
    for index, trial in enumerate(content["trials"]):
        wanted = trial["metrics"].get("validation_accuracy_fraction")
        assert accuracies[index] == (None if wanted is None else pytest.approx(wanted, rel=1e-6))
        for a, axis in enumerate(data["axes"]):
            value = trial["settings"][axis["name"]]
            assert axis["texts"][data["trials"]["axes"][a][index]] == study_data.text(value)
    outside = [i for i, row in enumerate(content["summary"]) if row["mean"].get("packed_bytes", 1e9) > 60_000]
    assert data["groups"]["outside"] == outside
    assert sorted(i for g in data["groups"]["members"] for i in g) == list(range(36))


def test_numeric_axes_are_in_order_and_words_are_not(content: dict[str, Any], tmp_path: Path) -> None:
    axes = {axis["name"]: axis for axis in Page(render(tmp_path, content)).data["axes"]}
    assert axes["train.learning_rate"]["numbers"] == [0.001, 0.01, 0.1]
    assert axes["train.learning_rate"]["label"] == "learning rate"
    assert axes["model"]["numbers"] is None


def test_any_text_is_escaped_and_the_page_stays_whole(content: dict[str, Any], tmp_path: Path) -> None:
    odd = copy.deepcopy(content)
    odd["name"] = ODD
    for row in [*odd["trials"], *odd["summary"]]:
        row["settings"]["model"] = ODD
        row["settings"]["extra." + ODD] = {"deep": [ODD, None, True]}
    for trial in odd["trials"]:
        if trial["state"] == "failed":
            trial["error"] = ODD
    page = Page(render(tmp_path, odd))
    assert page.tags.count("script") == 3
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert "{{ 7*7 }}" in page.text
    axis = next(a for a in page.data["axes"] if a["name"] == "model")
    assert axis["texts"] == [ODD]


def test_it_loads_nothing(content: dict[str, Any], tmp_path: Path) -> None:
    text = render(tmp_path, content)
    page = Page(text)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "action")]
    # The one address names SVG's elements; nothing is fetched from it.
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text
    assert "@import" not in text
    assert "fetch(" not in text


def test_the_same_content_gives_the_same_bytes(content: dict[str, Any], tmp_path: Path) -> None:
    assert render(tmp_path, content) == render(tmp_path, copy.deepcopy(content))


def test_numbers_that_are_none_do_not_break_it(content: dict[str, Any], tmp_path: Path) -> None:
    content["trials"][0]["metrics"]["validation_loss"] = math.nan
    content["trials"][1]["metrics"]["packed_bytes"] = math.inf
    content["trials"][2]["metrics"] = {}
    data = Page(render(tmp_path, content)).data
    keys = [m["key"] for m in data["metrics"]]
    assert data["trials"]["values"][keys.index("validation_loss")][0] is None
    assert data["trials"]["values"][keys.index("packed_bytes")][1] is None


@pytest.mark.parametrize("trials", [0, 1])
def test_an_empty_study_and_one_where_all_failed_have_a_page(tmp_path: Path, trials: int) -> None:
    failed = {
        "trial": 0,
        "key": "k",
        "settings": {"a.b": 1},
        "seed": 0,
        "state": "failed",
        "error": "broke",
        "metrics": {},
        "stages": [],
    }
    summary = [{"settings": {"a.b": 1}, "seeds": 0, "failed": 1, "mean": {}, "std": {}}][:trials]
    top = [{"metric": "validation_accuracy_fraction", "direction": "maximize", "count": 3, "rows": []}]
    page = Page(
        render(
            tmp_path,
            {
                "name": "none",
                "axes": ["a.b"],
                "trials": [failed][:trials],
                "summary": summary,
                "top": top,
                "constraints": [],
            },
        )
    )
    assert "No finished trial" in page.text
    assert page.data["metrics"] == []


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    epochs = [{"epoch": i + 1, "train_loss": float(i), "validation_loss": float(-i)} for i in range(5000)]
    trials = [{"stages": [{"details": {"history": epochs}}]}] * 100
    found = study_data.curves(trials)
    curve = found["curves"]["0"]
    assert len(curve[0]) <= study_data.CURVE_BUDGET / 100 / 5 + 1
    assert (curve[0][0], curve[0][-1]) == (1, 5000)
    assert (curve[1][-1], curve[2][-1]) == (4999, -4999)
    assert curve[3][0] is None


def test_a_thousand_trials_are_a_file_of_a_few_megabytes(tmp_path: Path) -> None:
    text = render(tmp_path, samples.large())
    assert len(text) < 3_000_000
    assert Page(text).text.count("The first 200 of 1000") == 1


def test_the_front_is_what_its_definition_says() -> None:
    rng = random.Random(0)
    for _ in range(200):
        directions = [rng.choice(["maximize", "minimize"]) for _ in range(rng.randint(1, 3))]
        points = [
            [
                rng.choice([None, 0, 1, 2, 3, math.nan, 2.5]) if rng.random() < 0.1 else rng.randint(0, 5)
                for _ in directions
            ]
            for _ in range(rng.randint(0, 12))
        ]
        signs = [1 if d == "maximize" else -1 for d in directions]
        whole = [p for p in points if all(v is not None and math.isfinite(v) for v in p)]

        def beaten(p: Any, whole: Any = whole, signs: Any = signs) -> bool:
            better = [[s * (b - a) for s, a, b in zip(signs, p, q)] for q in whole]
            return any(min(b) >= 0 and max(b) > 0 for b in better)

        wanted = [i for i, p in enumerate(points) if p in whole and not beaten(p)]
        assert front(points, directions) == wanted


def test_a_front_keeps_equal_points_and_forgets_unknown_ones() -> None:
    points = [(0.9, 10.0), (0.9, 10.0), (0.8, 5.0), (0.8, 10.0), (None, 1.0), (0.99, math.nan)]
    assert front(points, ["maximize", "minimize"]) == [0, 1, 2]
    assert front([], ["maximize", "minimize"]) == []


def test_spreads_are_in_the_unit_of_their_value() -> None:
    assert study_data.show("a_fraction", 0.8914, 0.0021) == "89.14 ± 0.21 %"
    assert study_data.show("seconds", 138.0, 32.0) == "2.3 ± 0.5 min"
    assert study_data.show("packed_bytes", 12_345, 340.0) == "12.3 ± 0.3 kB"
    assert study_data.show("onnx_bytes", 92_400, 0.0) == "92.4 kB"
    assert study_data.show("macs", 4_790_000, None) == "4.79 M"
    assert study_data.show("seconds", None) == "–"


def test_the_direction_of_a_metric() -> None:
    content = {"top": [{"metric": "odd_metric", "direction": "maximize"}]}
    for metric, wanted in (
        ("odd_metric", "maximize"),
        ("test_accuracy_fraction", "maximize"),
        ("packed_bytes", "minimize"),
        ("validation_loss", "minimize"),
    ):
        assert study_data.direction(metric, content) == wanted


def test_a_constraint_of_zero_counts_and_a_missing_metric_keeps_none() -> None:
    limits = [{"metric": "a", "min": 0.0, "max": None}]
    assert study_data.inside({"a": 0.0}, limits)
    assert not study_data.inside({"a": -1.0}, limits)
    assert not study_data.inside({}, limits)
