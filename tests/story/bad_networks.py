"""Networks and weights that cannot be used."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from story.cases import Case, Prepare, compress, train, with_file

HEAD = "import torch\nfrom torch import nn\n\n\n"

SMALL = """class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.out = nn.Linear(32 * 64, classes)

    def forward(self, x):
        {forward}


def net(input_shape, classes):
    return Net(classes)
"""

PLAIN = "return self.out(torch.flatten(torch.relu(self.second(self.conv(x))), 1))"
CONDITION = "x = self.conv(x)\n        if x.shape[2] > 4:\n            x = torch.relu(x)\n        " + PLAIN
CONDITION = CONDITION.replace("self.second(self.conv(x))", "self.second(x)")
NUMBER_IN_RESHAPE = PLAIN.replace(
    "torch.flatten(torch.relu(self.second(self.conv(x))), 1)",
    "torch.relu(self.second(self.conv(x))).view(-1, 2048)",
)
VALUES_DECIDE = "if x.sum() > 0:\n            x = -x\n        " + PLAIN
DROPOUT_STAYS = PLAIN.replace("self.out(", "self.out(nn.functional.dropout(").replace("1))", "1), 0.5))")
FROZEN = """

def frozen(classes):
    return Net(classes).requires_grad_(False)
"""
NO_SUCH_OPERATION = PLAIN.replace("torch.relu(", "torch.special.bessel_j0(")

PRUNED = [*train(), {"stage": "structure", "sparsity": 0.5}]


def own_network(forward: str, **changes: Any) -> Prepare:
    """compress with a network of the user's own, whose forward is given."""
    text = HEAD + SMALL.format(forward=forward)
    return with_file("mine.py", text, compress(model="mine.py:net", arguments={}, **changes))


def own_file(text: str, factory: str = "net") -> Prepare:
    """compress with a file of the user's own."""
    return with_file("mine.py", HEAD + text, compress(model=f"mine.py:{factory}", arguments={}))


class Hostile:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("ran",)


def weights(name: str, content: Any) -> Prepare:
    """compress with a load stage; content: tensors, or an object that torch.save or pickle writes."""

    def prepare(folder: Path) -> Any:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif name.endswith(".safetensors"):
            save_file(content, folder / name)
        else:
            torch.save(content, folder / name)
        return compress(stages=[{"stage": "load", "weights": name}])(folder)

    return prepare


OWN = "Where: mine.py"
CODE = ("the weights file holds code, not only tensors", "not executed", "safetensors")

CASES = [
    Case(
        "unknown network",
        2,
        ("no network called 'minst'", "setting `model`", "Did you mean 'mnist'?"),
        compress(model="minst"),
    ),
    Case(
        "arguments that the network does not take",
        2,
        ("does not take these arguments", "depth", "Where: mnist"),
        compress(arguments={"depth": 3}),
    ),
    Case(
        "own network: no such file",
        2,
        ("file is missing", "nowhere.py:net", "setting `model`"),
        compress(model="nowhere.py:net"),
    ),
    Case(
        "own network: no factory named",
        2,
        ("no factory is named", "path/to/file.py:factory"),
        with_file("mine.py", HEAD, compress(model="mine.py")),
    ),
    Case(
        "own network: syntax error",
        2,
        ("fails when imported", "SyntaxError", "line 5", OWN),
        own_file("def net(:\n"),
    ),
    Case(
        "own network: the import fails",
        2,
        ("fails when imported", "No module named 'no_such_library'", OWN),
        own_file("import no_such_library\n"),
    ),
    Case(
        "own network: wrong name of the factory",
        2,
        ("no factory called 'make_nat'", OWN, "Did you mean 'make_net'?"),
        own_file("def make_net(classes):\n    return nn.Identity()\n", "make_nat"),
    ),
    Case(
        "own network: the factory fails",
        2,
        ("factory failed", "ZeroDivisionError", OWN + ":net"),
        own_file("def net():\n    return 1 / 0\n"),
    ),
    Case(
        "own network: no module comes back",
        2,
        ("did not return a network", "Got int", "torch.nn.Module", OWN + ":net"),
        own_file("def net():\n    return 3\n"),
    ),
    Case(
        "own network: it ends the process",
        2,
        ("factory failed", "SystemExit", OWN + ":net"),
        own_file("def net():\n    raise SystemExit(0)\n"),
    ),
    Case(
        "own network: wrong number of outputs",
        2,
        ("outputs do not fit the classes", "(2, 7)", "(2, 10)", "mine.py:net"),
        own_file("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"),
    ),
    Case(
        "own network: two outputs",
        2,
        ("outputs do not fit the classes", "tuple", "mine.py:net"),
        own_network(PLAIN.replace("return ", "y = ") + "\n        return y, y"),
    ),
    Case(
        "own network: other images wanted",
        2,
        ("does not take these images", "1 channel, 8x8 pixels", "mine.py:net", "`data.image_size`"),
        own_file(
            "def net(classes):\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), "
            "nn.Linear(288, classes))\n"
        ),
    ),
    Case(
        "own network: forward fails",
        2,
        ("does not take these images", "NameError", "mine.py:net"),
        own_network("return self.out(nothing)"),
    ),
    Case(
        "own network: dropout is never off",
        2,
        ("another output each time", "after layer 'out'", "mine.py:net", "training=self.training"),
        own_network(DROPOUT_STAYS, stages=train()),
    ),
    Case(
        "own network: every parameter is frozen",
        2,
        ("no parameter that can be trained", "frozen", "stage `train`", "mine.py:frozen"),
        own_file((SMALL + FROZEN).format(forward=PLAIN), "frozen"),
    ),
    Case(
        "pruning a network with `if` on values",
        2,
        ("channels cannot be pruned", "cannot be exported", "Net.forward", "leave out the structure stage"),
        own_network(VALUES_DECIDE, stages=PRUNED),
    ),
    Case(
        "pruning when every layer is excluded",
        2,
        ("no layer whose channels could be pruned", "stage `structure`", "`exclude`"),
        compress(stages=[*train(), {"stage": "structure", "exclude": ["*"]}]),
    ),
    Case(
        "export of a network with `if` on values",
        2,
        ("cannot be exported to ONNX", "own forward", "mine.py:net", "torch.where"),
        own_network(VALUES_DECIDE, stages=train()),
    ),
    Case(
        "export of an operation ONNX does not have",
        2,
        ("cannot be exported to ONNX", "bessel_j0", "mine.py:net", "torch.nn layers"),
        own_network(NO_SUCH_OPERATION, stages=train()),
    ),
    Case(
        "layer pattern that matches nothing",
        2,
        ("no layer matches 'conv9'", "stage `sparsity`", "Did you mean conv"),
        compress(stages=[*train(), {"stage": "sparsity", "layers": ["conv9"]}]),
    ),
    Case(
        "weights: no such file",
        2,
        ("the weights are missing", "Where: nowhere.pt", "load stage"),
        compress(stages=[{"stage": "load", "weights": "nowhere.pt"}]),
    ),
    Case(
        "weights: a pickle with code in it",
        2,
        (*CODE, "Where: w.pt"),
        weights("w.pt", Hostile()),
        must_not_exist="ran",
    ),
    Case(
        "weights: a plain pickle with code in it",
        2,
        (*CODE, "Where: w.pth"),
        weights("w.pth", pickle.dumps(Hostile())),
        must_not_exist="ran",
    ),
    Case(
        "weights: code under the name .safetensors",
        2,
        ("the weights cannot be read", "Where: w.safetensors"),
        weights("w.safetensors", pickle.dumps(Hostile())),
        must_not_exist="ran",
    ),
    Case(
        "weights: a whole module",
        2,
        (*CODE, "Linear", "Where: w.pt"),
        weights("w.pt", torch.nn.Linear(2, 2)),
    ),
    Case(
        "weights: truncated",
        2,
        ("the weights cannot be read", "Where: w.pt"),
        weights("w.pt", b"PK\x03\x04 and no more"),
    ),
    Case(
        "weights: names of another network",
        2,
        ("do not belong to this network", "conv1.0.weight", "layer.weight", "Where: w.safetensors"),
        weights("w.safetensors", {"layer.weight": torch.ones(2)}),
    ),
    Case(
        "weights: no tensors in it",
        2,
        ("no state dict", "Got list", "Where: w.pt"),
        weights("w.pt", [1, 2, 3]),
    ),
]


def other_shapes(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A state dict of the recipe's network, some shapes of which are others."""
    from tersor.models.definition import build

    fresh = build("mnist", (1, 8, 8), 10, {"batch_norm": True})
    state = {k: v.clone().contiguous() for k, v in fresh.state_dict().items()}
    return {**state, **{k.replace("__", "."): torch.zeros(v) for k, v in shapes.items()}}


CASES += [
    Case(
        "weights: a kernel of another size",
        2,
        ("the kernel of layer 'conv1.0' differs", "(32, 1, 5, 5)", "Where: w.safetensors"),
        weights("w.safetensors", other_shapes(conv1__0__weight=(32, 1, 5, 5))),
    ),
    Case(
        "weights: widths that do not fit each other",
        2,
        ("do not fit", "Where: w.safetensors"),
        weights("w.safetensors", other_shapes(conv1__0__weight=(24, 1, 3, 3))),
    ),
    Case(
        "weights: another number of classes",
        2,
        ("outputs do not fit the classes", "(2, 7)", "(2, 10)", "Where: w.safetensors"),
        weights("w.safetensors", other_shapes(fc2__weight=(7, 128), fc2__bias=(7,))),
    ),
    Case(
        "weights: not a number",
        2,
        ("NaN", "Where: w.safetensors"),
        weights("w.safetensors", {**other_shapes(), "fc2.bias": torch.full((10,), torch.nan)}),
    ),
]
