"""What pruning did is told in sentences: asked, got, kept."""

from tersor.pipeline.show.pruned import pruned_told

DETAILS = {
    "asked_sparsity_fraction": 0.5,
    "achieved_sparsity_fraction": 0.36,
    "widths": {"a": [8, 4]},
    "parameters": [1000, 400],
    "macs": [5000, 2000],
    "not_pruned": {name: "operator 'roll'" for name in "bcdef"},
}


def test_asked_got_and_the_first_layers_that_kept_theirs_are_named() -> None:
    first, second = pruned_told([{"name": "narrow", "details": DETAILS}])
    assert first == (
        "narrow: 36.00 % of the channels went, 50.00 % were asked; parameters 1.00 k -> 400; "
        "multiply-adds 5.00 k -> 2.00 k."
    )
    assert second.startswith("narrow: 5 layers kept channels: b (operator 'roll'); c (")
    assert second.endswith("and 2 more, in metrics.json.")


def test_a_budget_asks_for_no_fraction_and_other_stages_say_nothing() -> None:
    searched = DETAILS | {"asked_sparsity_fraction": None, "not_pruned": {}}
    (only,) = pruned_told([{"name": "train", "details": {}}, {"name": "x", "details": searched}])
    assert "asked" not in only


def test_metrics_of_an_older_run_do_not_break_the_page() -> None:
    old = {"achieved_sparsity_fraction": 0.5, "widths": {}}
    assert pruned_told([{"name": "x", "details": old}]) == ["x: 50.00 % of the channels went."]
    assert pruned_told([{"name": "x", "details": {"achieved_sparsity_fraction": "?", "widths": 3}}]) == []
