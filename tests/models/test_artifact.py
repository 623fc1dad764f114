import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from models.artifact import (
    MODEL_NAME,
    OUTPUTS,
    ArtifactError,
    cpu_session,
    digest_of,
    golden_rows,
    open_model,
    read_manifest,
    read_model,
    session_run,
    write_model,
)
from models.manifest import Column, Target
from tests.model_files import MIXED, formula_network, write_formula_model

ROOT = Path(__file__).parents[2]
UNICODE = (
    Column(name="größe µm", kind="numeric", unit="µm", description='a "quoted" \\ word'),
    Column(name="色 🎨", kind="categorical", categories=["青", "grün", "", "a\nb"]),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model.onnx"
    return path, write_formula_model(path, columns=MIXED)


@pytest.fixture
def refusal(tmp_path):
    """Why a file with these bytes is refused."""

    def sentence(data):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        with pytest.raises(ArtifactError) as refused:
            read_model(path)
        assert str(refused.value).startswith(f"{path}: ")
        return str(refused.value).removeprefix(f"{path}: ")

    return sentence


def stand_in(text):
    """Something that write_model takes for a manifest, with any text."""
    return SimpleNamespace(model_dump_json=lambda: text)


def test_a_written_model_is_read_as_it_was(written):
    path, manifest = written
    data, read = read_model(path)
    assert (data, read, read_manifest(str(path))) == (path.read_bytes(), manifest, manifest)


def test_names_of_any_script_survive(tmp_path):
    targets = (Target(name="Härte ∆", unit="°C", minimum=0.0, maximum=1.0),)
    manifest = write_formula_model(tmp_path / "模型.onnx", columns=UNICODE, targets=targets)
    assert read_manifest(tmp_path / "模型.onnx") == manifest
    assert manifest.feature_names == ["größe µm", "色 🎨"]


def test_the_digest_is_that_of_the_file_with_the_digest_read_as_zeros(tmp_path, written):
    data, manifest = read_model(written[0])
    digest = write_model(data, manifest, tmp_path / "model.onnx")
    written_bytes = (tmp_path / "model.onnx").read_bytes()
    assert digest == digest_of(written_bytes)
    assert hashlib.sha256(written_bytes.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_writing_again_gives_the_same_bytes(tmp_path, written):
    data, manifest = read_model(written[0])
    write_model(data, manifest, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == data


def test_own_metadata_is_replaced_and_that_of_others_kept(tmp_path, written):
    graph = onnx.load(written[0])
    graph.metadata_props.add(key="author", value="someone")
    manifest = written[1].model_copy(update={"default_coverage": 0.8})
    write_model(graph.SerializeToString(), manifest, tmp_path / "model.onnx")
    keys = [entry.key for entry in onnx.load(tmp_path / "model.onnx").metadata_props]
    assert sorted(keys) == ["author", "errorbar.manifest", "errorbar.sha256"]
    assert read_manifest(tmp_path / "model.onnx").default_coverage == 0.8


def test_the_onnx_package_loads_and_checks_the_file(written):
    onnx.checker.check_model(onnx.load(written[0]), full_check=True)


def test_bare_onnx_runtime_answers_in_five_lines_without_this_project(tmp_path):
    path = tmp_path / "model.onnx"
    write_formula_model(path, float64=True)
    program = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
inputs = {"x": numpy.array([[1.0, 2.0]]), "coverage": numpy.array([0.9])}
mean, lower, upper = session.run(["mean", "lower", "upper"], inputs)
print([mean.item(), lower.item(), upper.item()])
"""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, path], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    run, _ = open_model(path, threads=1)
    answer = run(np.array([[1.0, 2.0]]), np.array([0.9]))
    assert json.loads(ended.stdout) == [answer[name].item() for name in ("mean", "lower", "upper")]


def test_any_reader_of_onnx_metadata_finds_the_manifest(written):
    metadata = onnxruntime.InferenceSession(written[0]).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["errorbar.manifest"])["schema_version"] == 1


def test_reading_a_manifest_imports_neither_torch_nor_onnx(written):
    program = """
import sys
from models.artifact import read_manifest
read_manifest(sys.argv[1])
print([name for name in ("torch", "onnx", "polars", "sklearn") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", program, written[0]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_a_file_cut_anywhere_is_refused(written, refusal):
    data = written[0].read_bytes()
    for length in {*range(1, len(data), 29), *range(len(data) - 150, len(data))}:
        assert any(
            words in refusal(data[:length])
            for words in ("is truncated", "is not an ONNX file", "was changed after", "errorbar did not write")
        )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_inside_the_model_is_called_truncated(written, refusal, share):
    data = written[0].read_bytes()
    length = int(share * len(data))
    assert refusal(data[:length]) == f"is truncated (it ends after {length} bytes, inside the model); copy it again"


def test_a_change_of_any_byte_is_refused(written, refusal):
    data = written[0].read_bytes()
    for position in {*range(0, len(data), 23), *range(len(data) - 100, len(data))}:
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        assert refusal(bytes(changed)), position


def test_a_changed_weight_or_manifest_is_called_changed(written, refusal):
    data = written[0].read_bytes()
    for word in (b'"members":2', b"network.slopes"):
        changed = data.replace(word, word[:-1] + b"7", 1)
        assert refusal(changed) == "was changed after it was written (its SHA-256 does not match); publish it again"


def test_bytes_added_at_the_end_are_refused(written, refusal):
    assert refusal(written[0].read_bytes() + b"\x08\x09").startswith("was changed after it was written")


def test_a_file_without_its_digest_is_refused(written, refusal):
    data = written[0].read_bytes()
    assert refusal(data.replace(b"errorbar.sha256", b"errorbar.sha257")).startswith("was changed after it was written")


def test_an_onnx_file_of_another_program_is_refused(refusal):
    sentence = "is an ONNX file that errorbar did not write (its metadata has no errorbar.manifest)"
    assert refusal(formula_network(features=2, targets=1).SerializeToString()) == sentence


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(64)), "is not an ONNX file"),
        (b"x,y\n1,2\n3,4\n", "is not an ONNX file"),
        (b"PK\x03\x04" + bytes(100), "is not an ONNX file"),
        (b"\x80\x04\x95" + bytes(100), "is not an ONNX file"),
        (b"\xff" * 100, "is not an ONNX file"),
        (b"\x08\x09", "is not an ONNX file"),
        (b"<html></html>", "is not an ONNX file"),
    ],
)
def test_what_is_no_onnx_file_is_refused(refusal, data, sentence):
    assert refusal(data) == sentence


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.onnx: cannot be read \(No such file or directory\)"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match=r"cannot be read \(Is a directory\)"):
        read_model(tmp_path)


def test_a_manifest_of_the_future_asks_for_a_newer_errorbar(tmp_path, written):
    data, manifest = read_model(written[0])
    future = json.loads(manifest.model_dump_json()) | {"schema_version": 2, "something_new": []}
    write_model(data, stand_in(json.dumps(future)), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"has manifest schema 2; this errorbar reads up to 1: install a newer errorbar$"):
        read_model(tmp_path / "model.onnx")


def test_golden_rows_of_other_columns_are_refused(tmp_path, written):
    data, manifest = read_model(written[0])
    write_model(data, manifest.model_copy(update={"columns": manifest.columns[:-1]}), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx: cannot answer its own golden rows \(cannot reshape"):
        open_model(tmp_path / "model.onnx")


def test_a_manifest_with_what_a_newer_errorbar_added_asks_for_that(tmp_path, written):
    data, manifest = read_model(written[0])
    newer = json.loads(manifest.model_dump_json())
    newer["network"]["something_new"] = None
    write_model(data, stand_in(json.dumps(newer)), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"holds network\.something_new, which this errorbar does not know: a newer one"):
        read_model(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"columns": []}', r"has an invalid manifest \(columns: List should have at least 1 item"),
        ("no json", r"has an invalid manifest \(manifest: Invalid JSON"),
        ("[1, 2]", r"has an invalid manifest \(manifest: "),
        ('{"schema_version": "two"}', r"has an invalid manifest \(schema_version: "),
        ('{"schema_version": 0}', r"has an invalid manifest \(schema_version: "),
    ],
)
def test_an_invalid_manifest_is_refused_with_the_place(tmp_path, written, text, sentence):
    write_model(read_model(written[0])[0], stand_in(text), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=sentence):
        read_model(tmp_path / "model.onnx")


def test_a_file_that_is_no_model_is_not_written(tmp_path, written):
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        write_model(b"x,y\n1,2\n", written[1], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def rewritten(path, written, **golden):
    """The written model with other golden rows."""
    data, manifest = read_model(written[0])
    write_model(data, manifest.model_copy(update={"golden": manifest.golden.model_copy(update=golden)}), path)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_model_that_does_not_repeat_its_golden_rows_is_refused(tmp_path, written, name):
    golden = written[1].golden
    moved = np.array(golden.outputs[name])
    moved.flat[0] += 0.01 * np.array(golden.outputs["std"]).flat[0]
    rewritten(tmp_path / "model.onnx", written, outputs=golden.outputs | {name: moved.tolist()})
    with pytest.raises(ArtifactError, match=rf"output {name} of the golden rows is off by 0\.0\d+ of its std"):
        open_model(tmp_path / "model.onnx", threads=1)


@pytest.mark.parametrize("name", ["location", "scale"])
def test_what_a_network_says_in_transformed_space_is_compared_in_units_of_that_space(tmp_path, name):
    path = tmp_path / "model.onnx"
    manifest = write_formula_model(path, targets=(Target(name="y", minimum=0.1, maximum=9.0, transform="log"),))
    moved = np.array(manifest.golden.outputs[name])
    moved[1, 0] += 0.01 * manifest.golden.outputs["scale"][1][0]  # below a thousandth of this row's std
    rewritten(path, (path, manifest), outputs=manifest.golden.outputs | {name: moved.tolist()})
    with pytest.raises(ArtifactError, match=rf"output {name} of the golden rows is off by 0\.0"):
        open_model(path, threads=1)


def test_a_difference_within_the_tolerance_is_accepted(tmp_path, written):
    golden = written[1].golden
    moved = np.array(golden.outputs["mean"]) + 5e-4 * np.array(golden.outputs["std"])
    rewritten(tmp_path / "model.onnx", written, outputs=golden.outputs | {"mean": moved.tolist()})
    open_model(tmp_path / "model.onnx", threads=1)


def test_golden_rows_without_an_output_are_refused(tmp_path, written):
    outputs = {name: value for name, value in written[1].golden.outputs.items() if name != "upper"}
    rewritten(tmp_path / "model.onnx", written, outputs=outputs)
    with pytest.raises(ArtifactError, match=r"has no output upper$"):
        open_model(tmp_path / "model.onnx", threads=1)


def test_golden_rows_of_another_shape_are_refused(tmp_path, written):
    rewritten(tmp_path / "model.onnx", written, coverage=[0.5])
    with pytest.raises(ArtifactError, match=r"output lower of the golden rows has shape \(3, 1, 1\), not \(3, 1, 2\)"):
        open_model(tmp_path / "model.onnx", threads=1)


def test_golden_rows_that_are_nan_are_refused(tmp_path, written):
    outputs = written[1].golden.outputs
    rewritten(tmp_path / "model.onnx", written, outputs=outputs | {"mean": [[float("nan")]] * 3})
    with pytest.raises(ArtifactError, match="output mean of the golden rows is off by nan"):
        open_model(tmp_path / "model.onnx", threads=1)


def test_many_rows_are_run_in_parts_and_answered_as_one(written, monkeypatch):
    session, sizes = cpu_session(read_model(written[0])[0], threads=1), []

    class Counted:
        get_outputs = session.get_outputs

        def run(self, names, inputs):
            sizes.append(len(inputs["x"]))
            return session.run(names, inputs)

    run, x, coverage = session_run(Counted()), np.random.default_rng(0).normal(size=(20, 5)), np.array([0.5, 0.9])
    whole = run(x, coverage)
    monkeypatch.setattr("models.artifact.RUN_ROWS", 7)
    parts = run(x, coverage)
    assert sizes == [20, 7, 7, 6]
    for name in OUTPUTS:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6, err_msg=name)
    assert run(x[:0], coverage)["upper"].shape == (0, 1, 2)


def test_golden_rows_are_made_of_supported_coverages_alone(written):
    run = session_run(cpu_session(read_model(written[0])[0], threads=1))
    with pytest.raises(ArtifactError, match=r"lower, upper of typical rows is not finite at coverage 0\.5, 0\.999"):
        golden_rows(run, np.zeros((1, 5)), [0.5, 0.999])


def test_golden_rows_may_hold_no_coverage_where_the_calibration_rows_support_none(tmp_path):
    path = tmp_path / "model.onnx"
    manifest = write_formula_model(path)
    run, _ = open_model(path, threads=1)
    golden = golden_rows(run, np.zeros((3, 2)), [])
    write_model(read_model(path)[0], manifest.model_copy(update={"golden": golden}), path)
    assert open_model(path, threads=1)[1].golden.outputs["upper"] == [[[]]] * 3


def test_a_model_whose_columns_are_not_those_of_its_graph_is_refused(tmp_path, written):
    data, manifest = read_model(written[0])
    golden = manifest.golden.model_copy(update={"x": [row[:-1] for row in manifest.golden.x]})
    write_model(data, manifest.model_copy(update={"columns": manifest.columns[:-1], "golden": golden}), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="cannot answer its own golden rows"):
        open_model(tmp_path / "model.onnx", threads=1)


def test_a_graph_that_onnx_runtime_does_not_know_is_refused(tmp_path, written):
    graph = onnx.load(written[0])
    graph.graph.node[0].op_type = "NoSuchOperator"
    write_model(graph.SerializeToString(), written[1], tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot load it \(.*NoSuchOperator"):
        open_model(tmp_path / "model.onnx", threads=1)


def test_an_opened_model_answers_all_outputs(written):
    run, manifest = open_model(written[0], threads=1)
    assert manifest == written[1]
    assert set(run(np.zeros((2, 5)), np.array([0.9]))) == set(OUTPUTS)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_no_other(tmp_path, written, monkeypatch, failing):
    data, manifest = read_model(written[0])
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), crash)
    with pytest.raises(OSError, match="No space left"):
        write_model(data, manifest, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the old file"


def test_a_model_replaces_an_old_file_whole_and_all_may_read_it(tmp_path, written):
    path = tmp_path / "new folder" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"the old file")
    write_model(*read_model(written[0]), path)
    assert read_manifest(path) == written[1]
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["a", "Diabetes", "energy-2.v1_b", "9lives", "x" * 100])
def test_names_safe_in_a_folder_and_a_url_are_model_names(name):
    assert MODEL_NAME.fullmatch(name)
