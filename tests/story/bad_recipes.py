"""Recipes that are wrong: keys, kinds, types, values, files."""

from story.cases import Case, compress, deploy, train, with_file

BROKEN_YAML = "name: tiny\nstages: [{stage: train\n"

CASES = [
    Case(
        "unknown key in a stage",
        2,
        ("unknown key 'epoch'", "tiny.yaml, stages.0.epoch", "Did you mean 'epochs'?"),
        compress(stages=[{"stage": "train", "epoch": 3}]),
    ),
    Case(
        "unknown key at the top",
        2,
        ("unknown key 'gate'", "tiny.yaml", "Did you mean 'gates'?"),
        compress(gate={"max_bytes": 1}),
    ),
    Case(
        "unknown key in a section",
        2,
        ("unknown key 'max_byte'", "gates.max_byte", "Did you mean 'max_bytes'?"),
        compress(gates={"max_byte": 1}),
    ),
    Case(
        "unknown kind of stage",
        2,
        ("there is no stage 'sparsify'", "stages.1", "Did you mean 'sparsity'?"),
        compress(stages=[*train(), {"stage": "sparsify"}]),
    ),
    Case(
        "stage without a kind",
        2,
        ("does not say what it is", "`stage:` and one of train, load", "stages.0"),
        compress(stages=[{"epochs": 1}]),
    ),
    Case(
        "wrong type",
        2,
        ("'many'", "valid integer", "stages.0.epochs"),
        compress(stages=train(epochs="many")),
    ),
    Case(
        "value out of range",
        2,
        ("Got 1.5", "less than 1", "stages.1.sparsity"),
        compress(stages=[*train(), {"stage": "structure", "sparsity": 1.5}]),
    ),
    Case(
        "no stages",
        2,
        ("Got []", "at least 1", "stages"),
        compress(stages=[]),
    ),
    Case(
        "first stage does not train",
        2,
        ("the first stage must be `train` or `load`", "stages"),
        compress(stages=[{"stage": "sparsity"}]),
    ),
    Case(
        "two stages of one name",
        2,
        ("two stages are called tune", "`name:`"),
        compress(stages=[*train(), {"stage": "tune"}, {"stage": "tune"}]),
    ),
    Case(
        "name that leaves the folder",
        2,
        ("'../escape'", "name"),
        with_file(
            "bad.yaml",
            "name: ../escape\nmodel: mnist\nstages: [{stage: train}]\n",
            lambda _: ["compress", "bad.yaml"],
        ),
    ),
    Case(
        "recipe missing",
        2,
        ("the recipe is missing", "recipes/tinny.yaml", "Did you mean recipes/tiny.yaml?"),
        with_file("recipes/tiny.yaml", "", lambda _: ["compress", "recipes/tinny.yaml"]),
    ),
    Case(
        "base missing",
        2,
        (
            "the base of the recipe is missing",
            "Got tinny.yaml",
            "part.yaml, base",
            "Did you mean 'tiny.yaml'?",
        ),
        with_file(
            "part.yaml",
            "base: tinny.yaml\n",
            with_file("tiny.yaml", "name: tiny\n", lambda _: ["compress", "part.yaml"]),
        ),
    ),
    Case(
        "recipe that is its own base",
        2,
        ("leads back", "Got part.yaml -> part.yaml", "part.yaml, base"),
        with_file("part.yaml", "base: part.yaml\n", lambda _: ["compress", "part.yaml"]),
    ),
    Case(
        "recipe is a folder",
        2,
        ("the recipe is missing", "Where: runs"),
        lambda _: ["compress", "runs"],
    ),
    Case(
        "broken YAML",
        2,
        ("not readable as YAML", "line 3", "Where: broken.yaml"),
        with_file("broken.yaml", BROKEN_YAML, lambda _: ["compress", "broken.yaml"]),
    ),
    Case(
        "YAML that would run code",
        2,
        ("not readable as YAML", "python/object/apply", "Where: hostile.yaml"),
        with_file(
            "hostile.yaml",
            "name: !!python/object/apply:os.mkdir [ran]\n",
            lambda _: ["compress", "hostile.yaml"],
        ),
        must_not_exist="ran",
    ),
    Case(
        "recipe is a list",
        2,
        ("no mapping", "Got list", "Where: list.yaml"),
        with_file("list.yaml", "- train\n", lambda _: ["compress", "list.yaml"]),
    ),
    Case(
        "recipe is no text",
        2,
        ("not readable as YAML", "Where: binary.yaml"),
        with_file("binary.yaml", b"\xff\xfe\x00name", lambda _: ["compress", "binary.yaml"]),
    ),
    Case(
        "section that is no section",
        2,
        ("Got 'digits'", "Where: tiny.yaml, data"),
        compress(data="digits"),
    ),
    Case(
        "--set without a value",
        2,
        ("an override cannot be read", "name.setting=value"),
        compress("--set", "seed"),
    ),
    Case(
        "--set of an unknown stage",
        2,
        ("nothing in the recipe is called 'trian'", "Did you mean 'train'?"),
        compress("--set", "trian.epochs=1"),
    ),
    Case(
        "--set of an unknown setting",
        2,
        ("unknown key 'epochz'", "Did you mean 'epochs'?"),
        compress("--set", "train.epochz=1"),
    ),
    Case(
        "--set into something without settings",
        2,
        ("'model' has no settings of its own", "Got 'mnist'", "--set model.x=1"),
        compress("--set", "model.x=1"),
    ),
    Case(
        "unknown option",
        2,
        ("No such option: --epochs", "Try `tersor compress --help`"),
        compress("--epochs", "3"),
    ),
    Case(
        "unknown command",
        2,
        ("No such command 'compres'", "Did you mean 'compress'?"),
        lambda _: ["compres"],
    ),
    Case(
        "deploy with other settings than the run's",
        2,
        ("other settings than this recipe's", "Got seed was 0, is 1", "runs/tiny", "Run `tersor compress`"),
        deploy(seed=1),
    ),
    Case(
        "deploy without a run",
        2,
        ("run 'other' is not finished", "runs/other/metrics.json", "Run `tersor compress`"),
        deploy("--set", "name=other"),
    ),
]
