"""What SageMaker and Vertex AI ask of a container."""

import pytest

from service.cli import with_cloud_defaults
from service.security import add_key
from tests.model_files import write_formula_model
from tests.service.conftest import running

pytestmark = pytest.mark.anyio

ROW = {"a": 1, "b": 2}
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only looked at


@pytest.mark.parametrize(
    "request_",
    [
        {"instances": [ROW]},
        {"dataframe_split": {"columns": ["b", "a"], "data": [[2, 1]]}},
        {"dataframe_records": [ROW]},
        {"inputs": [[1, 2]]},
    ],
)
async def test_invocations_take_every_form(repository, request_):
    async with running(repository) as service:
        answer = await service.http.post("/invocations", json=request_)
        assert answer.json() == (await service.predict(instances=[ROW])).json()


async def test_invocations_tell_their_own_keys(repository):
    async with running(repository) as service:
        refused = await service.http.post("/invocations", json={"dataframe_records": [ROW], "param": {"coverage": 0.5}})
    assert refused.json()["error"] == (
        "'param' is no key of a request; did you mean 'params' or 'parameters'? (known: instances, dataframe_split, "
        "dataframe_records, inputs, parameters, params, coverage, quantiles, thresholds, samples, seed, strict)"
    )


async def test_invocations_take_csv(repository):
    async with running(repository) as service:
        answer = await service.http.post("/invocations", content="1,2\n", headers={"content-type": "text/csv"})
    assert answer.text.splitlines()[1].startswith("5.0,")


async def test_the_model_is_the_only_one_or_the_setting(repository):
    write_formula_model(repository / "n" / "2" / "model.onnx")
    async with running(repository) as service:
        refused = await service.http.post("/invocations", json={"instances": [ROW]})
    async with running(repository, default_model="n") as service:
        answer = await service.http.post("/invocations", json={"instances": [ROW]})
    assert refused.status_code == 404
    assert refused.json()["error"] == "which of the models m, n? say it by the setting default_model"
    assert answer.json()["model"] == {"name": "n", "version": "2"}


async def test_ping_is_readiness(repository, tmp_path):
    async with running(repository) as service:
        assert (await service.http.get("/ping")).status_code == 200
        service.state.draining = True
        assert (await service.http.get("/ping")).status_code == 503
    async with running(tmp_path / "empty") as service:
        assert (await service.http.get("/ping")).status_code == 503
        assert (await service.http.post("/invocations", json={"instances": [ROW]})).status_code == 503


async def test_vertex_names_its_routes(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/7:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/healthz")
    key = add_key(tmp_path / "keys.json", name="k", scopes=frozenset(["predict"]))
    async with running(repository, keys=tmp_path / "keys.json") as service:
        assert (await service.http.get("/healthz")).json() == {"ready": True, "live": True}
        request = {"instances": [ROW], "parameters": {"coverage": 0.5}}
        headers = {"Authorization": f"Bearer {key}"}
        answer = await service.http.post("/v1/endpoints/7:predict", json=request, headers=headers)
    (prediction,) = answer.json()["predictions"]
    assert prediction["intervals"][0]["coverage"] == 0.5


async def test_containers_start_with_the_ports_and_folders_of_their_cloud(monkeypatch, tmp_path):
    monkeypatch.setattr("service.cli._SAGEMAKER_MODELS", tmp_path / "nothing")
    assert with_cloud_defaults(["--port", "1"]) == ["--port", "1"]
    assert with_cloud_defaults(["serve"]) == ["--port", "8080", "--host", EVERYWHERE]
    assert with_cloud_defaults(["serve", "--port=1", "--host", "::1"]) == ["--port=1", "--host", "::1"]
    monkeypatch.setattr("service.cli._SAGEMAKER_MODELS", tmp_path)
    assert with_cloud_defaults(["serve"])[-2:] == ["--repository", str(tmp_path)]
    assert "--repository" not in with_cloud_defaults(["serve", "--repository=x"])[:-1]
    monkeypatch.setenv("AIP_HTTP_PORT", "9000")
    assert with_cloud_defaults([]) == ["--port", "9000", "--host", EVERYWHERE]
    assert with_cloud_defaults(["--port", "1", "--host=::1"]) == ["--port", "1", "--host=::1"]
