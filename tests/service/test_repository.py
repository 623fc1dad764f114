import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest

from models.artifact import ArtifactError
from service import scan
from service.errors import NotFoundError, UnavailableError
from service.inference.batcher import RunLimits
from service.inference.session import Device, DeviceError
from service.model import load_model
from service.repository import Repository
from tests.model_files import write_formula_model
from training.publish import publish

pytestmark = pytest.mark.anyio

LIMITS = RunLimits(inline_seconds=8, run_rows=16, queued_rows=100, deadline_seconds=10)


def load(path, name, version):
    return load_model(path, name=name, version=version, device=Device("cpu", 1), limits=LIMITS)


def repository_of(path, **options):
    return Repository(path, load, **({"loaded_versions": 10, "rescan_seconds": 10.0} | options))


async def scanned(path, **options):
    repository = repository_of(path, **options)
    await repository.rescan()
    return repository


def write_version(repository, version, **facts):
    return write_formula_model(repository / "m" / str(version) / "model.onnx", **facts)


async def test_the_highest_version_is_the_default_and_each_can_be_asked_for(repository):
    for version in (2, 10):
        write_version(repository, version)
    models = await scanned(repository)
    assert models.model("m").version == 10
    assert models.model("m", version="2").version == 2
    assert models.waiting_for() is None


async def test_labels_name_versions(repository):
    write_version(repository, 2)
    (repository / "m" / "labels.json").write_text('{"stable": 1, "gone": 7}')
    models = await scanned(repository)
    assert models.model("m", label="stable").version == 1
    with pytest.raises(NotFoundError, match="has no label 'canary'; it has gone, stable"):
        models.model("m", label="canary")
    with pytest.raises(NotFoundError, match=r"has no version 7, which label 'gone' names; it has 1, 2"):
        models.model("m", label="gone")


async def test_a_label_whose_version_goes_is_told_once(repository, caplog):
    write_version(repository, 2)
    (repository / "m" / "labels.json").write_text('{"stable": 2, "old": 1}')
    models = await scanned(repository)
    told = "label stable of model m names version 2, which is not there"
    assert told not in caplog.text
    shutil.rmtree(repository / "m" / "2")
    await models.rescan()
    await models.rescan()
    assert caplog.text.count("which is not there") == caplog.text.count(told) == 1


@pytest.mark.parametrize("text", ["{", "[1]", '{"stable": "1"}', '{"stable": true}', '{"a b": 1}', '{"stable": 0}'])
async def test_a_bad_labels_file_leaves_the_labels_as_they_were_and_is_told(repository, text):
    labels = repository / "m" / "labels.json"
    labels.write_text('{"stable": 1}')
    models = await scanned(repository)
    labels.write_text(text)
    await models.rescan()
    assert models.model("m", label="stable").version == 1
    assert str(labels) in models.entry("m").labels_problem
    labels.write_text('{"canary": 1}')
    await models.rescan()
    assert (models.entry("m").labels, models.entry("m").labels_problem) == ({"canary": 1}, None)


@pytest.mark.parametrize("version", ["0", "01", "x", "-1", "1.0", "٣", ""])
async def test_a_version_is_a_whole_number_from_1(repository, version):
    models = await scanned(repository)
    with pytest.raises(NotFoundError, match="is no version; versions are whole numbers from 1"):
        models.model("m", version=version)


async def test_an_unknown_model_is_told_which_there_are(repository):
    with pytest.raises(NotFoundError, match="there is no model 'x'; there is m"):
        (await scanned(repository)).model("x")


async def test_a_bad_new_version_leaves_the_old_one_serving_and_its_reason_is_kept(repository, caplog):
    models = await scanned(repository)
    bad = repository / "m" / "2" / "model.onnx"
    bad.parent.mkdir()
    bad.write_bytes((repository / "m" / "1" / "model.onnx").read_bytes()[:-100])
    with caplog.at_level(logging.ERROR):
        await models.rescan()
    assert models.model("m").version == 1
    assert models.waiting_for() is None
    assert "truncated" in models.entry("m").failures[2]
    assert "version 2 is refused" in caplog.text
    assert "(version 1 serves)" in caplog.text
    with pytest.raises(UnavailableError, match=r"version 2 of model 'm' cannot be served: .*truncated"):
        models.model("m", version="2")
    caplog.clear()
    await models.rescan()
    assert not caplog.records  # a file that did not change is not tried again
    write_version(repository, 2)
    await models.rescan()
    assert models.model("m").version == 2
    assert not models.entry("m").failures


async def test_what_serves_beside_a_bad_version_is_told_once_all_are_loaded(repository, caplog):
    write_version(repository, 2)
    (repository / "m" / "2" / "model.onnx").write_bytes(b"no model")
    await scanned(repository)
    assert [record.message.split("(")[-1] for record in caplog.records if "is refused" in record.message] == [
        "version 1 serves)"
    ]


async def test_a_file_changed_in_place_is_read_again_and_a_bad_one_leaves_the_old_model(repository):
    models = await scanned(repository)
    old = models.model("m")
    (repository / "m" / "1" / "model.onnx").write_bytes(b"nonsense")
    await models.rescan()
    assert models.model("m", version="1") is old
    assert "is not an ONNX file" in models.entry("m").failures[1]
    write_version(repository, 1, rows=50)
    await models.rescan()
    assert models.model("m").manifest.calibration.rows == 50


async def test_a_model_whose_golden_rows_differ_is_refused(repository, monkeypatch):
    def disagree(*_, **__):
        raise ArtifactError("off by 3")

    monkeypatch.setattr("service.model.check_golden", disagree)
    models = await scanned(repository)
    assert models.entry("m").failures == {1: "off by 3"}
    assert models.waiting_for() == "model 'm' has no version that can be served; version 1: off by 3"
    with pytest.raises(UnavailableError, match="off by 3"):
        models.model("m")


async def test_an_unforeseen_problem_with_one_file_does_not_stop_the_others(repository, caplog):
    write_formula_model(repository / "n" / "1" / "model.onnx")

    def broken(path, name, version):
        if name == "m":
            raise RuntimeError("surprise")
        return load(path, name, version)

    models = Repository(repository, broken, loaded_versions=10, rescan_seconds=10.0)
    await models.rescan()
    assert models.model("n").version == 1
    assert "RuntimeError: surprise" in models.entry("m").failures[1]


async def test_a_removed_version_and_a_removed_model_disappear(repository):
    write_version(repository, 2)
    models = await scanned(repository)
    shutil.rmtree(repository / "m" / "2")
    await models.rescan()
    assert models.model("m").version == 1
    with pytest.raises(NotFoundError, match="has no version 2"):
        models.model("m", version="2")
    shutil.rmtree(repository / "m")
    await models.rescan()
    with pytest.raises(NotFoundError, match="there is no model 'm'; there is no model yet"):
        models.model("m")


async def test_a_bad_version_that_is_removed_is_forgotten_even_where_all_that_failed_is_tried_again(repository):
    write_version(repository, 3)
    (repository / "m" / "2").mkdir()
    (repository / "m" / "2" / "model.onnx").write_bytes(b"nonsense")
    models = await scanned(repository)
    assert set(models.entry("m").failures) == {2}
    shutil.rmtree(repository / "m" / "2")
    await models.load("m")
    assert not models.entry("m").failures
    with pytest.raises(NotFoundError, match="has no version 2; it has 1, 3"):
        models.model("m", version="2")


async def test_only_the_newest_and_the_labelled_versions_are_kept_loaded(repository):
    for version in (2, 3, 4):
        write_version(repository, version)
    (repository / "m" / "labels.json").write_text('{"stable": 1}')
    models = await scanned(repository, loaded_versions=2)
    assert sorted(models.entry("m").served) == [1, 3, 4]
    with pytest.raises(NotFoundError, match=r"version 2 of model 'm' is not loaded: only the newest 2 .*loaded_versions"):
        models.model("m", version="2")
    (repository / "m" / "labels.json").write_text('{"stable": 2}')
    await models.rescan()
    assert sorted(models.entry("m").served) == [2, 3, 4]


async def test_what_is_no_model_is_left_out(repository, caplog):
    (repository / ".git").mkdir()
    (repository / "a b").mkdir()
    (repository / "empty" / "1").mkdir(parents=True)
    for name in ("01", "v2", "unfinished", ".hidden"):
        (repository / "m" / name).mkdir()
    for name in ("01", "v2", ".hidden"):
        (repository / "m" / name / "model.onnx").touch()
    (repository / "m" / "notes.txt").touch()
    (repository / "file").touch()
    with caplog.at_level(logging.WARNING):
        models = await scanned(repository)
        await models.rescan()
    assert list(models.entries) == ["m"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{str(repository / 'a b')!r} is left out: a model's name is letters, digits, '.', '_' and '-'",
        f"{str(repository / 'm' / '01')!r} is left out: a version is a whole number from 1, such as 3",
        f"{str(repository / 'm' / 'v2')!r} is left out: a version is a whole number from 1, such as 3",
    ]


async def test_an_outage_of_the_file_system_takes_no_model_away(repository, monkeypatch):
    models = await scanned(repository)

    def outage(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("service.scan._folders", outage)
    await models.rescan()
    assert models.model("m").version == 1


async def test_a_folder_that_cannot_be_told_from_a_file_takes_no_model_away(repository, monkeypatch):
    models = await scanned(repository)

    def outage(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(type(repository), "is_dir", outage)
    await models.rescan()
    assert models.model("m").version == 1


async def test_a_file_that_could_not_be_read_is_tried_again(repository, caplog):
    attempts = []

    def flaky(path, name, version):
        attempts.append(version)
        if len(attempts) < 4:
            raise ArtifactError("cannot be read (Input/output error)") from OSError(5, "Input/output error")
        return load(path, name, version)

    models = Repository(repository, flaky, loaded_versions=10, rescan_seconds=10.0)
    for _ in range(3):
        await models.rescan()
        assert "Input/output error" in models.entry("m").failures[1]
    assert caplog.text.count("version 1 is refused") == 1
    for _ in range(2):
        await models.rescan()
    assert models.model("m").version == 1
    assert not models.entry("m").failures
    assert len(attempts) == 4


async def test_a_repository_that_is_moved_away_and_back_is_served_all_the_while(repository, caplog):
    models, away = await scanned(repository), repository.with_name("away")
    repository.rename(away)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await models.rescan()
            assert models.model("m").version == 1
            assert models.waiting_for() is None
        assert caplog.text.count(f"cannot be read ({repository} is gone); what is loaded goes on serving") == 1
        write_version(away, 2)
        away.rename(repository)
        await models.rescan()
    assert "the model repository can be read again" in caplog.text
    assert models.model("m").version == 2


async def test_an_empty_folder_where_a_volume_was_mounted_takes_no_model_away(repository):
    models, away = await scanned(repository), repository.with_name("away")
    repository.rename(away)
    repository.mkdir()
    for _ in range(2):
        await models.rescan()
        assert models.model("m").version == 1
    write_formula_model(repository / "n" / "1" / "model.onnx")
    await models.rescan()  # not empty: it is what was meant
    assert set(models.entries) == {"n"}
    shutil.rmtree(repository / "n")
    await models.rescan()
    assert not models.entries


async def test_a_repository_that_goes_while_it_is_read_takes_no_model_away(repository, monkeypatch):
    models, folders = await scanned(repository), scan._folders

    def going(path):
        found = folders(path)
        if repository.exists():
            repository.rename(repository.with_name("away"))
        return found

    monkeypatch.setattr(scan, "_folders", going)
    await models.rescan()
    assert models.model("m").version == 1


async def test_what_is_waited_for_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        models = await scanned(tmp_path / "nowhere")
        await models.rescan()
    assert models.waiting_for().endswith("nowhere does not exist yet; waiting for <name>/<version>/model.onnx")
    assert len(caplog.records) == 1
    (tmp_path / "nowhere").mkdir()
    assert "has no model yet" in models.waiting_for()


def answering(models):
    return {name: (dict(entry.served), entry.labels) for name, entry in models.entries.items()}


@contextlib.asynccontextmanager
async def watching(repository, **options):
    """A watched repository, and a function that waits until it has changed once more."""
    models = repository_of(repository, **options)
    changed = asyncio.Event()
    rescan = models.rescan

    async def noted():
        before = answering(models)
        await rescan()
        if answering(models) != before:
            changed.set()

    models.rescan = noted
    task = asyncio.create_task(models.watch())

    async def until_changed():
        await asyncio.wait_for(changed.wait(), timeout=20)
        changed.clear()

    try:
        yield models, until_changed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_published_version_is_taken_in_as_it_comes(repository, tmp_path):
    write_formula_model(tmp_path / "new.onnx")
    async with watching(repository, rescan_seconds=0.2) as (models, until_changed):
        await until_changed()
        assert models.model("m").version == 1
        publish(tmp_path / "new.onnx", repository, name="m")
        await until_changed()
        assert models.model("m").version == 2
        (repository / "m" / "labels.json").write_text(json.dumps({"stable": 1}))
        await until_changed()
        assert models.model("m", label="stable").version == 1


async def test_a_repository_that_is_made_later_or_made_anew_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr("service.repository._MISSING_FOLDER_SECONDS", 0.05)
    path = tmp_path / "later"
    async with watching(path, rescan_seconds=0.2) as (models, until_changed):
        write_version(path, 1)
        await until_changed()
        assert models.model("m").version == 1
        shutil.rmtree(path)
        write_version(path, 3)
        await until_changed()
        assert models.model("m").version == 3
        assert set(models.entry("m").served) == {3}


async def test_a_file_system_that_cannot_be_watched_is_read_now_and_then(repository, monkeypatch, caplog):
    def no_watches(*_, **__):
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr("service.repository.awatch", no_watches)
    async with watching(repository, rescan_seconds=0.05) as (models, until_changed):
        await until_changed()
        write_version(repository, 2)
        await until_changed()
        assert models.model("m").version == 2
    assert "OS file watch limit reached" in caplog.text


async def test_refused_versions_take_no_good_ones_place(repository):
    write_version(repository, 2)
    models = await scanned(repository, loaded_versions=1)
    for version in (3, 4):
        (repository / "m" / str(version)).mkdir()
        (repository / "m" / str(version) / "model.onnx").write_bytes(b"junk")
    await models.rescan()
    assert models.model("m").version == 2
    assert set(models.entry("m").failures) == {3, 4}
    write_version(repository, 5)
    await models.rescan()
    assert models.model("m").version == 5
    assert set(models.entry("m").served) == {5}


@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "zeros"])
async def test_what_is_no_file_is_refused_and_other_models_go_on(repository, kind):
    path = repository / "odd" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to("model.onnx")
        case "device":
            path.symlink_to("/dev/zero")
        case "zeros":
            path.write_bytes(bytes(50_000_000))
    models = await scanned(repository)
    assert models.model("m").version == 1
    assert re.search("no regular file|cannot be read|not an ONNX file", models.entry("odd").failures[1])


@pytest.mark.parametrize("place", ["x", "m/9", "m/unloaded", "m/9/model.onnx"])
async def test_a_link_to_a_name_that_is_too_long_holds_up_no_other_model(repository, place):
    models = await scanned(repository)
    (repository / place).parent.mkdir(exist_ok=True)
    (repository / place).symlink_to("a" * 300)
    write_formula_model(repository / "new" / "1" / "model.onnx")
    await models.rescan()
    assert models.model("new").version == 1
    if place != "m/unloaded":
        assert models.model("m").version == 1


async def test_a_model_is_not_told_to_be_unloaded_while_the_repository_cannot_be_read(repository, monkeypatch):
    models = await scanned(repository)

    def fail(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(scan, "_folders", fail)
        for change in (models.unload, models.load):
            with pytest.raises(UnavailableError, match="the repository cannot be read, so 'm' stays as it is for now"):
                await change("m")
            assert models.model("m").version == 1
    await models.load("m")
    (repository / "README.txt").write_text("no model")
    with pytest.raises(NotFoundError, match=r"there is no model 'README\.txt'"):
        await models.load("README.txt")


async def test_labels_nested_too_deeply_are_told(repository):
    (repository / "m" / "labels.json").write_text("[" * 100_000)
    models = await scanned(repository)
    assert "cannot be read" in models.entry("m").labels_problem


async def test_labels_that_are_no_file_are_told(repository):
    os.mkfifo(repository / "m" / "labels.json")
    models = await scanned(repository)
    assert "no regular file" in models.entry("m").labels_problem


async def test_a_folder_that_may_not_be_read_stays_as_it_was_and_holds_up_no_other(repository, monkeypatch, caplog):
    models = await scanned(repository)
    write_formula_model(repository / "n" / "1" / "model.onnx")
    (repository / "lost+found").mkdir()
    iterdir, locked = type(repository).iterdir, {"m"}

    def guarded(path):
        if path.name in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(type(repository), "iterdir", guarded)  # root may read all
    for _ in range(3):
        await models.rescan()
    assert (models.model("m").version, models.model("n").version) == (1, 1)
    assert caplog.text.count("m cannot be read, and stays as it was: [Errno 13]") == 1
    locked.clear()
    shutil.rmtree(repository / "m")
    await models.rescan()
    assert set(models.entries) == {"n"}


async def test_a_repository_that_may_not_be_read_is_what_is_waited_for(repository, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(repository), "iterdir", denied)
    models = await scanned(repository)
    assert f"{repository} cannot be read ([Errno 13] Permission denied" in models.waiting_for()


async def test_a_model_may_be_loaded_again_while_its_file_is_looked_at(repository, monkeypatch):
    models = repository_of(repository)

    def unreadable(path, name, version):
        models.entries["m"].signatures.clear()  # what `load` does, beside a scan
        raise ArtifactError("cannot be read") from OSError()

    await models.rescan()
    models._load = unreadable
    write_version(repository, 2)
    await models.rescan()
    assert models.entries["m"].failures[2] == "cannot be read"


async def test_a_file_of_the_same_size_and_date_in_the_same_place_is_another(repository):
    path = repository / "m" / "1" / "model.onnx"
    os.utime(path, ns=(0, 0))
    models = await scanned(repository)
    before, data = models.model("m"), path.read_bytes()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(0, 0))
    await models.rescan()
    assert models.model("m") is not before


async def test_load_tries_again_what_failed_in_every_process(repository):
    trouble = True

    def loading(path, name, version):
        if trouble:
            raise DeviceError("out of memory")
        return load(path, name, version)

    own, other = [Repository(repository, loading, loaded_versions=10, rescan_seconds=10) for _ in range(2)]
    for models in (own, other):
        await models.rescan()
        assert models.entry("m").failures == {1: "out of memory"}
    trouble = False
    await other.rescan()
    assert other.entry("m").failures == {1: "out of memory"}, "nothing asks for it"
    await own.load("m")
    await other.rescan()
    assert own.model("m").version == other.model("m").version == 1


async def test_load_tries_again_in_a_folder_that_cannot_be_written(repository, monkeypatch):
    trouble = True

    def loading(path, name, version):
        if trouble:
            raise DeviceError("out of memory")
        return load(path, name, version)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    os.utime(repository / "m", ns=(0, 0))
    models = Repository(repository, loading, loaded_versions=10, rescan_seconds=10)
    await models.rescan()
    trouble = False
    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    await models.load("m")
    assert models.model("m").version == 1
    (repository / "m" / "unloaded").touch()
    with pytest.raises(UnavailableError, match="the repository cannot be written, so 'm' stays as it is"):
        await models.load("m")


async def test_a_new_model_that_cannot_be_served_does_not_make_a_ready_service_unready(repository):
    models = await scanned(repository)
    bad = repository / "new" / "1" / "model.onnx"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no model")
    await models.rescan()
    assert models.entry("new").failures
    assert models.waiting_for() is None
    assert "model 'new' has no version" in (await scanned(repository)).waiting_for(), "one that starts waits for all"
    write_formula_model(bad)
    await models.rescan()
    assert models.model("new").version == 1


async def test_nothing_more_is_loaded_once_the_service_ends(repository):
    write_formula_model(repository / "n" / "1" / "model.onnx")
    write_version(repository, 2)
    loaded = []

    def loading(path, name, version):
        loaded.append(f"{name} {version}")
        return load(path, name, version)

    models = Repository(repository, loading, loaded_versions=10, rescan_seconds=10, stopping=lambda: bool(loaded))
    await models.rescan()
    assert loaded == ["m 2"]
