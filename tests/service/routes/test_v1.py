import pytest
from jsonschema import Draft202012Validator

from models.manifest import Column, Target
from tests.model_files import MIXED, write_formula_model
from tests.service.conftest import running

pytestmark = pytest.mark.anyio


async def get(service, path):
    answer = await service.http.get(path)
    assert answer.status_code == 200
    return answer.json()


async def test_the_list_shows_versions_states_labels_and_reasons(repository):
    write_formula_model(repository / "m" / "2" / "model.onnx")
    (repository / "m" / "3").mkdir()
    (repository / "m" / "3" / "model.onnx").touch()
    (repository / "m" / "labels.json").write_text('{"stable": 2}')
    async with running(repository, loaded_versions=1) as service:
        listed = await get(service, "/v1/models")
        shown = await get(service, "/v1/models/m")
    path = repository / "m" / "3" / "model.onnx"
    described = {
        "name": "m",
        "default_version": "2",
        "versions": [
            {"version": "1", "state": "not loaded"},
            {"version": "2", "state": "ready"},
            {"version": "3", "state": "failed", "reason": f"{path}: is empty"},
        ],
        "labels": {"stable": "2"},
    }
    assert listed == {"models": [described]}
    assert shown == described | {"ready": True}


async def test_the_example_is_one_that_a_model_with_a_small_group_answers(tmp_path):
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=MIXED, group_column="colour")  # blue has 19 rows, red 39
    async with running(tmp_path) as service:
        example = (await get(service, "/v1/models/m/metadata"))["example"]
    assert example["instances"][0]["colour"] == "red"
    assert example["coverage"] == [0.9]


async def test_a_model_of_moments_beyond_the_year_9999_has_an_example_that_it_answers(tmp_path):
    far = Column(name="when", kind="datetime", minimum=1.7e12, maximum=1.71e12, quantiles={"0.5": 1.705e12})
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=(far,))
    async with running(tmp_path) as service:
        example = (await get(service, "/v1/models/m/metadata"))["example"]
        assert example["instances"] == [{"when": 1.705e12}]
        assert (await service.http.post("/v1/models/m:predict", json=example)).status_code == 200
        assert (await service.http.get("/openapi.json")).status_code == 200


async def test_metadata_is_the_manifest_without_its_long_arrays(tmp_path):
    manifest = write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=MIXED, group_column="colour")
    async with running(tmp_path, threads=2) as service:
        body = await get(service, "/v1/models/m/metadata")
    assert body["device"] == {"name": "cpu", "threads": 2}
    assert len(body["sha256"]) == 64
    assert "golden" not in body["manifest"]
    assert body["manifest"]["targets"] == [target.model_dump() for target in manifest.targets]
    assert body["manifest"]["calibration"]["groups"][1] == {
        "value": "blue",
        "code": 0.0,
        "rows": 19,
        "largest_coverage": 0.95,
        "scale_factor": [1.0],
    }


async def test_metadata_comes_by_version_and_label_too(repository):
    write_formula_model(repository / "m" / "2" / "model.onnx")
    (repository / "m" / "labels.json").write_text('{"stable": 1}')
    async with running(repository) as service:
        versions = [
            (await get(service, f"/v1/models/m{part}/metadata"))["version"] for part in ("", "/versions/1", "/labels/stable")
        ]
    assert versions == ["2", "1", "1"]


async def test_a_device_fallback_stands_in_the_metadata(repository, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    async with running(repository, device="prefer-cuda") as service:
        device = (await get(service, "/v1/models/m/metadata"))["device"]
    assert device["name"] == "cpu"
    assert "has no CUDA" in device["fallback_reason"]


COLUMNS = (
    *MIXED,
    Column(name="code", kind="categorical", categories=["1", "3"], integer=True),
    Column(name="count", kind="numeric", integer=True, minimum=1.0, maximum=4.0, quantiles={"0.5": 2.5}, unit="pieces"),
    Column(name="bare", kind="numeric"),
)


async def test_the_example_fits_the_schema_and_is_answered_without_a_warning(tmp_path):
    targets = (Target(name="y", minimum=-50.0, maximum=50.0), Target(name="z", minimum=-1.0, maximum=1.0))
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=COLUMNS, targets=targets)
    async with running(tmp_path) as service:
        body = await get(service, "/v1/models/m/metadata")
        answer = await service.http.post("/v1/models/m:predict", json=body["example"])
        document = await get(service, "/openapi.json")
    (instance,) = body["example"]["instances"]
    Draft202012Validator.check_schema(body["instance_schema"])
    schema = Draft202012Validator(body["instance_schema"])
    assert schema.is_valid(instance)
    assert schema.is_valid(list(instance.values()))
    assert not schema.is_valid(instance | {"other": 1})
    assert not schema.is_valid(list(instance.values())[1:])
    assert answer.status_code == 200
    (prediction,) = answer.json()["predictions"]
    assert "warnings" not in prediction
    operation = document["paths"]["/v1/models/m:predict"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["example"] == body["example"]
    Draft202012Validator(operation["requestBody"]["content"]["application/json"]["schema"]).validate(body["example"])
    Draft202012Validator(operation["responses"]["200"]["content"]["application/json"]["schema"]).validate(answer.json())
