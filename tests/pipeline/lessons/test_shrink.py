"""Channel by channel: the smallest goes, the rule ends a layer, every step is kept for the next run."""

from pathlib import Path

import pytest
from nets import blobs, make

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.lessons import shrink as shrinking
from tersor.pipeline.lessons.shrink import Bench, Shrinking, Shrunk, check_widths, shrink
from tersor.pipeline.lessons.shrink_run import line_of, parse_widths, shrink_markdown
from tersor.pipeline.recipe.recipe import DataSettings, Recipe, Train, Tune
from tersor.pipeline.stages.store import Store
from tersor.pipeline.training.fit import fit

DATA = blobs()


@pytest.fixture(scope="module")
def network() -> Network:
    start = make("mnist", classes=3, widths=(4, 6), hidden=8, batch_norm=True)
    how = Train(stage="train", epochs=3, batch_size=20, learning_rate=0.05)
    return fit(start, how, DATA, seed=0)[0]


def run(network: Network, runs: Path, **changes: object) -> Shrunk:
    recipe = Recipe(name="r", threads=1, model="mnist", data=DataSettings(), stages=[Train(stage="train")])
    base = {"widths": {"fc1": (7, 5)}, "tune": Tune(stage="tune", epochs=1), "max_drop": 1.0}
    how = Shrinking(**{**base, **changes})  # type: ignore[arg-type]
    return shrink(network, how, Bench(recipe, DATA, Store(runs)), lambda *_: None, lambda _: None)


def test_the_smallest_sums_of_squares_go_and_the_rest_is_rebuilt(network: Network, tmp_path: Path) -> None:
    found = run(network, tmp_path)
    weight, bias = network.tensors["fc1.weight"], network.tensors["fc1.bias"]
    sums = (weight.square().sum(1) + bias.square()).tolist()
    assert found.steps[0].removed == (sums.index(min(sums)),)
    assert [s.width for s in found.steps] == [7, 5]
    assert len(found.steps[1].removed) == 2
    assert found.network.tensors["fc1.weight"].shape[0] == 5
    assert all(s.proof_max_abs_diff < 1e-9 for s in found.steps)
    assert found.steps[0].parameters > found.steps[1].parameters


def test_each_step_starts_where_the_one_before_ended(network: Network, tmp_path: Path) -> None:
    found = run(network, tmp_path, widths={"conv1.0": (3,), "fc1": (7,)})
    assert found.steps[0].before == found.start
    assert found.steps[1].before == found.steps[0].after_tuning
    assert {k: found.network.tensors[k].shape[0] for k in ("conv1.0.weight", "fc1.weight")} == {
        "conv1.0.weight": 3,
        "fc1.weight": 7,
    }


def test_a_step_that_costs_too_much_is_not_kept_and_ends_its_layer(network: Network, tmp_path: Path) -> None:
    hopeless = Tune(stage="tune", epochs=1, learning_rate=1e-12)
    found = run(network, tmp_path, widths={"conv2.0": (1,), "fc1": (7,)}, tune=hopeless, max_drop=0.0)
    first, second = found.steps
    assert first.after_tuning[0] < first.before[0]
    assert not first.kept
    assert second.before == found.start
    assert found.network.tensors["conv2.0.weight"].shape[0] == 6


def test_a_drop_may_be_counted_from_the_start(network: Network, tmp_path: Path) -> None:
    """Both rules judge the same steps; from the start, small drops add up."""
    hopeless = Tune(stage="tune", epochs=1, learning_rate=1e-12)
    steps = {"conv2.0": (5, 4, 3, 2, 1)}
    all_of = run(network, tmp_path, widths=steps, tune=hopeless).steps
    drops = [s.before[0] - s.after_tuning[0] for s in all_of]
    allowed = max(drops)
    assert sum(d for d in drops) > allowed
    by_step = run(network, tmp_path, widths=steps, tune=hopeless, max_drop=allowed)
    by_start = run(network, tmp_path, widths=steps, tune=hopeless, max_drop=allowed, against="start")
    assert len(by_start.steps) <= len(by_step.steps) == 5
    assert not by_start.steps[-1].kept


def test_a_second_run_computes_nothing(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(network, tmp_path)
    monkeypatch.setattr(shrinking, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = run(network, tmp_path)
    assert again.steps == first.steps
    assert again.network.digest() == first.network.digest()


def test_an_interrupted_run_goes_on_to_the_same_network(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(network, tmp_path / "whole")
    calls = []

    def stops(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shrinking, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        run(network, tmp_path / "halves")
    assert run(network, tmp_path / "halves").network.digest() == whole.network.digest()
    assert len(calls) == 3  # the first step was not trained again


def test_every_width_is_visited_where_none_are_given(network: Network) -> None:
    assert check_widths(network, ["fc1", "conv1.0"], {"fc1": (6, 2)}) == {"fc1": (6, 2), "conv1.0": (3, 2, 1)}
    assert list(check_widths(network, [], {})) == ["conv1.0", "conv2.0", "fc1"]


@pytest.mark.parametrize("widths", [(8,), (7, 7), (5, 6), (3, 0)])
def test_widths_that_do_not_fall_are_told(network: Network, widths: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="widths of layer 'fc1' cannot be visited.*falling.*from 7 to 1"):
        check_widths(network, [], {"fc1": widths})


def test_layers_that_are_not_there_or_tied_are_told(network: Network) -> None:
    with pytest.raises(BadInput, match="no layer matches 'fc9'"):
        check_widths(network, ["fc9"], {})
    with pytest.raises(BadInput, match="'fc2' cannot be removed alone. Got its width is fixed by the net"):
        check_widths(network, ["fc2"], {})
    with pytest.raises(BadInput, match="no layer matches 'fc1'"):
        check_widths(network, ["conv1.0"], {"fc1": (3,)})


@pytest.mark.parametrize("text", ["fc1", "fc1=", "=3", "fc1=9,x"])
def test_widths_that_cannot_be_read_are_told(text: str) -> None:
    with pytest.raises(BadInput, match="widths cannot be read.*LAYER=WIDTH"):
        parse_widths(text)


def test_the_table_has_a_line_a_step_and_r3s_figures(network: Network, tmp_path: Path) -> None:
    found = run(network, tmp_path)
    lines = shrink_markdown(found).splitlines()
    assert sum(line.startswith("| fc1 |") for line in lines) == 2
    assert line_of(found.steps[0]).startswith("fc1 at 7: ")
    assert "10.06" not in shrink_markdown(found)  # R3's width of 99 was not visited
