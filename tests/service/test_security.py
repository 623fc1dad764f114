import contextlib
import hashlib
import hmac
import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service import security
from service.cli import main
from service.errors import ForbiddenError, UnauthorizedError
from service.security import Keys, KeysError, add_key, read_keys
from tests.service.conftest import running

ROW = {"instances": [[1, 2]]}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def test_the_file_holds_hashes_and_no_key(file):
    key = add_key(file, name="ci", scopes=frozenset(["predict"]))
    assert key not in file.read_text()
    (stored,) = read_keys(file)
    assert (stored.name, stored.sha256) == ("ci", hashlib.sha256(key.encode()).hexdigest())
    with pytest.raises(KeysError, match="has a key named 'ci'"):
        add_key(file, name="ci", scopes=frozenset(["admin"]))
    assert add_key(file, name="other", scopes=frozenset(["admin"])) != key
    assert [stored.name for stored in read_keys(file)] == ["ci", "other"]


def test_a_key_has_its_scope_and_admin_has_all(file):
    user, boss = (add_key(file, name=scope, scopes=frozenset([scope])).encode() for scope in ("predict", "admin"))
    keys = Keys(file)
    keys.check(user, "predict")
    keys.check(boss, "predict")
    keys.check(boss, "admin")
    with pytest.raises(ForbiddenError, match="key 'predict' lacks the scope 'admin'"):
        keys.check(user, "admin")
    for wrong in (b"", user[:-1], user + b"a", b"eb_", b"\xff\xfe"):
        with pytest.raises(UnauthorizedError, match="not known"):
            keys.check(wrong, "predict")
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer"):
        keys.check(None, "predict")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "file: Invalid JSON"),
        ('{"keys": [{"name": "a", "sha256": "12", "scopes": ["predict"]}]}', "keys.0.sha256: String should match"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scopes": ["root"]}]}' % ("0" * 64), "keys.0.scopes.0: Input should be"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scopes": []}]}' % ("0" * 64), "keys.0.scopes: "),
        ('{"key": []}', "keys: Field required"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(file, text, reason):
    file.write_text(text)
    with pytest.raises(KeysError, match=reason):
        Keys(file)


def test_each_key_is_compared_in_constant_time_whichever_is_presented(file, monkeypatch):
    presented = [add_key(file, name=name, scopes=frozenset(["predict"])) for name in ("a", "b", "c")]
    keys, compare, compared = Keys(file), hmac.compare_digest, []

    def counting(one, other):
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for key in (*presented, "eb_wrong", ""):
        compared.clear()
        with contextlib.suppress(UnauthorizedError):
            keys.check(key.encode(), "predict")
        digest = hashlib.sha256(key.encode()).hexdigest()
        assert compared == [(hashlib.sha256(known.encode()).hexdigest(), digest) for known in presented]


def test_a_file_that_could_not_be_read_is_read_once_it_can_be(file, monkeypatch, caplog):
    old = add_key(file, name="old", scopes=frozenset(["predict"])).encode()
    monkeypatch.setattr(security, "_CHECK_SECONDS", 0.0)
    keys = Keys(file)
    file.unlink()
    new = add_key(file, name="new", scopes=frozenset(["predict"])).encode()
    with monkeypatch.context() as patched:

        def refused(path):
            raise KeysError("cannot be read (Permission denied)") from PermissionError(13)

        patched.setattr(security, "read_keys", refused)
        for _ in range(3):
            keys.check(old, "predict")
    assert caplog.text.count("the keys stay as they were") == 1
    keys.check(new, "predict")  # neither inode, size nor time of the file have changed meanwhile
    with pytest.raises(UnauthorizedError, match="not known"):
        keys.check(old, "predict")


def test_a_file_that_changes_while_it_is_read_is_read_again(file, monkeypatch):
    add_key(file, name="old", scopes=frozenset(["predict"]))
    new = []

    def then_changed(path):
        monkeypatch.setattr(security, "read_keys", read_keys)
        found = read_keys(path)
        new.append(add_key(path, name="new", scopes=frozenset(["predict"])).encode())
        return found

    monkeypatch.setattr(security, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(security, "read_keys", then_changed)
    keys = Keys(file)
    keys.check(new[0], "predict")


def test_a_key_is_added_to_the_file_behind_a_link(file, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(file)
    key = add_key(link, name="one", scopes=frozenset(["predict"])).encode()
    assert link.is_symlink()
    Keys(file).check(key, "predict")


def test_keys_made_at_once_are_all_in_the_file_which_keeps_its_permissions(file):
    add_key(file, name="first", scopes=frozenset(["predict"]))
    file.chmod(0o640)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add_key(file, name=f"key {number}", scopes=frozenset(["predict"])), range(16)))
    assert {key.name for key in read_keys(file)} == {"first", *(f"key {number}" for number in range(16))}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_service_with_a_bad_file_does_not_start(file, repository):
    command = [sys.executable, "-m", "service", "--repository", str(repository), "--keys", str(file), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "the service does not start: the file of keys" in ended.stderr


def test_the_command_line_makes_keys(file, capsys):
    assert main(["new-key", str(file), "--name", "ci", "--scope", "admin"]) == 0
    key = capsys.readouterr().out.strip()
    Keys(file).check(key.encode(), "admin")
    assert main(["new-key", str(file), "--name", "ci"]) == 1
    assert "has a key named 'ci'" in capsys.readouterr().err


@pytest.mark.anyio
async def test_with_keys_everything_but_health_needs_one(repository, file):
    user = add_key(file, name="user", scopes=frozenset(["predict"]))
    async with running(repository, keys=file) as service:
        http = service.http
        assert (await http.get("/v2/health/live")).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 200
        for path in ("/v1/models", "/v1/models/m/metadata", "/v2", "/v2/models/m", "/docs", "/openapi.json", "/nowhere"):
            assert (await http.get(path)).status_code == 401, path
        refused = await http.post("/v1/models/m:predict", json=ROW)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert set(refused.json()) == {"error"}
        assert (await http.post("/v2/models/m/infer", json={}, headers=bearer("eb_wrong"))).status_code == 401
        assert (await http.post("/v1/models/m:predict", json=ROW, headers=bearer(user))).status_code == 200
        assert (await http.post("/v1/models/m:predict", json=ROW, headers={"X-API-Key": user})).status_code == 200
        forbidden = await http.post("/v2/repository/models/m/unload", headers=bearer(user))
        assert forbidden.status_code == 403
        assert "lacks the scope 'admin'" in forbidden.json()["error"]


@pytest.mark.anyio
async def test_without_keys_models_are_not_loaded_or_unloaded(repository):
    async with running(repository) as service:
        for change in ("load", "unload"):
            answer = await service.http.post(f"/v2/repository/models/m/{change}")
            assert answer.status_code == 403
            assert "this service has no keys (setting keys)" in answer.json()["error"]
        assert (await service.predict(instances=[[1, 2]])).status_code == 200


@pytest.mark.anyio
async def test_keys_change_without_a_restart(repository, file, monkeypatch):
    monkeypatch.setattr("service.security._CHECK_SECONDS", 0.0)
    old = add_key(file, name="old", scopes=frozenset(["predict"]))
    async with running(repository, keys=file) as service:

        async def status(key):
            return (await service.http.post("/v1/models/m:predict", json=ROW, headers=bearer(key))).status_code

        new = add_key(file, name="new", scopes=frozenset(["predict"]))
        assert [await status(old), await status(new)] == [200, 200]
        document = json.loads(file.read_text())
        file.write_text(json.dumps({"keys": [key for key in document["keys"] if key["name"] == "new"]}))
        assert [await status(old), await status(new)] == [401, 200]
        file.write_text("{")  # a slip: nobody is locked out, nobody let in
        assert [await status(old), await status(new)] == [401, 200]
        file.unlink()
        assert [await status(old), await status(new)] == [401, 200]


@pytest.mark.parametrize("path", ["/v1/models/m:predict", "/v2/repository/index"])  # without ASGI, and with it
def test_the_log_names_the_key_that_was_used(start, repository, file, path):
    """So that one sees when an old key is used no more."""
    keys = {name: add_key(file, name=name, scopes=frozenset(["predict"])) for name in ("old", "new")}
    service = start(repository, "--keys", str(file), "--log-format", "json")
    for key in (keys["old"], "eb_wrong", keys["new"], keys["old"]):
        httpx.post(service.url + path, json=ROW if "predict" in path else {}, headers=bearer(key))
    assert service.stop() == 0
    lines = [json.loads(line) for line in service.log if path in line]
    assert [line.get("key") for line in lines] == ["old", None, "new", "old"]
    assert not any(key in "".join(service.log) for key in keys.values())


@pytest.mark.anyio
async def test_an_admin_unloads_and_loads(repository, file, tmp_path):
    boss = bearer(add_key(file, name="boss", scopes=frozenset(["admin"])))
    async with running(repository, keys=file) as service:

        async def change(what, name="m", **request):
            return await service.http.post(f"/v2/repository/models/{name}/{what}", headers=boss, **request)

        async def ready(path="/v2/health/ready"):
            return (await service.http.get(path, headers=boss)).status_code

        assert (await change("unload", json={"parameters": {"unload_dependents": False}})).status_code == 200
        answer = await service.http.post("/v1/models/m:predict", json=ROW, headers=boss)
        assert answer.status_code == 503
        assert "POST /v2/repository/models/m/load" in answer.json()["error"]
        index = (await service.http.post("/v2/repository/index", headers=boss)).json()
        assert index == [{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]
        assert [await ready("/v2/models/m/ready"), await ready()] == [503, 200]
    async with running(repository, keys=file) as service:  # it stays unloaded
        assert [await ready("/v2/models/m/ready"), await ready()] == [503, 200]
        assert (await change("load", content=b"{}")).status_code == 200
        assert await ready("/v2/models/m/ready") == 200
        assert (await change("load", "nothing")).status_code == 404
        assert (await change("unload", "nothing")).status_code == 404
        assert (await change("load", "..")).status_code == 404
        override = await change("load", json={"parameters": {"file:1/model.onnx": "AAAA"}})
        assert override.status_code == 400
        assert "models come from the repository only" in override.json()["error"]


@pytest.mark.anyio
async def test_load_tries_again_what_failed(repository, file):
    boss = bearer(add_key(file, name="boss", scopes=frozenset(["admin"])))
    model = repository / "m" / "1" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:100])
    async with running(repository, keys=file) as service:
        answer = await service.http.post("/v2/repository/models/m/load", headers=boss)
        assert answer.status_code == 503
        assert "truncated" in answer.json()["error"]
        model.write_bytes(whole)
        assert (await service.http.post("/v2/repository/models/m/load", headers=boss)).status_code == 200
