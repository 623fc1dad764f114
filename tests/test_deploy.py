"""The examples of deploy/ name only what there is: metrics, settings, paths, ports, users, reasons."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.cli import main
from service.errors import ServiceError
from service.metrics import OK
from service.settings import ENVIRONMENT_PREFIX, Settings
from tests.model_files import write_formula_model
from tests.service.conftest import running

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.iterdir())
SETTINGS = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def expressions():
    """Every PromQL expression of the alerts and the dashboard."""
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    variables = [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [rule["expr"] for group in documents("alerts.yml")[0]["groups"] for rule in group["rules"]]
    assert len(panels) > 10
    assert len(rules) > 5
    return variables + panels + rules


def kubernetes(kind):
    return next(document for document in documents("kubernetes.yaml") if document["kind"] == kind)


def pods():
    """The pods that serve, of Kubernetes and of KServe."""
    return [kubernetes("Deployment")["spec"]["template"]["spec"], documents("kserve.yaml")[0]["spec"]["predictor"]]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_metrics_and_their_labels_are_on_the_page(tmp_path):
    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    async with running(tmp_path) as service:
        for instance in ([1, 2], [1]):
            await service.predict(instances=[instance])
        page = (await service.http.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    labels = {name: {label for s in samples if s.name == name for label in s.labels} for name in {s.name for s in samples}}
    reasons = {kind.reason for kind in every(ServiceError)}
    values = {"outcome": reasons | {OK, "refused"}, "reason": reasons, "phase": {"read", "run", "write"}}
    for expression in expressions():
        used = set(re.findall(r"\berrorbar_\w+", expression))
        assert used <= labels.keys(), expression
        known = {label for name in used for label in labels[name]} | {"job", "instance"}
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert set(grouped.split(", ")) <= known, expression
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', expression):
            assert label in known, expression
            assert label not in values or set(value.split("|")) <= values[label], expression


def every(kind):
    return {kind}.union(*(every(child) for child in kind.__subclasses__()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_is_one(path):
    refused = {"ERRORBAR_SERVICE_HOST"}  # named as what Kubernetes would set
    assert set(re.findall(r"ERRORBAR_[A-Z_]+", path.read_text())) - refused <= SETTINGS


def test_the_values_of_settings_are_taken(monkeypatch):
    for pod in pods():
        given = {item["name"]: item["value"] for item in pod["containers"][0]["env"] if item["name"] in SETTINGS}
        assert given
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        settings = Settings()
        assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.shutdown_seconds
        assert settings.drain_seconds >= probe_seconds(pod["containers"][0]["readinessProbe"])


def test_systemd_lets_the_service_end_and_open_its_connections(monkeypatch):
    unit = (DEPLOY / "errorbar.service").read_text()
    for name, value in re.findall(r"^Environment=(ERRORBAR_\w+)=(.+)$", unit, re.MULTILINE):
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.drain_seconds > 0
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]) > settings.drain_seconds + settings.shutdown_seconds
    assert int(re.search(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)[1]) >= settings.max_connections + 100


def test_nginx_lets_through_what_the_service_takes():
    proxy, settings = (DEPLOY / "nginx.conf").read_text(), Settings()
    assert int(re.search(r"client_max_body_size (\d+)m;", proxy)[1]) * 2**20 == settings.max_body_bytes
    assert int(re.search(r"proxy_read_timeout (\d+)s;", proxy)[1]) > settings.deadline_seconds
    assert f"server 127.0.0.1:{settings.port};" in proxy


def test_a_disruption_leaves_a_pod_that_serves():
    budget, deployment = kubernetes("PodDisruptionBudget")["spec"], kubernetes("Deployment")["spec"]
    assert budget["selector"] == deployment["selector"]
    assert 1 <= budget["minAvailable"] < deployment["replicas"]


def probe_seconds(probe):
    """How long it may take until a pod that is not ready is known as such."""
    return probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])


def test_pods_may_do_no_more_than_they_need():
    user = int(re.search(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1])
    for pod in [*pods(), kubernetes("Job")["spec"]["template"]["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (user, user)
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts, volumes = container["volumeMounts"], pod["volumes"]
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in volumes}
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume} == {
            kubernetes("PersistentVolumeClaim")["metadata"]["name"]
        }
    for pod in pods():
        assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "models"} == {
            "/models"
        }


def test_a_service_named_errorbar_does_not_become_a_setting():
    assert kubernetes("Service")["metadata"]["name"] == "errorbar"  # Kubernetes would set ERRORBAR_PORT to tcp://...
    for pod in pods():
        assert pod["enableServiceLinks"] is False


@pytest.mark.anyio
async def test_ports_and_paths_of_probes_are_there(tmp_path):
    image = (ROOT / "Dockerfile").read_text()
    port = int(re.search(r"ERRORBAR_PORT=(\d+)", image)[1])
    assert "ERRORBAR_REPOSITORY=/models" in image
    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    async with running(tmp_path) as service:
        for pod in pods():
            (container,) = pod["containers"]
            (listening,) = container["ports"]
            assert listening["containerPort"] == port
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container[kind]["httpGet"]
                assert asked["port"] in (port, listening.get("name"))
                assert (await service.http.get(asked["path"])).status_code == 200
    service_ports = kubernetes("Service")["spec"]["ports"]
    assert [(one["port"], one["targetPort"]) for one in service_ports] == [(port, "http")]
    (job,) = documents("prometheus.yml")[0]["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{Settings.model_fields['port'].default}"]
    assert (DEPLOY / documents("prometheus.yml")[0]["rule_files"][0]).is_file()


def test_the_keys_of_the_secret_are_made_as_it_is_said(tmp_path, monkeypatch, capsys):
    text = (DEPLOY / "kubernetes.yaml").read_text()
    arguments = re.search(r"python -m service (new-key \S+ --name \S+)", text)[1].split()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("eb_")
    (pod, _) = pods()
    environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "keys"]
    assert environment["ERRORBAR_KEYS"] == f"{mount['mountPath']}/{arguments[1]}"
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
    assert f"secret generic {volume['secret']['secretName']} --from-file={arguments[1]}" in text


def test_a_model_in_an_image_is_not_kept_out_of_its_build():
    text, ignored = (DEPLOY / "clouds.md").read_text(), (ROOT / ".dockerignore").read_text()
    context = re.search(r"docker build --file \S+ --tag REGISTRY/errorbar-diabetes (\S+)", text)[1]
    copied = re.search(r"^COPY (\S+) /models$", text, re.MULTILINE)[1]
    assert context != "." or f"!{copied}" in ignored.splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_key(path):
    text = path.read_text()
    assert not re.search(r"eb_[\w-]{20,}|\b[0-9a-f]{64}\b|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert "kind: Secret" not in text


def test_every_file_is_told_of_and_tells_how_it_is_used():
    readme = (DEPLOY / "README.md").read_text()
    for path in FILES:
        if path.name != "README.md":
            assert f"`{path.name}`" in readme
        if path.suffix in (".yml", ".yaml"):
            assert path.read_text().startswith("# ")
    assert "Import" in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["description"]
