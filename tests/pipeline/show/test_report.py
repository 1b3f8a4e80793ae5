"""The page and the tables show what the JSON says, say what is missing, and never load or break."""

import copy
import importlib.util
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tersor.pipeline.show import manifest as summary
from tersor.pipeline.show import units
from tersor.pipeline.show.report import before_after_table, stage_table, write_picture, write_report

# Loaded by file: with --import-mode=importlib a test folder is no package.
_spec = importlib.util.spec_from_file_location(
    "report_samples", Path(__file__).with_name("report_samples.py")
)
assert _spec
assert _spec.loader
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers attributes and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data + " "


def render(tmp_path: Path, manifest: Any = None, stages: Any = None, confusion: Any = None) -> str:
    path = tmp_path / "report.html"
    write_report(path, manifest if manifest is not None else {}, stages or [], confusion)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path) -> str:
    return render(tmp_path, samples.manifest(), samples.stages(), samples.confusion())


def said(table: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_page_shows_the_headline_numbers_and_every_section(page: str) -> None:
    words = re.sub(r"\s+", " ", Page(page).words)
    for wanted in ("56.5× smaller", "4.40×", "−0.44", "98.44 % before, 98.00 % after", "15.3×"):
        assert wanted in words
    for heading in ("Before and after", "The trade", "Where the bytes went", "Shipped files", "Speed"):
        assert heading in words
    assert "CUDA, batch 1 and 64 no CUDA device on this machine" in words
    assert re.search(r"max_bytes model.tsr 7000 7310 broken", words)
    assert "tersor verify dist/digits" in words
    assert "cpu.flags avx2, avx512_vnni" in words


def test_a_learning_curve_is_counted_rather_than_printed(tmp_path: Path) -> None:
    stage = samples.stages()[0] | {"details": {"history": [{"epoch": 1}] * 40, "losses": [0.1] * 99}}
    page = render(tmp_path, {}, [stage])
    assert "40 entries" in page
    assert "99 entries" in page


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1] in ("src", "href", "action") or a[1].startswith("on")]
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_the_same_json_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    again = render(tmp_path, samples.manifest(), samples.stages(), samples.confusion())
    assert again == page
    assert not re.search(r"20\d\d-\d\d", page)


def test_pictures_are_drawn_for_wide_and_narrow_screens(page: str) -> None:
    widths = [v for tag, key, v in Page(page).attributes if tag == "svg" and key == "width"]
    assert widths.count("720") == 1 + 1 + 3  # trade, coders, one a target
    assert widths.count("340") == 1 + 1 + 3 + 2  # and the matrices, drawn once


def test_an_unmeasured_difference_is_not_sold_as_one(page: str) -> None:
    assert page.count("29.9 µs · not distinguishable") == 2
    assert "1.03×" not in page


def gpu_page(folder: Path, row: dict[str, Any]) -> str:
    """The page of a bundle whose only timed file has this row."""
    told = samples.manifest()
    told["baseline"] = {**told["baseline"], "latency": [samples.on_a_gpu(1.0, 1.0)]}
    told["artifacts"] = [samples.artifact("model.onnx", "fp32", 9, 0.98, [row])]
    return render(folder, manifest=told)


def test_end_to_end_and_the_device_each_have_their_own_verdict(tmp_path: Path) -> None:
    copies = gpu_page(tmp_path, samples.on_a_gpu(2.0, 1.0))
    assert "<td>2.00×<small>" in copies, "what is shown end to end is told, though the device shows nothing"
    assert "not distinguishable" in copies
    kernels = gpu_page(tmp_path, samples.on_a_gpu(1.01, 1.83))
    assert "<td>1.01×" not in kernels, "and what is not shown there is not, though the device's is"
    assert "1.83×" in kernels
    assert "not distinguishable" not in kernels


def test_a_gpus_row_says_why_it_has_no_graph(tmp_path: Path) -> None:
    assert "no CUDA graph" not in gpu_page(tmp_path, samples.on_a_gpu(1.2, 1.8))
    told = gpu_page(tmp_path, samples.on_a_gpu(1.2, 1.8, no_graph="node x is on the CPU"))
    assert "no CUDA graph: node x is on the CPU" in told


def test_advice_on_int8_is_said_and_only_where_there_is_some(page: str, tmp_path: Path) -> None:
    assert "What the timings say about int8" not in page
    told = {"advice": ["int8 is slower on this CPU <for this network>: keep fp32"]}
    advised = render(tmp_path, manifest=told)
    assert "What the timings say about int8" in advised
    assert "<li>Int8 is slower on this CPU &lt;for this network&gt;: keep fp32.</li>" in advised


def test_an_empty_manifest_gives_a_page_that_says_so(tmp_path: Path) -> None:
    words = Page(render(tmp_path)).words
    assert words.count("not measured") >= 12
    assert "None" not in words
    assert "nan" not in words


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in inner for p in [(*way, key), *_places(item, (*way, key))]]


def _without(value: Any, way: tuple[Any, ...], put: Any) -> Any:
    changed = copy.deepcopy(value)
    holder = changed
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = put
    return changed


@pytest.mark.parametrize("put", [None, float("nan"), "?"])
def test_no_missing_or_odd_value_breaks_page_or_tables(tmp_path: Path, put: Any) -> None:
    manifest, stages = samples.manifest(), samples.stages()[:2]
    manifest["artifacts"] = manifest["artifacts"][1:]
    for way in _places(manifest):
        if "latency" in way and way[-1] != "latency" and way[-2:-1] != (0,):
            continue  # one row of a kind is enough
        broken = _without(manifest, way, put)
        Page(render(tmp_path, broken, stages, None))
        said(before_after_table(broken))
    for way in _places(stages):
        broken = _without(stages, way, put)
        if all(isinstance(stage, dict) for stage in broken):
            Page(render(tmp_path, manifest, broken, None))
            said(stage_table(broken))


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    manifest = {
        "name": evil,
        "baseline": samples.artifact(evil, evil, 10, 0.5, samples.latency(1, None)),
        "artifacts": [samples.artifact(evil + "2", "packed", 5, 0.5, samples.latency(1, 2))],
        "not_measured": [{"what": evil, "reason": evil}],
        "recommended": {evil: {"file": evil, "why": evil}},
        "gates": [{"gate": evil, "limit": evil, "got": evil, "ok": True}],
        "environment": {evil: evil},
        "parity": {evil: [evil]},
        "data": {"name": evil},
        "tersor_version": evil,
    }
    stage = samples.stages()[0] | {"name": evil, "stage": evil + "x", "details": {evil: evil}}
    confusion = samples.confusion(3) | {"classes": [evil, "b", "c"]}
    page = render(tmp_path, manifest, [stage], confusion)
    assert "<script" not in page
    assert "script" not in Page(page).tags


@pytest.mark.parametrize("classes", [2, 12, 100])
def test_confusion_fits_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    page = render(tmp_path, samples.manifest(), samples.stages(), samples.confusion(classes))
    assert Page(page).tags.count("svg") == 12
    assert (">44</text>" in page) == (classes <= 12)
    assert len(page) < 250_000


def test_per_class_accuracy_marks_what_got_worse(page: str) -> None:
    row = re.search(r"<tr><th scope=\"row\">1</th>.*", page)
    assert row
    assert '<td>45</td><td>97.78 %</td><td>91.11 %</td><td class="bad">−6.67</td>' in row.group()
    empty = re.search(r"<tr><th scope=\"row\">9</th>.*", page)
    assert empty
    assert "<td>0</td><td>–</td><td>–</td><td>–</td>" in empty.group()


def test_the_smallest_file_of_a_stage_is_marked_and_the_bound_never(page: str) -> None:
    assert '<td class="best">7.31 kB</td>' in page
    assert '<td class="best">6.80 kB</td>' not in page


def test_a_failed_write_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write_report(path, {}, [None], None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_before_after_table_has_every_figure_the_issue_asks_for() -> None:
    text = said(before_after_table(samples.manifest()))
    for wanted in ("Size on disk", "Parameters", "Multiply-adds", "Test accuracy", "Throughput"):
        assert wanted in text
    for wanted in ("Latency p50", "Latency p90", "Latency p99"):
        assert text.count(wanted) == 3
    assert "413 kB" in text
    assert "56.5× smaller" in text
    assert "CPU, batch 64, 2 threads, model.int8.onnx" in text


def test_a_speedup_is_told_with_its_interval() -> None:
    assert "4.40× [4.18, 4.66]" in said(before_after_table(samples.manifest()))


def three_bests() -> dict[str, Any]:
    """The smallest, the fastest and the most accurate file are three; a fourth is recommended."""
    told = samples.manifest()
    told["artifacts"][2]["accuracy_fraction"] = 0.99
    told["artifacts"][1]["latency"] = samples.latency(0.001, 31)
    told["recommended"] = {"cpu": {"file": "model.onnx", "batch": 1, "speedup": 3.4, "why": "plainest"}}
    return told


def test_the_headline_is_about_one_file() -> None:
    head = summary.headline(three_bests())
    assert head.file
    assert head.timing
    assert {head.file.file, head.timing.file} == {"model.onnx"}
    assert (head.file.bytes, head.speed, head.file.accuracy) == (78_400, "3.40×", 0.9822)
    assert head.stored.startswith("model.tsr: the same network to store and send, 7.31 kB")


def busy() -> dict[str, Any]:
    told = three_bests()
    for row in told["artifacts"][0]["latency"]:
        row |= {"busy": "90 <b>switches", "narrow": False}
    return told


def test_times_of_a_busy_machine_are_marked_and_never_the_headline(tmp_path: Path) -> None:
    head, page = summary.headline(busy()), render(tmp_path, busy())
    assert head.speed == "not measured"
    assert "the machine was busy (90 <b>switches)" in head.why_not
    assert 'class="busy"' in page
    assert "<b>switches" not in page
    assert "wide, machine busy" in said(before_after_table(busy()))


def test_a_refused_setting_says_why(tmp_path: Path) -> None:
    told = samples.manifest()
    told["not_measured"] = [{"what": "cpu at batch 9, 1 thread(s)", "reason": "the machine was busy (x)"}]
    told["recommendations"] = [
        {"target": "cpu", "batch": 9, "file": "model.onnx", "speedup": None, "why": "w"}
    ]
    assert summary.headline(told).why_not == "the machine was busy (x)"
    assert "not measured: the machine was busy (x)" in render(tmp_path, told)
    assert "not measured: the machine was busy (x)" in said(before_after_table(told))


def test_the_noise_is_a_band_where_it_was_taken(tmp_path: Path) -> None:
    told = samples.manifest()
    assert 'class="band"' not in render(tmp_path, told)
    for row in told["artifacts"][0]["latency"]:
        row["noise_fraction"] = 0.03
    assert render(tmp_path, told).count('class="band"') == 6


def test_each_batch_size_has_its_recommendation_and_conditions_are_told(tmp_path: Path) -> None:
    told = samples.manifest()
    told["recommendations"] = [
        {"target": "cpu", "batch": b, "file": f, "speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
        for b, f in ((1, "model.onnx"), (64, "model.int8.onnx"))
    ]
    told["clock"] = [{"provider": "CPUExecutionProvider", "batch": 1, "threads": 1, "governor": "powersave"}]
    words = re.sub(r"\s+", " ", Page(render(tmp_path, told)).words)
    assert "CPU, batch 1, 1 thread model.onnx 2.00× [1.90, 2.10]" in words
    assert "CPU, batch 64, 1 thread model.int8.onnx 2.00×" in words
    assert "governor powersave" in words


def test_stage_table_has_a_line_a_stage_in_their_order() -> None:
    text = said(stage_table(samples.stages()))
    places = [text.index(s["name"]) for s in samples.stages()]
    assert places == sorted(places)
    assert "98.52 %" in text


def test_the_picture_has_its_size_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, two, empty = (tmp_path / name for name in ("one.png", "two.png", "empty.png"))
    write_picture(one, samples.manifest(), samples.stages())
    write_picture(two, samples.manifest(), samples.stages())
    write_picture(empty, {}, [])
    assert one.read_bytes() == two.read_bytes()
    for file in (one, empty):
        assert struct.unpack(">II", file.read_bytes()[16:24]) == (1200, 600)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (units.size(999), "999 B"),
        (units.size(4_799_528), "4.80 MB"),
        (units.size(0), "0 B"),
        (units.count(35_088), "35.1 k"),
        (units.share(0.9844), "98.44 %"),
        (units.points(-0.0022), "−0.22 points"),
        (units.points(0.0), "+0.00 points"),
        (units.time(0.0213), "21.3 µs"),
        (units.time(2.5), "2.50 ms"),
        (units.time(0.05, like_ms=0.4), "0.0500 ms"),
        (units.time(1500), "1.50 s"),
        (units.seconds(600), "10.0 min"),
        (units.times(53.93), "53.9×"),
        (units.times(1234.5), "1234×"),
        (units.rate(743_000), "743 k/s"),
        (units.times(None), "not measured"),
        (units.size(float("nan")), "not measured"),
    ],
)
def test_numbers_read_with_their_units(text: str, wanted: str) -> None:
    assert text == wanted
