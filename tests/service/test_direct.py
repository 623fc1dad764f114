"""Which requests are answered without ASGI; what they are answered is asked beside that of all others."""

import pytest

from service.app import create_app
from service.direct import DIRECT_BYTES
from service.routes.hot import find_route
from service.settings import Settings

MIB = 2**20
V1, V2 = find_route("/v1/models/m:predict"), find_route("/v2/models/m/infer")


@pytest.mark.parametrize(
    ("headers", "direct"),
    [
        ({}, False),
        ({"content-length": DIRECT_BYTES}, True),
        ({"content-length": DIRECT_BYTES + 1}, False),
        ({"content-length": MIB, "inference-header-content-length": 300}, True),
        ({"content-length": MIB, "inference-header-content-length": 0}, True),
        ({"content-length": 2 * MIB, "inference-header-content-length": 300}, False),
        ({"content-length": MIB, "inference-header-content-length": DIRECT_BYTES}, False),  # which is JSON
        ({"content-length": MIB, "inference-header-content-length": -1}, False),
        ({"content-length": MIB, "inference-header-content-length": "9" * 30}, False),
        ({"content-length": "9" * 30}, False),
        ({"content-length": "1_0"}, False),
        ({"content-length": 10, "content-type": "application/json"}, True),
        ({"content-length": 10, "content-type": "text/csv"}, False),
        ({"content-length": 10, "content-encoding": "gzip"}, False),
        ({"content-length": 10, "expect": "100-continue"}, False),
        ({"transfer-encoding": "chunked"}, False),
    ],
)
def test_what_is_small_and_plain_is_direct(repository, headers, direct):
    app = create_app(Settings(repository=repository))
    assert app.state.direct.takes(V2, [(name.encode(), str(value).encode()) for name, value in headers.items()]) is direct


def test_a_header_of_v2_makes_no_other_body_small(repository):
    takes = create_app(Settings(repository=repository)).state.direct.takes
    large = [(b"content-length", b"%d" % MIB), (b"inference-header-content-length", b"0")]
    assert takes(V2, large)
    assert not takes(V1, large)
    assert not takes(V2, [large[0], (b"inference-header-content-length", b"%d" % MIB), large[1]])  # the first counts


def test_a_long_path_is_not_remembered(repository):
    direct = create_app(Settings(repository=repository)).state.direct
    assert direct.route(b"/v1/models/m:predict") == V1
    assert direct.route(b"/v1/models/" + b"m" * 1000 + b":predict") is None


def test_what_is_too_large_for_the_service_is_not_direct(repository):
    app = create_app(Settings(repository=repository, max_body_bytes=1000))
    assert app.state.direct.takes(V1, [(b"content-length", b"1000")])
    assert not app.state.direct.takes(V1, [(b"content-length", b"1001")])
