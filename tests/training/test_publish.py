import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.artifact import ArtifactError, read_manifest
from tests.model_files import write_formula_model
from training import publish as module
from training.publish import publish, versions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("publish") / "model.onnx"
    write_formula_model(path)
    return path


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_versions_count_from_one(model, tmp_path):
    paths = [publish(model, tmp_path / "repository", name="sine") for _ in range(3)]
    assert paths == [tmp_path / "repository" / "sine" / str(version) / "model.onnx" for version in (1, 2, 3)]
    assert paths[2].read_bytes() == model.read_bytes()
    assert entries(tmp_path / "repository" / "sine") == ["1", "2", "3"]


def test_the_next_version_is_one_above_the_highest(model, tmp_path):
    for name in ("2", "10", "0", "03", "labels.json", "12.old"):
        (tmp_path / "sine" / name).mkdir(parents=True)
    assert versions(tmp_path / "sine") == [2, 10]
    assert publish(model, tmp_path, name="sine").parent.name == "11"


def test_a_version_that_was_removed_is_not_made_again_while_a_label_names_it(model, tmp_path):
    for _ in range(3):
        publish(model, tmp_path, name="sine")
    (tmp_path / "sine" / "labels.json").write_text('{"old": 1, "stable": 3}')
    shutil.rmtree(tmp_path / "sine" / "3")
    assert publish(model, tmp_path, name="sine").parent.name == "4"


@pytest.mark.parametrize(
    "labels", ["{", "[7]", '{"a": "7", "b": true, "c": -7, "d": 7.0}', '{"a": 1' + "0" * 5000 + "}", "[" * 100_000]
)
def test_labels_that_name_no_version_are_passed_over(model, tmp_path, labels):
    (tmp_path / "sine").mkdir()
    (tmp_path / "sine" / "labels.json").write_text(labels)
    assert publish(model, tmp_path, name="sine").parent.name == "1"


def test_models_have_versions_of_their_own(model, tmp_path):
    assert [publish(model, tmp_path, name=name).parent.name for name in ("a", "b", "a")] == ["1", "1", "2"]


def test_a_service_of_another_user_may_read_what_is_published(model, tmp_path):
    path = publish(model, tmp_path, name="sine")
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", "a\\b", ".hidden", "-x", "_x", "a b", "a\n", "ä", "x" * 101, "a%2Fb"]
)
def test_a_name_that_is_not_safe_is_refused_and_touches_nothing(model, tmp_path, name):
    with pytest.raises(ArtifactError, match="use up to 100 letters, digits"):
        publish(model, tmp_path / "repository", name=name)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"x,y\n1,2\n"])
def test_a_bad_file_is_named_publishes_nothing_and_leaves_no_folder(tmp_path, data):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"^{re.escape(str(bad))}: (is empty|is not an ONNX file)$"):
        publish(bad, tmp_path / "repository", name="sine")
    assert entries(tmp_path / "repository") == []


def test_a_model_that_does_not_repeat_its_golden_rows_is_not_published(model, tmp_path, monkeypatch):
    publish(model, tmp_path, name="sine")
    monkeypatch.setattr("models.artifact.session_run", lambda session: lambda x, coverage: {})
    with pytest.raises(ArtifactError, match="has no output"):
        publish(model, tmp_path, name="sine")
    assert entries(tmp_path / "sine") == ["1"]


def test_a_bad_file_leaves_the_versions_there_are(model, tmp_path):
    publish(model, tmp_path / "repository", name="sine")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="is truncated"):
        publish(cut, tmp_path / "repository", name="sine")
    assert entries(tmp_path / "repository" / "sine") == ["1"]


@pytest.mark.parametrize(("source", "reason"), [("none.onnx", "No such file or directory"), (".", "Is a directory")])
def test_a_source_that_cannot_be_read_is_refused_and_leaves_no_folder(tmp_path, source, reason):
    with pytest.raises(ArtifactError, match=rf"cannot be read \({reason}\)"):
        publish(tmp_path / source, tmp_path / "repository", name="sine")
    assert entries(tmp_path / "repository") == []


def test_the_report_beside_a_model_travels_with_it(model, tmp_path):
    source = tmp_path / "energy.v2.onnx"
    source.write_bytes(model.read_bytes())
    source.with_name("energy.v2.html").write_text("<p>report")
    path = publish(source, tmp_path / "repository", name="energy")
    assert entries(path.parent) == ["model.onnx", "report.html"]
    assert path.with_name("report.html").read_text() == "<p>report"


def test_publishers_that_chose_the_same_version_get_versions_of_their_own(model, tmp_path, monkeypatch):
    publishers = 4
    together = threading.Barrier(publishers, timeout=60)

    def seen_by_all(folder):
        seen = versions(folder)
        together.wait()
        return seen

    monkeypatch.setattr(module, "versions", seen_by_all)
    with ThreadPoolExecutor(publishers) as pool:
        paths = list(pool.map(lambda _: publish(model, tmp_path, name="sine"), range(publishers)))
    assert sorted(path.parent.name for path in paths) == ["1", "2", "3", "4"]
    assert all(path.read_bytes() == model.read_bytes() for path in paths)
    assert entries(tmp_path / "sine") == ["1", "2", "3", "4"]


def test_processes_that_publish_at_once_get_versions_of_their_own(model, tmp_path):
    program = """
import sys
from pathlib import Path
from training.publish import publish
publish(*map(Path, sys.argv[1:]), name="sine")
"""
    started = [subprocess.Popen([sys.executable, "-c", program, model, tmp_path], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert entries(tmp_path / "sine") == ["1", "2"]


@pytest.mark.parametrize("step", ["_copy_to_disk", "open_model", "flush_folder", "_renamed_to_next_version"])
def test_a_publisher_killed_at_a_step_leaves_no_version_and_the_next_one_succeeds(model, tmp_path, step):
    program = f"""
import os, signal, sys
from pathlib import Path
from training import publish
publish.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
publish.publish(*map(Path, sys.argv[1:]), name="sine")
"""
    killed = subprocess.run([sys.executable, "-c", program, model, tmp_path], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert versions(tmp_path / "sine") == []
    assert len(entries(tmp_path / "sine")) == 1
    assert entries(tmp_path / "sine")[0].startswith(".publishing-")
    assert read_manifest(publish(model, tmp_path, name="sine")) == read_manifest(model)
    assert versions(tmp_path / "sine") == [1]


def test_a_publisher_that_is_terminated_leaves_nothing_and_tells(model, tmp_path):
    program = """
import os, runpy, signal
from training import publish
publish.open_model = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
runpy.run_module("training", run_name="__main__")
"""
    command = [sys.executable, "-c", program, "publish", model, tmp_path / "repository", "--name", "sine"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "error: stopped; nothing was written\n")
    assert entries(tmp_path / "repository") == []


def test_what_was_abandoned_a_day_ago_is_removed_and_what_is_under_way_is_not(model, tmp_path):
    abandoned, under_way = tmp_path / "sine" / ".publishing-old", tmp_path / "sine" / ".publishing-new"
    for folder in (abandoned, under_way):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"half")
    long_ago = time.time() - 25 * 3600
    os.utime(abandoned, (long_ago, long_ago))
    publish(model, tmp_path, name="sine")
    assert entries(tmp_path / "sine") == [".publishing-new", "1"]


def test_a_folder_that_its_publisher_renames_at_this_moment_disturbs_no_other(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda folder, _: iter([folder / ".publishing-just-renamed"]))
    assert publish(model, tmp_path, name="sine").parent.name == "1"


def test_a_folder_that_a_failed_publisher_removes_at_this_moment_is_made_again(model, tmp_path, monkeypatch):
    make, made = Path.mkdir, []

    def removed_once(folder, **options):
        make(folder, **options)
        if not made:
            folder.rmdir()
        made.append(folder)

    monkeypatch.setattr(Path, "mkdir", removed_once)
    assert publish(model, tmp_path, name="sine").parent.name == "1"
    assert len(made) == 2


def test_a_file_that_cannot_be_written_whole_is_told_with_its_folder(model, tmp_path):
    publish(model, tmp_path, name="sine")
    before = (tmp_path / "sine" / "1" / "model.onnx").read_bytes()
    program = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)
runpy.run_module("training", run_name="__main__")
"""
    command = [sys.executable, "-c", program, "publish", model, tmp_path, "--name", "sine"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {tmp_path / 'sine'}: File too large\n"
    assert entries(tmp_path / "sine") == ["1"]
    assert (tmp_path / "sine" / "1" / "model.onnx").read_bytes() == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_holds_whole_versions_alone(model, small_disk):
    published = []

    def publish_on():
        while len(published) < 20:
            published.append(publish(model, small_disk, name="sine"))

    with pytest.raises(OSError, match=f"No space left on device: '{small_disk}/sine'"):
        publish_on()
    assert 0 < len(published) < 20
    assert entries(small_disk / "sine") == [str(version) for version in range(1, len(published) + 1)]
    assert all(read_manifest(path) for path in published)
    shutil.rmtree(published[0].parent)  # somebody makes room
    assert publish(model, small_disk, name="sine").parent.name == str(len(published) + 1)


def test_a_full_disk_is_no_fault_of_the_model_and_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(model, tmp_path / "repository", name="sine")
    assert entries(tmp_path / "repository") == []


def test_a_version_that_no_service_would_read_is_not_published(tmp_path):
    write_formula_model(tmp_path / "model.onnx")
    highest = tmp_path / "repository" / "m" / ("9" * 18)
    highest.mkdir(parents=True)
    (tmp_path / "repository" / "m" / ("9" * 20)).mkdir()
    with pytest.raises(ArtifactError, match=f"holds version {'9' * 18}, and no service reads a higher one"):
        publish(tmp_path / "model.onnx", tmp_path / "repository", name="m")
    highest.rmdir()
    assert publish(tmp_path / "model.onnx", tmp_path / "repository", name="m").parent.name == "1"


def test_a_model_file_of_another_name_takes_no_report_of_a_neighbour(model, tmp_path):
    named = tmp_path / "houses-1.5"
    shutil.copy(model, named)
    named.with_suffix(".html").write_text("of houses-1.6")
    assert not (publish(named, tmp_path / "repository", name="m").parent / "report.html").exists()
