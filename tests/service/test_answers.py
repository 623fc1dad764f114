import pytest

from tests.service.conftest import running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/nowhere", 404, "there is no route GET /nowhere; /docs lists the routes"),
        ("GET", "/v1/models/", 404, "there is no route GET /v1/models/; /docs lists the routes"),
        ("GET", "/v1/models/x", 404, "there is no model 'x'; there is m"),
        (
            "GET",
            "/static-offline-docs/none.js",
            404,
            "there is no route GET /static-offline-docs/none.js; /docs lists the routes",
        ),
        ("DELETE", "/v1/models", 405, "DELETE is not allowed here; use GET"),
        ("POST", "/v2/health/ready", 405, "POST is not allowed here; use GET"),
    ],
)
async def test_every_refusal_has_the_one_form(repository, method, path, status, sentence):
    async with running(repository) as service:
        answer = await service.http.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": sentence})
