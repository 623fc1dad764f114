import logging
import os

import numpy as np
import onnx
import onnxruntime
import pytest

from models.artifact import OUTPUTS, cpu_session, read_model
from service.inference import session as module
from service.inference.session import Device, DeviceError, Session, choose_device
from tests.model_files import write_formula_model


def test_only_the_outputs_asked_for_are_computed(tmp_path):
    write_formula_model(tmp_path / "model.onnx")
    session = Session(read_model(tmp_path / "model.onnx")[0], Device("cpu", 1))
    outputs = session.run({"x": np.ones((3, 2)), "coverage": np.array([0.5, 0.9])}, ["upper", "mean"])
    assert {name: array.shape for name, array in outputs.items()} == {"upper": (3, 1, 2), "mean": (3, 1)}
    assert set(outputs) < set(OUTPUTS)


def test_the_probe_is_a_model_that_adds():
    probe = onnx.load_from_string(module._PROBE)
    onnx.checker.check_model(probe)
    assert [node.op_type for node in probe.graph.node] == ["Add"]


def test_the_cpu_runs_with_the_threads_asked_for():
    assert choose_device("cpu", threads=3) == Device("cpu", 3)
    assert choose_device("cpu", threads=0).threads == len(os.sched_getaffinity(0))


def test_bytes_that_are_no_model_are_refused_with_the_reason():
    with pytest.raises(DeviceError, match="cannot load the model on cpu"):
        Session(b"nonsense", Device("cpu", 1))


def no_cuda(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


def test_a_required_gpu_that_is_not_there_is_an_error(monkeypatch):
    no_cuda(monkeypatch)
    with pytest.raises(DeviceError, match="has no CUDA"):
        choose_device("cuda", threads=1)


def test_a_preferred_gpu_that_is_not_there_is_said(monkeypatch, caplog):
    no_cuda(monkeypatch)
    with caplog.at_level(logging.WARNING):
        device = choose_device("prefer-cuda", threads=1)
    assert device.name == "cpu"
    assert "has no CUDA" in (device.fallback_reason or "")
    assert "CUDA was preferred but does not run" in caplog.text


def test_a_session_that_moved_to_the_cpu_by_itself_is_refused(monkeypatch):
    """What ONNX Runtime does where CUDA is listed as available but cannot be loaded."""

    def silent_fallback(model, options):
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(module, "_cuda_session", silent_fallback)
    with pytest.raises(DeviceError, match="cuda was asked for, and ONNX Runtime uses CPUExecutionProvider"):
        choose_device("cuda", threads=1)


def graph(node, initializers=()):
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y")]
    whole = onnx.helper.make_graph([node], "g", value[:1], value[1:], list(initializers))
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("evil", 1)]
    return onnx.helper.make_model(whole, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("absolute", [True, False])
def test_data_outside_of_the_file_is_not_read(tmp_path, monkeypatch, absolute, rows):
    (tmp_path / "secret.bin").write_bytes(np.ones((rows, 4), dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime looks for it
    outside = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[rows, 4])
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=str(tmp_path / "secret.bin") if absolute else "secret.bin")
    model = graph(onnx.helper.make_node("Add", ["x", "w"], ["y"]), [outside])
    with pytest.raises(DeviceError, match="cannot load the model"):
        Session(model, Device("cpu", 1))
    with pytest.raises(Exception, match="External data path"):
        cpu_session(model)


def test_operators_that_onnx_runtime_does_not_have_are_refused():
    with pytest.raises(DeviceError, match="evil"):
        Session(graph(onnx.helper.make_node("Anything", ["x"], ["y"], domain="evil")), Device("cpu", 1))
