"""What deploys Eddy: the image's recipe, its locked packages and health check, the compose files, the manifest.

No container engine is needed: what they say is checked against the repository and against the defaults in the code.
"""

import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eddy.service.config import Config
from examples.server import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CONFIG = Config()
PORTS = {CONFIG.server.grpc_port, CONFIG.server.http_port}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
SERVICES = ("eddy", "prometheus", "grafana")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, what follows), with lines joined and without comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(words[0], words[1]) for line in joined.splitlines() if (words := line.split(maxsplit=1))]


def values(name: str) -> list[str]:
    """What follows each instruction of a name, in order."""
    return [rest for instruction, rest in instructions() if instruction == name]


def compose(name: str) -> dict[str, Any]:
    """The services of a compose file."""
    return dict(yaml.safe_load((DEPLOY / name).read_text())["services"])


def manifest() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by kind."""
    return {item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def pod() -> dict[str, Any]:
    """What the Deployment says of its pods."""
    return dict(manifest()["Deployment"]["spec"]["template"]["spec"])


def container() -> dict[str, Any]:
    """The one container of a pod."""
    [only] = pod()["containers"]
    return dict(only)


def seconds(text: str) -> float:
    """A duration as compose writes it."""
    assert text.endswith("s")
    return float(text[:-1])


def has_options(words: list[str]) -> None:
    """The words after `eddy` are a command with options that its help lists."""
    run = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-m", "eddy.cli", words[0], "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", run.stdout), option


# ---- Image ----------------------------------------------------------------------------------------------------------


def test_dockerfile_lint() -> None:
    """Hadolint finds nothing in the Dockerfile, and every finding that it is told to ignore stands under a reason."""
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: it is in the extra `dev`")
    run = subprocess.run(  # noqa: S603  # the linter
        [hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    for before, line in pairwise(lines):
        if "hadolint ignore" in line:
            assert before.startswith("# "), f"no reason above {line!r}"


def test_base_image_is_pinned() -> None:
    """Every stage stands on the one base image, whose tag goes down to the patch and takes a digest."""
    arguments = dict(rest.split("=", 1) for rest in values("ARG") if "=" in rest)
    assert re.fullmatch(r"3\.1[1-9]\.\d+-slim-[a-z]+", arguments["PYTHON_TAG"])
    stages = {rest.split(" AS ")[-1] for rest in values("FROM") if " AS " in rest}
    images = {rest.split(" AS ")[0] for rest in values("FROM")} - stages
    assert images == {"python:${PYTHON_TAG}${PYTHON_DIGEST}"}
    assert arguments["VERSION"] == VERSION


def test_image_runs_as_nobody_in_exec_form() -> None:
    """The last stage has a fixed user id, signals reach Python, and what needs no writing is switched off."""
    assert values("USER") == ["10001:10001"]
    assert values("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(values("ENTRYPOINT")[-1]) == ["eddy"]
    command = json.loads(values("CMD")[-1])
    has_options(command)
    assert command[command.index("--host") + 1] == "0.0.0.0"  # noqa: S104  # within the container
    environment = dict(word.split("=", 1) for rest in values("ENV") for word in rest.split())
    assert environment["PYTHONDONTWRITEBYTECODE"] == environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_image_exposes_the_default_ports() -> None:
    """EXPOSE names the ports that the server listens on when nobody says otherwise."""
    assert {int(port) for port in values("EXPOSE")[-1].split()} == PORTS


def test_copied_files_reach_the_builder() -> None:
    """Everything that the Dockerfile copies is in the repository, and .dockerignore lets it through and little else."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = set()
    for rest in values("COPY"):
        if not rest.startswith("--from"):
            copied |= {name.replace("${EXTRA}", extra) for name in rest.split()[:-1] for extra in ("cpu", "gpu")}
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, pattern) for pattern in allowed), name
    assert all(any(fnmatch(name, pattern) for name in copied) for pattern in allowed)


@pytest.mark.parametrize(("extra", "runtime"), [("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu")])
def test_packages_are_locked(extra: str, runtime: str) -> None:
    """Each variant locks all that pyproject.toml asks for, within its bounds, with hashes, one runtime and no torch."""
    text = (DEPLOY / f"requirements-{extra}.txt").read_text()
    locked = dict(re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    assert len(locked) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, asked):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)
    assert {name for name in locked if name.startswith("onnxruntime")} == {runtime}
    assert "torch" not in locked
    assert {"nvidia-cublas", "nvidia-cudnn-cu13"} <= set(locked) or extra == "cpu"


# ---- Health check ---------------------------------------------------------------------------------------------------


def healthcheck(port: int) -> tuple[int, str]:
    """Exit code and output of the image's health check, with Python's options as in the Dockerfile."""
    [line] = values("HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    assert command[-1] == "/opt/eddy/healthcheck.py"
    assert f"deploy/healthcheck.py {command[-1]}" in values("COPY")
    run = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, *command[1:-1], str(DEPLOY / "healthcheck.py"), str(port)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert not run.stderr
    return run.returncode, run.stdout.strip()


def port_of(address: str) -> int:
    """The port of host:port."""
    return int(address.rpartition(":")[2])


def test_healthy_is_ready() -> None:
    """A server that serves all of its models is healthy; after its end the port does not answer, which is not."""
    with ServerProcess() as server:
        assert healthcheck(port_of(server.http)) == (0, "ready")
        port = port_of(server.http)
    assert server.exit_code == 0
    code, text = healthcheck(port)
    assert code == 1
    assert text.startswith(f"no answer from port {port}")


def test_unready_is_unhealthy(tmp_path: Path) -> None:
    """A server with a model that it refuses is not healthy, and the check says why."""
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    with ServerProcess(tmp_path) as server:
        code, text = healthcheck(port_of(server.http))
    assert code == 1
    assert "broken" in text


class _Ready(BaseHTTPRequestHandler):
    """Says that it is ready, and logs nothing."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b"ready\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        pass


@contextmanager
def tls_server(folder: Path) -> Iterator[int]:
    """The port of a server over TLS that is always ready, with a certificate made on the spot."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: it makes the certificate")
    key, certificate = str(folder / "tls.key"), str(folder / "tls.crt")
    subprocess.run(  # noqa: S603  # openssl
        [
            openssl,
            *f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=eddy -keyout {key} -out {certificate}".split(),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_healthy_over_tls(tmp_path: Path) -> None:
    """Where the port speaks TLS the check does, too, without being told."""
    with tls_server(tmp_path) as port:
        assert healthcheck(port) == (0, "ready")


# ---- Compose --------------------------------------------------------------------------------------------------------


def test_compose_images_are_pinned() -> None:
    """Every image has a version; Eddy's is this one."""
    services = compose("compose.yaml")
    assert tuple(services) == SERVICES
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"])
    gpu = compose("compose.gpu.yaml")
    assert set(gpu) == {"eddy"}
    for extra, service in (("cpu", services["eddy"]), ("gpu", gpu["eddy"])):
        assert service["image"] == f"eddy:{VERSION}-{extra}"
        assert service["build"]["args"] == {"EXTRA": extra}
    assert (DEPLOY / services["eddy"]["build"]["context"] / "Dockerfile").is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_compose_services_are_confined(name: str) -> None:
    """No service writes to its root, is root, has capabilities, or is reached from beyond this machine."""
    service = compose("compose.yaml")[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0", "root"))
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_compose_mounts_exist(name: str) -> None:
    """What a service mounts from the repository is there, read-only; the rest are declared volumes."""
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    for mount in compose("compose.yaml")[name]["volumes"]:
        source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).split(":")[0]
        if not source.startswith("."):
            assert source in volumes
            continue
        assert mount.endswith(":ro")
        if name != "eddy" and not (DEPLOY / name).exists():
            pytest.skip(f"deploy/{name} is not in this tree")
        assert (DEPLOY / source).exists(), mount


def test_compose_agrees_with_image_and_defaults() -> None:
    """Ports, user, health check and the time to drain are those of the image and of the server."""
    service = compose("compose.yaml")["eddy"]
    published = [tuple(map(int, port.split(":")[1:])) for port in service["ports"]]
    assert published == [(port, port) for port in sorted(PORTS)]
    assert service["user"] == values("USER")[-1]
    [line] = values("HEALTHCHECK")
    assert service["healthcheck"]["test"] == ["CMD", *json.loads(line[line.index("[") :])]
    for option, value in re.findall(r"--([\w-]+)=(\S+)", line):
        assert str(service["healthcheck"][option.replace("-", "_")]) == value
    assert seconds(service["stop_grace_period"]) >= CONFIG.server.drain_seconds + 5
    models = re.escape(json.loads(values("CMD")[-1])[-1])
    assert re.search(rf":{models}:ro$", service["volumes"][0])


# ---- Kubernetes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", "1.33"])
def test_manifest_is_valid(version: str) -> None:
    """Every object of the manifest fits the schema of Kubernetes, with no unknown field."""
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is in the extra `test`"
    )
    for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(item, version, strict=True)


def test_manifest_ports_and_probes() -> None:
    """Ports are the server's defaults, the Service and the probes name them, and probes ask for what they mean."""
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": CONFIG.server.grpc_port, "http": CONFIG.server.http_port}
    service = manifest()["Service"]["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == ports
    assert {port["targetPort"] for port in service["ports"]} == set(ports)
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    annotations = manifest()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["http"])
    assert {rule["port"] for item in manifest()["NetworkPolicy"]["spec"]["ingress"] for rule in item["ports"]} == PORTS


def test_manifest_selects_its_pods() -> None:
    """Deployment, Service and NetworkPolicy select the label that the pods carry."""
    objects = manifest()
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/version"] == VERSION
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_manifest_confines_the_pod() -> None:
    """The user is the image's, nothing is privileged, the root is read-only and the image has a version."""
    user, group = map(int, values("USER")[-1].split(":"))
    security = pod()["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, user, group)
    inner = container()["securityContext"]
    assert inner["readOnlyRootFilesystem"] is True
    assert inner["allowPrivilegeEscalation"] is False
    assert inner["capabilities"] == {"drop": ["ALL"]}
    assert container()["image"].endswith(f"/eddy:{VERSION}-cpu")


def test_manifest_leaves_time_to_drain() -> None:
    """The grace period covers the wait before SIGTERM, the drain as configured, and five seconds to end."""
    settings = tomllib.loads(manifest()["ConfigMap"]["data"]["eddy.toml"])
    wait = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] >= wait + settings["server"]["drain_seconds"] + 5


def test_manifest_configures_known_keys() -> None:
    """The ConfigMap holds keys that the server knows; the command has its options and names the mounted file."""
    [(file, text)] = manifest()["ConfigMap"]["data"].items()
    for section, settings in tomllib.loads(text).items():
        assert set(settings) <= {item.name for item in fields(getattr(CONFIG, section))}
    arguments = container()["args"]
    has_options(arguments)
    [mount] = [item for item in container()["volumeMounts"] if item["name"] == "config"]
    assert arguments[arguments.index("--config") + 1] == f"{mount['mountPath']}/{file}"


def test_variables_are_keys_of_the_configuration() -> None:
    """Every EDDY_SECTION_KEY that the files and the deployment page set is a key of the configuration."""
    known = {
        f"EDDY_{section.name}_{item.name}".upper()
        for section in fields(CONFIG)
        for item in fields(getattr(CONFIG, section.name))
    }
    if "EDDY_SERVER_ALLOW_PLAINTEXT" not in known:
        pytest.skip("this server has no server.allow_plaintext, and reads no variables")
    files = [*DEPLOY.glob("*.yaml"), DEPLOY / "healthcheck.py", ROOT / "Dockerfile", ROOT / "docs" / "deployment.md"]
    for path in files:
        named = set(re.findall(r"EDDY_(?:SERVER|SESSION|MODEL)_\w+", path.read_text(encoding="utf-8")))
        assert named <= known, f"{path.name}: {named - known}"
