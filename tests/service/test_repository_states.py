"""Any sequence of what may happen to a model repository, against a small model of what the service is to make of it.

Every model file answers with a number of its own, so an answer tells which file gave it.
"""

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from models.artifact import ArtifactError, write_atomically
from service.app import create_app
from service.security import add_key
from service.settings import Settings
from tests.model_files import bad_model_files, write_formula_model
from training.publish import publish

NAMES = ("m", "n")
LABELS = ("stable", "canary")
GOOD = (100, 200, 300, 400)
"""Files by what they predict for a row of zeros."""
BAD = ("is empty", "is not an ONNX file", "is truncated", "was changed", "has manifest schema 9", "golden rows is off")
ZEROS = b'{"instances": [[0, 0]]}'
BAD_LABELS = ("{", '{"stable": "1"}', "[]")

names, labels, contents = st.sampled_from(NAMES), st.sampled_from(LABELS), st.sampled_from(GOOD + BAD)
versions = st.integers(1, 4)


@cache
def files():
    """The bytes of every file, good and bad, and the folder of the good ones."""
    folder = Path(tempfile.mkdtemp(prefix="errorbar-tests-"))
    for number in GOOD:
        write_formula_model(folder / f"{number}.onnx", offset=float(number))
    good = {number: (folder / f"{number}.onnx").read_bytes() for number in GOOD}
    bad = bad_model_files(folder / f"{GOOD[0]}.onnx")
    return folder, good | {next(what for what in BAD if what in sentence): data for sentence, data in bad.items()}


@pytest.fixture(scope="module", autouse=True)
def _remove_files():
    yield
    shutil.rmtree(files()[0])


@dataclass
class Folder:
    """A model's folder as it stands on disk."""

    files: dict[int, tuple[int, int | str]] = field(default_factory=dict)
    """By version: which write it was, and what it wrote."""
    labels: dict[str, int] | None = field(default_factory=dict)
    """None: the file is bad."""
    unloaded: bool = False


@dataclass
class Expected:
    """What the service is to know of a model since its last scan."""

    served: dict[int, int] = field(default_factory=dict)
    tried: dict[int, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    unloaded: bool = False
    versions: frozenset[int] = frozenset()
    touched: int = 0
    awaited: bool = True

    def scan(self, folder: Folder, *, loaded_versions: int, touched: int) -> Counter[str]:
        """Follow the folder; how many files were taken in and refused. touched: when the folder was changed."""
        reloads = Counter[str]()
        if touched != self.touched:  # what failed is tried again
            self.touched = touched
            for version in self.failed:
                self.tried.pop(version, None)
        if folder.labels is not None:
            self.labels = dict(folder.labels)
        kept: set[int] = set()
        for version in sorted(folder.files, reverse=True):
            enough = sum(other in self.served for other in kept) >= loaded_versions
            if folder.unloaded or (enough and version not in self.labels.values()):
                continue
            kept.add(version)
            write, content = folder.files[version]
            if self.tried.get(version) != write:
                self.tried[version] = write
                if isinstance(content, int):
                    self.served[version] = content
                    self.failed.pop(version, None)
                else:
                    self.failed[version] = content
                reloads["ok" if isinstance(content, int) else "refused"] += 1
        for known in (self.served, self.tried, self.failed):
            for version in known.keys() - kept:
                del known[version]
        self.unloaded, self.versions = folder.unloaded, frozenset(folder.files)
        self.awaited = self.awaited or bool(self.served)
        return reloads

    def answer(self, version: int | None = None, label: str | None = None) -> tuple[int, int | None, int | None]:
        """Status, version and number of an answer."""
        if label is not None and label not in self.labels:
            return 404, None, None
        if version is None and label is None:
            version = max(self.served, default=None)
            return (503, None, None) if version is None else (200, version, self.served[version])
        number = self.labels[label] if label is not None else version
        if number in self.served:
            return 200, number, self.served[number]
        return (503 if number in self.failed or self.unloaded else 404), None, None


class RepositoryStates(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="errorbar-tests-"))
        self.path = self.folder / "repository"
        self.admin = add_key(self.folder / "keys.json", name="admin", scopes=frozenset(["admin"]))
        self.user = add_key(self.folder / "keys.json", name="user", scopes=frozenset(["predict"]))
        self.disk = {name: Folder() for name in NAMES}
        self.writes = 0
        self.runner = asyncio.Runner()
        for number in GOOD[:2]:
            self._publish("m", number)
        self.restart(loaded_versions=1)

    def teardown(self):
        self.runner.close()
        shutil.rmtree(self.folder)

    # What may happen

    @rule(loaded_versions=st.integers(1, 2))
    def restart(self, loaded_versions):
        options = {"keys": self.folder / "keys.json", "loaded_versions": loaded_versions, "access_log": False}
        self.loaded_versions = loaded_versions
        # Without its lifespan nothing watches the folder, so that scans happen when the test says so.
        self.app = create_app(Settings(repository=self.path, **options))
        self.expected: dict[str, Expected] = {}
        self.reloads = Counter[str]()
        self.forbidden = 0
        self.was_ready = False
        self.served_once = set()
        self.scan()

    @rule(name=names, content=contents, scan=st.booleans())
    def publish(self, name, content, scan):
        if content in GOOD:
            self._publish(name, content)
        else:
            (self.folder / "bad.onnx").write_bytes(files()[1][content])
            with pytest.raises(ArtifactError, match=content):
                publish(self.folder / "bad.onnx", self.path, name=name)
        self._perhaps(scan)

    @rule(name=names, version=versions, content=contents, in_place=st.booleans(), scan=st.booleans())
    def write(self, name, version, content, in_place, scan):
        file = self.path / name / str(version) / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        if in_place:
            file.write_bytes(files()[1][content])
        else:
            write_atomically(files()[1][content], file)
        self._wrote(name, version, content)
        self._perhaps(scan)

    @rule(name=names, version=st.none() | versions, scan=st.booleans())
    def delete(self, name, version, scan):
        """A version, or all of the model with its labels."""
        if version is None:
            shutil.rmtree(self.path / name, ignore_errors=True)
            self.disk[name] = Folder()
        else:
            shutil.rmtree(self.path / name / str(version), ignore_errors=True)
            self.disk[name].files.pop(version, None)
        self._perhaps(scan)

    @rule(name=names, label=labels, version=versions | st.sampled_from(BAD_LABELS), scan=st.booleans())
    def label(self, name, label, version, scan):
        """Name a version, or write a file of labels that is bad."""
        known = self.disk[name].labels or {}
        given = version if isinstance(version, str) else json.dumps(known | {label: version})
        (self.path / name).mkdir(exist_ok=True)
        (self.path / name / "labels.json").write_text(given)
        self.disk[name].labels = None if isinstance(version, str) else known | {label: version}
        self._perhaps(scan)

    @rule(name=names, allowed=st.booleans())
    def unload(self, name, allowed):
        status = self._change(name, "unload", allowed=allowed)
        if not allowed:
            assert status == 403
        elif name not in self.expected:
            assert status == 404
        elif not (self.path / name).exists():  # removed since the last scan
            assert status == 503
        else:
            assert status == 200
            self.disk[name].unloaded = True
            self._follow()
            assert name not in self.expected or not self.expected[name].served

    @rule(name=names, allowed=st.booleans())
    def load(self, name, allowed):
        status = self._change(name, "load", allowed=allowed)
        if not allowed:
            assert status == 403
            return
        self.disk[name].unloaded = False
        self._follow()
        expected = self.expected.get(name)
        assert status == (404 if expected is None else 200 if expected.served else 503)

    @rule()
    def scan(self):
        """Requests come while the repository is read: each is answered as before it or as after it."""
        before = {path: self._expected(*place) for path, *place in self._places()}
        ready = {name for name, expected in self.expected.items() if expected.served}
        lost = {name for name in ready if not self._still_there(name)}

        async def ask_on():
            scanning = asyncio.create_task(self.app.state.service.repository.rescan())
            seen = []
            while not scanning.done():
                seen += [(path, await self._ask(path)) for path in before]
                await asyncio.sleep(0.001)
            await scanning
            return seen

        seen = self.runner.run(ask_on())
        self._follow()
        after = {path: self._expected(*place) for path, *place in self._places()}
        for path, told in seen:
            assert told in (before[path], after[path]), path
        assert ready - lost <= {name for name, expected in self.expected.items() if expected.served}

    @rule()
    def outage(self):
        """The volume is gone for a moment, and nothing with it."""
        away = self.path.rename(self.folder / "away")
        self.runner.run(self.app.state.service.repository.rescan())
        self.runner.run(self.every_answer_is_that_of_the_one_file_that_the_rules_allow())
        away.rename(self.path)

    # What must hold at any time

    @invariant()
    def what_is_served_is_as_expected(self):
        """Between scans nothing changes, so it is looked at once after each."""
        if self.followed:
            self.runner.run(self.every_answer_is_that_of_the_one_file_that_the_rules_allow())
            self.runner.run(self.states_are_told())
            self.everything_is_counted()
            self.followed = False

    async def every_answer_is_that_of_the_one_file_that_the_rules_allow(self):
        for path, *place in self._places():
            assert await self._ask(path) == self._expected(*place), path

    async def states_are_told(self):
        models = {model["name"]: model for model in orjson.loads((await self._get("/v1/models"))[2])["models"]}
        assert set(models) == set(self.expected)
        for name, expected in self.expected.items():
            states = {one["version"]: (one["state"], one.get("reason", "")) for one in models[name]["versions"]}
            assert set(states) == {str(version) for version in expected.versions}
            for version in expected.versions:
                state, reason = states[str(version)]
                assert state == (
                    "ready" if version in expected.served else "failed" if version in expected.failed else "not loaded"
                )
                assert (expected.failed[version] in reason) if version in expected.failed else not reason
                ready, *_ = await self._get(f"/v2/models/{name}/versions/{version}/ready")
                assert ready == expected.answer(version)[0]
            assert models[name]["labels"] == {label: str(version) for label, version in expected.labels.items()}
            assert ("labels_problem" in models[name]) == (self.seen_labels_problem[name])
        assert (await self._get("/v2/health/ready"))[0] == (503 if self._waiting() else 200)

    def everything_is_counted(self):
        service = self.app.state.service
        assert service.metrics.reloads == self.reloads
        assert service.metrics.rejected["forbidden"] == self.forbidden
        served = {(name, str(version)) for name, expected in self.expected.items() for version in expected.served}
        assert {(name, version) for (name, version, *_), _ in service.own_snapshot()["errorbar_model_info"]} == served

    # Helpers

    def _wrote(self, name, version, content):
        self.writes += 1
        self.disk[name].files[version] = (self.writes, content)

    def _publish(self, name, number):
        path = publish(files()[0] / f"{number}.onnx", self.path, name=name)
        version = max([*self.disk[name].files, *(self.disk[name].labels or {}).values()], default=0) + 1
        assert path.parent.name == str(version)
        self._wrote(name, version, number)

    def _perhaps(self, scan):
        if scan:
            self.scan()

    def _follow(self):
        """Let the expectations see what a scan sees."""
        self.followed = True
        for name, folder in self.disk.items():
            if folder.files:
                awaited = not self.was_ready or name in self.served_once
                expected = self.expected.setdefault(name, Expected(awaited=awaited))
                touched = (self.path / name).stat().st_mtime_ns
                self.reloads += expected.scan(folder, loaded_versions=self.loaded_versions, touched=touched)
            else:
                self.expected.pop(name, None)
        self.seen_labels_problem = {name: folder.labels is None for name, folder in self.disk.items()}
        self.served_once |= {name for name, expected in self.expected.items() if expected.served}
        self.was_ready = self.was_ready or not self._waiting()

    def _waiting(self):
        """Whether the service is not ready: once it was, a new model that never served counts only where no other serves."""
        every = self.expected.values()
        nothing = not any(one.served for one in every)
        return not every or any((one.awaited or nothing) and not one.served and not one.unloaded for one in every)

    def _still_there(self, name):
        """Whether nothing was done to a model that may take it away: deleting versions of it."""
        return set(self.expected[name].served) <= set(self.disk[name].files)

    def _places(self):
        for name in NAMES:
            yield f"/v1/models/{name}:predict", name, None, None
            for version in range(1, 6):
                yield f"/v1/models/{name}/versions/{version}:predict", name, version, None
            for label in LABELS:
                yield f"/v1/models/{name}/labels/{label}:predict", name, None, label

    def _expected(self, name, version, label):
        return self.expected[name].answer(version, label) if name in self.expected else (404, None, None)

    async def _ask(self, path):
        """Status, version and number of an answer, which must have the one form of its status."""
        status, headers, text = await asked(self.app, "POST", path, key=self.user, body=ZEROS)
        body = orjson.loads(text)
        if status == 200:
            return 200, int(body["model"]["version"]), int(body["predictions"][0]["mean"])
        assert set(body) == {"error"}
        assert (b"retry-after" in headers) == (status == 503)
        return status, None, None

    def _change(self, name, change, *, allowed):
        self.forbidden += not allowed
        key = self.admin if allowed else self.user
        return self.runner.run(asked(self.app, "POST", f"/v2/repository/models/{name}/{change}", key=key))[0]

    async def _get(self, path):
        return await asked(self.app, "GET", path, key=self.user)


async def asked(app, method, path, *, key, body=b""):
    """Status, headers and body of an answer; a tenth of the time that a client takes for it."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, "client": None}
    await app(scope, receive, send)
    start, end = sent
    return start["status"], {name.lower() for name, _ in start["headers"]}, end["body"]


TestRepositoryStates = RepositoryStates.TestCase
TestRepositoryStates.settings = settings(max_examples=40, stateful_step_count=20, derandomize=True, deadline=None)
