import shutil

import httpx
import pytest

from tests.model_files import write_formula_model
from tests.service.conftest import running
from tests.service.live import read

pytestmark = pytest.mark.anyio


async def test_a_service_with_models_is_live_and_ready(repository):
    async with running(repository) as service:
        live, ready = await service.http.get("/v2/health/live"), await service.http.get("/v2/health/ready")
    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "live": True})


async def test_a_service_without_a_model_is_live_and_says_what_it_waits_for(tmp_path):
    async with running(tmp_path / "none") as service:
        assert (await service.http.get("/v2/health/live")).status_code == 200
        ready, listed = await service.http.get("/v2/health/ready"), await service.http.get("/v1/models")
    sentence = f"the model repository {tmp_path / 'none'} does not exist yet; waiting for <name>/<version>/model.onnx"
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "live": True, "error": f"not ready: {sentence}"}
    assert ready.headers["retry-after"] == "1"
    assert listed.json() == {"models": [], "waiting_for": sentence}


async def test_one_model_that_cannot_answer_makes_the_service_not_ready(repository):
    (repository / "n" / "1").mkdir(parents=True)
    (repository / "n" / "1" / "model.onnx").touch()
    async with running(repository) as service:
        ready = await service.http.get("/v2/health/ready")
        good, bad, none = [await service.http.get(f"/v2/models/{name}/ready") for name in ("m", "n", "x")]
        assert (await service.predict(instances=[[1, 2]])).status_code == 200
    assert ready.status_code == 503
    assert "model 'n' has no version that can be served; version 1: " in ready.json()["error"]
    assert (good.status_code, good.json()) == (200, {"name": "m", "ready": True})
    assert (bad.status_code, bad.json()["ready"]) == (503, False)
    assert (none.status_code, none.json()) == (404, {"error": "there is no model 'x'; there is m, n"})


async def test_a_model_that_has_served_is_waited_for_wherever_it_went(repository):
    good, bad = repository / "m" / "1" / "model.onnx", repository / "n" / "1" / "model.onnx"
    async with running(repository) as service:

        async def ready():
            await service.state.repository.rescan()
            return (await service.http.get("/v2/health/ready")).status_code

        write_formula_model(bad)
        assert await ready() == 200, "n came later, and serves"
        bad.parent.rename(repository / "n" / "gone")
        assert await ready() == 200, "a model that was removed is not waited for"
        bad.parent.mkdir()
        bad.touch()
        assert await ready() == 503, "it is back, and broken"
        shutil.rmtree(bad.parent)
        assert await ready() == 200
        shutil.rmtree(repository / "m")
        assert await ready() == 503
        for version in (1, 2):
            new = repository / "new" / str(version) / "model.onnx"
            new.parent.mkdir(parents=True)
            new.touch()
        assert await ready() == 503, "a new one that is broken, and nothing else to ask"
        good.parent.mkdir(parents=True)
        write_formula_model(good)
        assert await ready() == 200, "the new one is not waited for"


async def test_a_broken_model_is_told_to_prometheus_as_long_as_it_is_broken(repository):
    async with running(repository) as service:
        bad = repository / "n" / "1" / "model.onnx"
        bad.parent.mkdir(parents=True)
        bad.touch()
        await service.state.repository.rescan()
        assert (await service.http.get("/v2/health/ready")).status_code == 200
        page = read((await service.http.get("/metrics")).text)
        assert (page["errorbar_failed_versions", "n"], page["errorbar_failed_versions", "m"]) == (1, 0)
        assert (page["errorbar_up",], page["errorbar_ready",]) == (1, 1)
        write_formula_model(bad)
        await service.state.repository.rescan()
        service.state.draining = True
        page = read((await service.http.get("/metrics")).text)
        assert (page["errorbar_failed_versions", "n"], page["errorbar_ready",]) == (0, 0)


async def test_a_version_is_ready_by_itself(repository):
    write_formula_model(repository / "m" / "2" / "model.onnx")
    (repository / "m" / "3").mkdir()
    (repository / "m" / "3" / "model.onnx").touch()
    async with running(repository) as service:
        statuses = [(await service.http.get(f"/v2/models/m/versions/{version}/ready")).status_code for version in (1, 2, 3, 4)]
        assert (await service.http.get("/v2/health/ready")).status_code == 200
    assert statuses == [200, 200, 503, 404]


async def test_a_draining_service_is_not_ready_and_still_answers(repository):
    async with running(repository) as service:
        service.state.draining = True
        ready = await service.http.get("/v2/health/ready")
        assert (await service.predict(instances=[[1, 2]])).status_code == 200
    assert (ready.status_code, ready.json()["error"]) == (503, "not ready: shutting down")


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server_names_itself(repository, path):
    async with running(repository) as service:
        body = (await service.http.get(path)).json()
    assert (body["name"], set(body)) == ("errorbar", {"name", "version", "extensions"})


@pytest.mark.parametrize(
    ("path", "status"), [("/v2/health/live", 200), ("/ping", 200), ("/metrics", 200), ("/docs", 200), ("/v1/models/n", 404)]
)
def test_what_answers_get_answers_head_without_a_body(start, repository, path, status):
    with httpx.Client(base_url=start(repository).url) as http:
        whole, head = http.get(path), http.head(path)
        assert (head.status_code, whole.status_code, head.content) == (status, status, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        refused = http.head("/v1/models/m:predict")
        assert (refused.status_code, refused.headers["allow"], http.get("/ping").status_code) == (405, "POST", 200)
