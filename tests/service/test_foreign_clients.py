"""Clients that others wrote for the Open Inference Protocol, against a live server on a real port."""

import asyncio

import httpx
import numpy as np
import pytest
from open_inference.openapi import errors
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.types import InferenceRequest, RequestInput
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from tests.model_files import MIXED, write_formula_model
from tests.service.live import Process

X = np.array([[1, 2], [0, 3]], dtype=np.float32)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    write_formula_model(repository / "m" / "1" / "model.onnx")
    write_formula_model(repository / "mixed" / "1" / "model.onnx", columns=MIXED)
    service = Process(repository)
    yield service.url
    assert service.stop() == 0


def tensor(name, array, datatype, *, binary=True, module=http):
    given = module.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def wanted(*names, binary=True, module=http):
    return [module.InferRequestedOutput(name, binary_data=binary) for name in names]


@pytest.fixture
def triton(url):
    with http.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def test_triton_finds_server_and_models_ready(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("m")
    assert triton.is_model_ready("m", "1")
    assert not triton.is_model_ready("nothing")
    assert triton.get_server_metadata()["name"] == "errorbar"
    assert triton.get_model_metadata("m")["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]
    assert {line["name"] for line in triton.get_model_repository_index()} == {"m", "mixed"}


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_triton_infers(triton, binary_in, binary_out, compression):
    result = triton.infer(
        "m",
        [tensor("x", X, "FP32", binary=binary_in)],
        outputs=wanted("mean", "upper", binary=binary_out),
        request_id="7",
        parameters={"coverage": 0.5},
        timeout=5_000_000,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert result.get_response()["id"] == "7"
    np.testing.assert_allclose(result.as_numpy("mean"), [[5], [6]])
    assert result.as_numpy("upper").shape == (2, 1, 1)
    assert result.as_numpy("std") is None


def test_triton_with_all_outputs_and_a_tensor_of_coverages(triton):
    coverage = tensor("coverage", np.array([0.5, 0.9]), "FP64")
    result = triton.infer("m", [tensor("x", X, "FP32"), coverage])
    assert (result.as_numpy("upper") > result.as_numpy("mean")[:, :, None]).all()
    assert result.as_numpy("lower").shape == (2, 1, 2)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_with_a_tensor_for_each_feature(triton, binary):
    inputs = [
        tensor("a", np.array([0.5]), "FP64", binary=binary),
        tensor("b", np.array([[4]], dtype=np.int32), "INT32", binary=binary),
        tensor("colour", np.array(["red"], dtype=object), "BYTES", binary=binary),
        tensor("open", np.array([True]), "BOOL", binary=binary),
    ]
    result = triton.infer("mixed", inputs, outputs=wanted("mean"))
    np.testing.assert_allclose(result.as_numpy("mean"), [[0.5 + 8 + 6 + 4]])


def test_triton_reads_the_sentence_of_a_refusal(triton):
    with pytest.raises(InferenceServerException, match=r"\[400\] .*this model takes \[rows, 2\]"):
        triton.infer("m", [tensor("x", np.zeros((1, 3)), "FP64")])
    with pytest.raises(InferenceServerException, match=r"\[400\] .*NaN is no number of JSON"):
        triton.infer("m", [tensor("x", np.array([[np.nan, 1]]), "FP64", binary=False)])
    with pytest.raises(InferenceServerException, match=r"\[400\] .*it never was in training"):
        triton.infer("m", [tensor("x", np.array([[np.nan, 1]]), "FP64")])
    with pytest.raises(InferenceServerException, match=r"\[404\] there is no model 'nothing'"):
        triton.infer("nothing", [tensor("x", X, "FP32")])


@pytest.mark.parametrize("binary", [True, False])
def test_triton_asyncio(url, binary):
    async def ask():
        async with aio.InferenceServerClient(url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("m")
            given = [tensor("x", X, "FP32", binary=binary, module=aio)]
            outputs = wanted("mean", "lower", binary=binary, module=aio)
            many = [client.infer("m", given, outputs=outputs, request_id=str(number)) for number in range(20)]
            return await asyncio.gather(*many)

    results = asyncio.run(ask())
    assert [result.get_response()["id"] for result in results] == [str(number) for number in range(20)]
    for result in results:
        np.testing.assert_allclose(result.as_numpy("mean"), [[5], [6]])


@pytest.fixture
def openapi(url):
    with httpx.Client() as connections:  # which this client does not close itself
        yield OpenInferenceClient(base_url=url, httpx_client=connections)


def test_open_inference_openapi(openapi):
    openapi.check_server_liveness()
    openapi.check_server_readiness()
    openapi.check_model_readiness("m")
    assert openapi.read_server_metadata().name == "errorbar"
    assert openapi.read_model_metadata("m").platform == "onnx_onnxv1"
    given = RequestInput(name="x", shape=[2, 2], datatype="FP32", data=X.ravel().tolist())
    answer = openapi.model_infer("m", request=InferenceRequest(id="7", inputs=[given]))
    assert (answer.id, answer.model_version) == ("7", "1")
    assert answer.outputs[0].name == "mean"
    with pytest.raises(errors.BadRequestError):
        openapi.model_infer("m", request=InferenceRequest(inputs=[]))
