"""The table of costs: layers add up, changes show, and nothing is counted twice."""

import torch
from nets import make

from tersor.models.cost import cost
from tersor.models.network import Network
from tersor.pipeline.lessons.cost_table import as_json, cost_markdown
from tersor.pipeline.structure.one_layer import remove_channels, wirings


def narrowed() -> tuple[Network, Network]:
    network = make("mnist", (1, 12, 12), batch_norm=True)
    return network, remove_channels(network, wirings(network)[0]["conv1.0"], range(16))


def test_the_layers_training_memory_adds_up_to_the_networks() -> None:
    counted = cost(narrowed()[0], batch=7)
    assert sum(r.training_memory_bytes(7) for r in counted.layers) == counted.training_memory_bytes
    assert sum(r.parameters for r in counted.layers) == counted.parameters


def test_a_layers_inference_memory_is_its_parameters_and_one_pair() -> None:
    row = next(r for r in cost(narrowed()[0]).layers if r.name == "conv2.0")
    pair = 32 * 10 * 10 + 64 * 8 * 8
    assert row.pair == pair
    assert row.inference_memory_bytes(3) == 4 * (64 * 32 * 9 + 3 * pair)


def test_bits_count_for_weights_alone() -> None:
    network = make("fashion", (1, 12, 12))
    row, packed = (cost(network, bits=b).layers[0] for b in (32, 4))
    saved = row.weights * 28 // 8
    assert row.inference_memory_bytes(1) - packed.inference_memory_bytes(1) == saved


def test_what_changed_shows_and_what_did_not_does_not() -> None:
    before, after = map(cost, narrowed())
    lines = {line.split(" | ")[0].strip("| "): line for line in cost_markdown(before, after).splitlines()}
    assert "32x10x10 → 16x10x10" in cost_markdown(before, after)
    assert "→" not in lines["fc1"]
    total = f"{before.macs:,} → {after.macs:,}"
    assert total in cost_markdown(before, after)


def test_zeros_show_beside_the_weights() -> None:
    network = make("fashion", (1, 12, 12))
    tensors = {k: v.clone() for k, v in network.tensors.items()}
    tensors["fc1.weight"][:, ::2] = 0.0
    before, after = cost(network), cost(network.with_tensors(tensors))
    all_of = tensors["fc1.weight"].numel()
    assert f"{all_of:,} → {all_of // 2:,}" in cost_markdown(before, after)


def test_json_has_totals_and_each_layers_memory() -> None:
    before, after = map(cost, narrowed())
    told = as_json(before, after)
    assert told["after"]["macs"] == after.macs
    row = told["before"]["layers"][0]
    assert row["training_memory_bytes"] == before.layers[0].training_memory_bytes(1)
    assert {"parameters", "inference_memory_bytes", "flops", "pair"} <= set(row)


def test_a_module_without_counted_layers_costs_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "net.py"
    source.write_text("from torch import nn\ndef net(input_shape, classes):\n    return nn.Flatten()\n")
    assert cost(make(f"{source}:net", (1, 2, 2), 4)).peak_pair == 0
    assert torch.is_grad_enabled()
