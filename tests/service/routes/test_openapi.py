"""The document itself; whether the service keeps to it is asked by tests/service/test_schemathesis.py."""

import pytest
from jsonschema import Draft202012Validator

from models.manifest import Column, Target
from service.security import OPEN_PATHS, add_key
from tests.model_files import MIXED, write_formula_model
from tests.service.conftest import running

pytestmark = pytest.mark.anyio

TWO = (Target(name="y", minimum=-50.0, maximum=50.0), Target(name="z, in m", minimum=-1.0, maximum=1.0))


async def document_of(service, **headers):
    answer = await service.http.get("/openapi.json", headers=headers)
    assert answer.status_code == 200
    return answer.json()


def operations(document):
    return [(path, operation) for path, methods in document["paths"].items() for operation in methods.values()]


async def test_every_operation_tells_its_parameters_and_answers(repository):
    async with running(repository) as service:
        document = await document_of(service)
    for path, operation in operations(document):
        told = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert told == {part.partition("}")[0] for part in path.split("{")[1:]}
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                assert content["schema"]
                Draft202012Validator.check_schema(content["schema"])
    done = [path for path, operation in operations(document) if "content" not in operation["responses"]["200"]]
    assert done == ["/v2/repository/models/{name}/load", "/v2/repository/models/{name}/unload"]
    assert "security" not in str(document)


@pytest.mark.parametrize("renamed", [{}, {"a": "x"}, {"colour": "coverage"}], ids=str)
async def test_every_example_is_answered_as_told(tmp_path, renamed):
    columns = tuple(column.model_copy(update={"name": renamed.get(column.name, column.name)}) for column in MIXED)
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=columns, targets=TWO)
    (tmp_path / "m" / "labels.json").write_text('{"stable": 1}')
    asked = []
    async with running(tmp_path) as service:
        for path, operation in operations(await document_of(service)):
            names = {one["name"]: one["example"] for one in operation["parameters"] if one["in"] == "path"}
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if "example" in content:
                    form = {"content" if isinstance(content["example"], str) else "json": content["example"]}
                    headers = {"content-type": media_type}
                    answer = await service.http.post(path.format(**names), headers=headers, **form)
                    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
                    asked.append((path, media_type))
                    if media_type == "application/json":
                        Draft202012Validator(operation["responses"]["200"]["content"][media_type]["schema"]).validate(
                            answer.json()
                        )
    assert len(asked) == 4 * 4 + 2


async def test_columns_of_very_large_numbers_and_of_the_last_moment_have_examples(tmp_path):
    end = 253402300799.997  # 9999-12-31 23:59:59.997, which databases write for "for ever"
    columns = (
        Column(name="n", kind="numeric", integer=True, minimum=3.6e19, maximum=2.9e21, quantiles={"0.5": 1e21}),
        Column(name="until", kind="datetime", minimum=0.0, maximum=end, quantiles={"0.5": end}),
    )
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=columns)
    async with running(tmp_path) as service:
        document = await document_of(service)
        metadata = (await service.http.get("/v1/models/m/metadata")).json()
    example = document["paths"]["/v1/models/{name}:predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert example["instances"] == [{"n": 1e21, "until": "9999-12-31T23:59:59Z"}]
    assert metadata["example"] == example


async def test_with_keys_everything_but_probes_is_locked(repository, tmp_path):
    key = add_key(tmp_path / "keys.json", name="k", scopes=frozenset(["predict"]))
    async with running(repository, keys=tmp_path / "keys.json") as service:
        document = await document_of(service, authorization=f"Bearer {key}")
    schemes = set(document["components"]["securitySchemes"])
    for path, operation in operations(document):
        locked = {name for way in operation.get("security", []) for name in way}
        assert locked == (set() if path in OPEN_PATHS else schemes)
        assert ("401" in operation["responses"]) == (path not in OPEN_PATHS)
        assert ("403" in operation["responses"]) == ("/repository/models/" in path)


async def test_a_model_that_is_not_ready_says_when_to_ask_again(repository):
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").touch()
    async with running(repository) as service:
        told = (await document_of(service))["paths"]["/v2/models/{name}/ready"]["get"]["responses"]["503"]
        answer = await service.http.get("/v2/models/broken/ready")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert list(told["headers"]) == ["Retry-After"]
    Draft202012Validator(told["content"]["application/json"]["schema"]).validate(answer.json())


async def test_openapi_follows_the_models(tmp_path):
    async with running(tmp_path) as service:
        before = await document_of(service)
        write_formula_model(tmp_path / "m" / "1" / "model.onnx")
        await service.state.repository.rescan()
        after = await document_of(service)
    assert set(after["paths"]) - set(before["paths"]) == {"/v1/models/m:predict"}
    assert {"/v1/models", "/v1/models/{name}", "/v1/models/{name}:predict", "/v2/health/ready"} < set(before["paths"])
    assert "422" not in str(after)


async def test_the_docs_page_needs_nothing_from_elsewhere(repository):
    async with running(repository) as service:
        page = (await service.http.get("/docs")).text
        assert "http://" not in page
        assert "https://" not in page
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f"/static-offline-docs/{name}" in page
            assert (await service.http.get(f"/static-offline-docs/{name}")).status_code == 200
