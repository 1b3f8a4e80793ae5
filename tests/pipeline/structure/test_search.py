"""Widths by budget: the best within it, told when impossible; predictions against the real network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import make
from timings import given_times

from tersor.errors import BadInput
from tersor.export.timing.layer_timing import LayerShape
from tersor.models.cost import cost
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure import budget, staircase
from tersor.pipeline.structure.coupling import Coupling, couple
from tersor.pipeline.structure.elimination import total
from tersor.pipeline.structure.nni_room import scores
from tersor.pipeline.structure.search import Problem, pose, solve
from tersor.pipeline.structure.stage import counts_for, prune_channels, try_structure
from tersor.pipeline.structure.staircase import Setting, Staircase, layer_shapes, steps, sweep, widths_of
from tersor.pipeline.structure.widths import Pruning, Scores, Space, spaces_to_prune


def quiet(*_: object) -> None:
    """No progress."""


def prune(net: Network, profiles: Path, **settings: object) -> tuple[Network, dict]:
    chosen = Structure(stage="structure", **settings)  # type: ignore[arg-type]
    inputs = np.random.default_rng(0).standard_normal((16, *net.input_shape)).astype(np.float32)
    images = Images(torch.from_numpy(inputs), torch.zeros(16, dtype=torch.int64))
    counts = counts_for(chosen, net, profiles, quiet)
    return prune_channels(net, chosen, images, quiet, counts=counts)


def posed(net: Network, **search: object) -> tuple[Problem, list[Space], Scores, Coupling]:
    """A problem whose price is multiply-adds."""
    settings = Structure(stage="structure", pruner="l1norm", search={"macs": 0.5, **search})  # type: ignore[arg-type]
    module = net.module()
    coupling = couple(module, torch.zeros(2, *net.input_shape))
    spaces = spaces_to_prune(module, coupling, settings)
    found = scores(module, "l1norm", [n for s in spaces for n in s.layers])

    def macs(shapes: set[LayerShape]) -> dict[LayerShape, float]:
        """Multiply-adds."""
        return {shape: float(shape.macs) for shape in shapes}

    problem = pose(Pruning(net, module, settings, coupling, spaces, found), macs)
    return problem, spaces, found, coupling


def test_tables_at_full_width_add_up_to_the_networks_macs() -> None:
    net = make("resnet20", (3, 16, 16), shortcut="B")
    problem, *_ = posed(net)
    assert total(problem.costs, problem.full()) == cost(net).macs
    assert problem.value(problem.full()) == pytest.approx(1.0)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", ["mnist", "resnet20"])
def test_a_budget_of_macs_is_met_and_used(name: str, fraction: float, tmp_path: Path) -> None:
    net = make(name, (3, 16, 16))
    small, details = prune(net, tmp_path, pruner="l1norm", search={"macs": fraction, "step": 2})
    got = cost(small).macs / cost(net).macs
    assert 0.85 * fraction <= got <= fraction
    assert details["masked_max_abs_diff"] <= 1e-5


def test_solution_keeps_at_least_as_much_as_every_other_within_the_budget() -> None:
    problem, *_ = posed(make("mnist", (1, 8, 8)), step=8)
    budget = 0.4 * total(problem.costs, problem.full())
    best = solve(problem, budget)
    assert total(problem.costs, best) <= budget
    for a in range(len(problem.kept[0])):
        for b in range(len(problem.kept[1])):
            if total(problem.costs, [a, b]) <= budget:
                # bisection over prices reaches the hull; what is left is filled up greedily
                assert problem.value([a, b]) <= problem.value(best) + 0.06


def test_a_budget_below_the_narrowest_widths_is_refused_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no widths are within the budget.*at least .*narrowest widths cost"):
        prune(make(), tmp_path, search={"macs": 0.0001})


def test_a_latency_below_the_fastest_widths_is_refused_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.0001 ms allowed.*what the fastest widths take here"):
        prune(make(), tmp_path, search={"latency_ms": 0.0001})


def test_an_impossible_budget_is_told_before_training(tmp_path: Path) -> None:
    settings = Structure(stage="structure", search={"speedup": 10_000})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no widths are within the budget"):
        try_structure(make(), settings, tmp_path)


def test_a_speedup_is_searched_and_every_round_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that takes a millisecond a million multiply-adds, and one more for a whole network."""

    def time_whole(self: budget.Clock, network: Network) -> float:
        """By the network's work alone."""
        self.baseline_ms = 1 + cost(self.baseline).macs / 1e6
        return 1 + cost(network).macs / 1e6

    monkeypatch.setattr(staircase, "time_layers", lambda shapes, **_: {s: s.macs / 1e6 for s in shapes})
    monkeypatch.setattr(budget.Clock, "time", time_whole)
    net = make("mnist", (1, 28, 28))
    small, details = prune(net, tmp_path, pruner="l1norm", search={"speedup": 1.5, "step": 16})
    told = details["search"]
    assert 1 <= len(told["rounds"]) <= 3
    assert all(r["predicted_ms"] > 0 and r["measured_ms"] > 0 for r in told["rounds"])
    assert told["baseline_ms"] == 1 + cost(net).macs / 1e6
    assert told["allowed_ms"] == pytest.approx(told["baseline_ms"] / 1.5)
    assert told["budget_met"]
    assert 0.7 * told["allowed_ms"] <= 1 + cost(small).macs / 1e6 <= told["allowed_ms"]
    assert list(tmp_path.glob("*.json"))  # the profile is kept


def test_a_networks_time_is_that_at_the_baselines_first_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment in which the machine is three times slower hits both, and is divided out."""
    milliseconds = {"baseline.onnx": 10.0, "network.onnx": 4.0}
    monkeypatch.setattr(budget, "export_onnx", lambda *_: None)
    clock = budget.Clock(make(), threads=1, batch=1)
    for slower in (1, 3):
        timed = given_times(lambda file, slower=slower: slower * milliseconds[file.name])  # type: ignore[misc]
        monkeypatch.setattr(budget, "benchmark", timed)
        assert clock.time(make()) == pytest.approx(4.0)
        assert clock.baseline_ms == pytest.approx(10.0)


def test_a_narrow_network_that_only_the_real_clock_finds_fast_meets_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers alone say that narrower is slower; of whole networks the narrowest alone is fast."""
    net, least = make("mnist", (1, 28, 28)), {}

    def time_alone(shapes: list[LayerShape], **_: object) -> dict[LayerShape, float]:
        """Slower the narrower."""
        return {shape: 1 + 1 / shape.inputs + 1 / shape.outputs for shape in shapes}

    def time_whole(self: budget.Clock, network: Network) -> float:
        """1 ms for the narrowest, 10 for all others."""
        self.baseline_ms = 10.0
        macs = cost(network).macs
        least["macs"] = min(macs, least.get("macs", macs))
        return 1.0 if macs < 0.2 * cost(net).macs else 10.0

    monkeypatch.setattr(staircase, "time_layers", time_alone)
    monkeypatch.setattr(budget.Clock, "time", time_whole)
    small, details = prune(net, tmp_path, pruner="l1norm", search={"speedup": 5, "step": 8})
    assert details["search"]["budget_met"]
    assert cost(small).macs == least["macs"]


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="give one budget"):
        Structure(stage="structure", search={"speedup": 2, "macs": 0.5})  # type: ignore[arg-type]


def test_search_beside_sparsities_is_refused() -> None:
    with pytest.raises(ValueError, match="search chooses the widths by itself"):
        Structure(stage="structure", search={"speedup": 2}, align=16)  # type: ignore[arg-type]


def stepped(shapes: set[LayerShape], **_: object) -> dict[LayerShape, float]:
    """A clock that climbs every 16 outputs."""
    return {shape: float(-(-shape.outputs // 16)) * (1 + shape.inputs / 1e6) for shape in shapes}


def test_align_auto_widens_to_the_end_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staircase, "time_layers", stepped)
    _, details = prune(make(), tmp_path, sparsity=0.4, align="auto", pruner="l1norm")
    assert details["aligned"] == {"conv1.0": [20, 32], "conv2.0": [39, 48]}
    assert details["widths"] == {"conv1.0": [32, 32], "conv2.0": [64, 48]}


def test_steps_are_the_widths_that_no_wider_one_beats() -> None:
    assert steps([4, 8, 12, 16, 20], [1.0, 1.0, 1.5, 1.01, 2.0]) == [16, 20]


def test_latencies_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def clock(shapes: list[LayerShape], **_: object) -> dict[LayerShape, float]:
        """Counts what is timed."""
        asked.append(len(shapes))
        return dict.fromkeys(shapes, 1.0)

    monkeypatch.setattr(staircase, "time_layers", clock)
    one, two = LayerShape(4, 8), LayerShape(4, 9)
    Staircase(tmp_path, Setting()).measure([one])
    assert Staircase(tmp_path, Setting()).measure([one, two]) == {one: 1.0, two: 1.0}
    assert asked == [1, 1]
    Staircase(tmp_path, Setting(threads=2)).measure([one])
    assert asked == [1, 1, 1]


def test_a_sweep_covers_every_distinct_layer_up_to_twice_its_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staircase, "time_layers", stepped)
    net = make("resnet20", (3, 16, 16), shortcut="B")
    rows = sweep(net, Staircase(tmp_path, Setting()), 8)
    assert sorted(n for row in rows for n in row["layers"]) == sorted(layer_shapes(net.module(), (3, 16, 16)))
    first = rows[0]
    assert first["layers"] == ["conv1"]
    assert first["widths"] == widths_of(16, 8) == [8, 16, 24, 32]
    assert first["steps"] == [16, 32]


def test_what_another_process_has_kept_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staircase, "time_layers", lambda shapes, **_: dict.fromkeys(shapes, 2.0))
    one, two, three = LayerShape(4, 8), LayerShape(4, 9), LayerShape(4, 10)
    mine, other = Staircase(tmp_path, Setting()), Staircase(tmp_path, Setting())
    other.measure([one, two])
    monkeypatch.setattr(staircase, "time_layers", lambda shapes, **_: dict.fromkeys(shapes, 1.0))
    mine.measure([two, three])
    assert Staircase(tmp_path, Setting()).known == {one.key(): 2.0, two.key(): 2.0, three.key(): 1.0}
