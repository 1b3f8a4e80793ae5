"""The stage cache: whole or absent, locked, and honest about what the system refuses."""

import errno
import multiprocessing
from pathlib import Path

import pytest
from nets import blobs, make

from tersor.errors import BadInput, Busy, Unavailable
from tersor.files import digest_of, lock, read_json, replace_with_link, write_json, writing
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.metrics import StageMetrics
from tersor.pipeline.stages.run_folder import Run, new_contents, write_run
from tersor.pipeline.stages.store import StageResult, Store

DIGEST = digest_of({"a": 1})
METRICS = StageMetrics(
    name="train",
    stage="train",
    seconds=1.0,
    validation_accuracy_fraction=0.9,
    validation_top5_accuracy_fraction=1.0,
    validation_loss=0.1,
    parameters=10,
    weights=8,
    nonzero_weights=8,
    macs=100,
    effective_macs=100,
    onnx_bytes=40,
    gzip_bytes=30,
    zstd_bytes=30,
    xz_bytes=30,
    packed_bytes=20,
    entropy_bytes=20,
    details={},
)


def finished(store: Store) -> StageResult:
    with store.working_folder(DIGEST, lambda: None) as folder:
        make().save(folder / "network.safetensors")
        (folder / "model.onnx").write_bytes(b"onnx")
        (folder / "checkpoint.pt").write_bytes(b"left over")
        METRICS.write(folder / "metrics.json")
        return store.finish(DIGEST, folder)


def test_finished_stage_is_found_with_its_network_and_without_leftovers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store)
    found = store.find(DIGEST)
    assert found
    assert found.reused
    assert found.metrics == METRICS
    assert found.network().digest() == make().digest()
    assert sorted(p.name for p in found.folder.iterdir()) == [
        "metrics.json",
        "model.onnx",
        "network.safetensors",
        "sums.json",
    ]


def test_unknown_stage_is_not_found(tmp_path: Path) -> None:
    assert Store(tmp_path).find(DIGEST) is None


@pytest.mark.parametrize("name", ["network.safetensors", "model.onnx", "metrics.json"])
def test_damaged_stage_is_not_reused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    path = finished(store).folder / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.find(DIGEST) is None


def test_a_stage_that_cannot_be_read_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    folder = finished(store).folder

    def refuse(*_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("tersor.pipeline.stages.store.sha256_of", refuse)
        with pytest.raises(PermissionError):
            store.find(DIGEST)
    assert store.find(DIGEST) is not None
    assert folder.is_dir()


def test_a_damaged_stage_is_put_aside_and_the_last_one_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for content in (b"first", b"second"):
        finished(store).folder.joinpath("model.onnx").write_bytes(content)
        assert store.find(DIGEST) is None
    (aside,) = store.cache.glob("*.damaged")
    assert (aside / "model.onnx").read_bytes() == b"second"


def test_interrupted_work_is_kept_for_the_next_try(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def interrupted() -> None:
        with store.working_folder(DIGEST, lambda: None) as folder:
            (folder / "checkpoint.pt").write_bytes(b"epoch 3")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.find(DIGEST) is None
    with store.working_folder(DIGEST, lambda: None) as folder:
        assert (folder / "checkpoint.pt").read_bytes() == b"epoch 3"


def _hold(path: Path, ready, done) -> None:  # type: ignore[no-untyped-def]
    with lock(path, "it"):
        ready.set()
        done.wait(20)


def _finish_when_told(root: Path, ready, done) -> None:  # type: ignore[no-untyped-def]
    store = Store(root)
    with store.working_folder(DIGEST, lambda: None) as folder:
        ready.set()
        done.wait(20)
        for name in ("network.safetensors", "model.onnx", "metrics.json"):
            (folder / name).write_text("{}")
        store.finish(DIGEST, folder)


def test_stage_that_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_finish_when_told, args=(tmp_path, ready, done))
    process.start()
    assert ready.wait(20)
    store = Store(tmp_path)
    assert store.find(DIGEST) is None
    with store.working_folder(DIGEST, done.set):
        assert done.is_set()
        assert store.find(DIGEST) is not None
    process.join()
    assert not list((tmp_path / ".stages").glob("*.partial"))


def test_lock_of_another_process_is_busy_and_free_when_it_ends(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    path = tmp_path / "lock"
    process = context.Process(target=_hold, args=(path, ready, done))
    process.start()
    assert ready.wait(20)
    with (
        pytest.raises(Busy, match="another process is working on the run.*Wait for it") as told,
        lock(path, "the run"),
    ):
        pass
    assert told.value.exit_code == 75
    process.kill()
    process.join()
    with lock(path, "the run"):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full.*Free some space"),
        (errno.EROFS, "read-only disk"),
        (errno.EACCES, "may not be written"),
    ],
)
def test_refusals_of_the_system_are_told(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(Unavailable, match=words) as told, writing(tmp_path):
        raise OSError(number, "refused", str(tmp_path / "f"))
    assert told.value.exit_code == 4
    assert str(tmp_path / "f") in str(told.value)


def test_other_system_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError), writing(tmp_path):
        raise OSError(errno.EINTR, "interrupted")


def test_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(Unavailable, match="a file stands where a folder should be"):
        Store(tmp_path / "runs").run_folder("x")


def test_json_is_written_whole_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_json(path, {"a": [1, 2]})
    assert read_json(path, "it", "do") == {"a": [1, 2]}
    path.write_text("{")
    with pytest.raises(BadInput, match="the metrics is damaged.*m.json. Run again"):
        read_json(path, "the metrics", "Run again")
    with pytest.raises(BadInput, match="the metrics is missing"):
        read_json(tmp_path / "n.json", "the metrics", "Run again")


def test_stages_of_an_older_recipe_disappear_from_the_run(tmp_path: Path) -> None:
    result, folder = finished(Store(tmp_path)), tmp_path / "run"
    folder.mkdir()
    raw = {"name": "run", "model": "mnist", "stages": [{"stage": "train"}, {"stage": "vectors"}]}
    write_run(folder, Recipe.model_validate(raw), blobs(), [result, result])
    raw["stages"] = raw["stages"][:1]
    run = write_run(folder, Recipe.model_validate(raw), blobs(), [result])
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["01-train"]
    assert run.onnx("train").read_bytes() == run.onnx().read_bytes() == b"onnx"


def test_a_run_tells_its_stages_networks_and_what_it_was_made_by(tmp_path: Path) -> None:
    result, folder = finished(Store(tmp_path)), tmp_path / "run"
    folder.mkdir()
    recipe = Recipe.model_validate({"name": "run", "model": "mnist", "stages": [{"stage": "train"}]})
    write_run(folder, recipe, blobs(), [result])
    run = Run(folder)
    assert run.stages == (METRICS,)
    assert run.recipe == recipe
    assert run.baseline().digest() == run.network("train").digest() == make().digest()
    run.check_made_by(recipe)
    with pytest.raises(BadInput, match="other settings.*seed was 0, is 1"):
        run.check_made_by(recipe.model_copy(update={"seed": 1}))
    with pytest.raises(BadInput, match="no such stage. Got tune. Wanted train"):
        run.network("tune")
    with pytest.raises(BadInput, match="data have changed"):
        run.check_same_data(blobs(seed=1))


@pytest.mark.parametrize("text", ["{", "[]", '{"stages": ["01-train"]}'])
def test_a_run_with_damaged_metrics_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(BadInput, match="the run's metrics is damaged"):
        _ = Run(tmp_path).stages


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute(folder: Path) -> None:
        calls.append(folder)
        make().save(folder / "network.safetensors")
        (folder / "model.onnx").write_bytes(b"onnx")
        METRICS.write(folder / "metrics.json")

    first, second = (Store(tmp_path).cached(DIGEST, compute, lambda: None) for _ in range(2))
    assert (first.reused, second.reused, len(calls)) == (False, True, 1)


def test_run_keeps_its_files_when_the_next_one_fails(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"earlier": True})

    def failing() -> None:
        with new_contents(tmp_path) as new:
            write_json(new / "metrics.json", {})
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        failing()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert read_json(tmp_path / "metrics.json", "it", "do") == {"earlier": True}


def test_link_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    replace_with_link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_digest_depends_on_every_value_and_not_on_order() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
