import pytest

from tests.service.conftest import running

pytestmark = pytest.mark.anyio


async def test_the_body_of_a_repository_request_is_small(repository):
    async with running(repository) as service:
        answer = await service.http.post("/v2/repository/index", content=b'{"ready": true}' + b" " * 65536)
    assert answer.status_code == 413
    assert answer.json()["error"] == "the body is larger than 65536 bytes, and this route takes a few parameters"
