"""The documents stay true: commands, code blocks and tables of README and docs, against the real thing."""

import ast
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import av
import numpy as np
import pytest
import yaml

from benchmarks.figure import DEFINITIONS
from eddy import SyncClient, errors
from eddy.commands.config import markdown_table
from eddy.inspection.settings_file import parse_settings
from eddy.service.codec import GRPC_CODES
from eddy.service.config import KEYS
from eddy.service.errors import Reason
from eddy.service.sources import load_config
from eddy.v1 import contract_pb2, inference_pb2
from examples.server import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
PORTS = {"127.0.0.1:8500": "target", "127.0.0.1:8501": "http"}


def blocks(language: str) -> list[tuple[str, str]]:
    """The fenced blocks of a language in all documents: where, and the text."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{path.relative_to(ROOT)}:{line}", match[1]))
    return found


def _is_config(where: str) -> bool:
    return where.startswith("docs/configuration.md")


def commands() -> list[tuple[str, list[str]]]:
    """Every line of the shell blocks, as words, without comments; lines that end in a backslash go on."""
    joined = [(where, re.sub(r"\\\n\s*", "", text)) for where, text in blocks("sh")]
    lines = [(where, line) for where, text in joined for line in text.splitlines() if line.strip()]
    return [(f"{where} {line.partition('#')[0].strip()}", shlex.split(line, comments=True)) for where, line in lines]


def commands_of(*words: str) -> list[object]:
    """One case for each command of the shell blocks that begins with these words."""
    return [pytest.param(found, id=where) for where, found in commands() if found[: len(words)] == list(words)]


def docker_options(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options of a docker command with their values, and what follows them. An unknown option is a KeyError."""
    has_value = {
        **dict.fromkeys(("--publish", "--volume", "--env", "--tmpfs", "--cap-drop", "--gpus", "--name"), True),
        **dict.fromkeys(("--security-opt", "--stop-timeout", "--tag", "--build-arg", "--cpus", "--memory"), True),
        **dict.fromkeys(("--rm", "--read-only", "--detach"), False),
    }
    options: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name, _, value = rest.pop(0).partition("=")
        options.setdefault(name, []).append(value or rest.pop(0) if has_value[name] else "")
    return options, rest


def table(document: str, header: str) -> list[list[str]]:
    """The rows of the table that begins with the header, as plain cells."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = text[text.index(header) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def params(found: list[tuple[str, str]]) -> list[object]:
    """One case a block, named by its place."""
    return [pytest.param(text, id=where) for where, text in found]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The README's own `eddy serve` command on the shipped models, with free ports."""
    [words] = {tuple(words) for _, words in commands() if words[0].endswith("eddy") and "--grpc-port" in words}
    options = dict(pairwise(words[2:]))
    assert words[:2] == (".venv/bin/eddy", "serve")
    assert (options["--grpc-port"], options["--http-port"]) == ("8500", "8501")
    with ServerProcess(ROOT / options["--model-repository"]) as process:
        yield process
    assert process.exit_code == 0


@pytest.mark.parametrize("text", params(blocks("python")))
def test_python_blocks_run(
    text: str,
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every Python block of the documents runs as it stands against a real server, and prints something."""
    monkeypatch.chdir(tmp_path)  # Where they write files.
    for address, name in PORTS.items():
        text = text.replace(address, getattr(server, name))
    exec(compile(text, "block", "exec"), {"__name__": "__main__"})  # noqa: S102  # our own documents
    assert capsys.readouterr().out


@pytest.mark.parametrize("text", params([(where, text) for where, text in blocks("toml") if not _is_config(where)]))
def test_recipe_blocks_are_valid(text: str) -> None:
    """Recipes in the documents, and [model] tables alone, are accepted: every key is known, each value has its type."""
    from eddy.training.families.shapes import parse_architecture
    from eddy.training.recipe import parse_recipe

    table = tomllib.loads(text)
    if "context_steps" in table:
        assert parse_settings(text).context_steps
    elif set(table) == {"model"}:
        parse_architecture(table["model"])
    else:
        assert parse_recipe(table).name


def test_shell_blocks_use_known_commands() -> None:
    """Shell blocks hold only commands that these tests know how to check."""
    assert {Path(words[0]).name for _, words in commands()} == {"make", "eddy", "docker", "kubectl"}


def test_make_targets_exist() -> None:
    """Every `make` command of the documents names a target and variables that the Makefile has."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for where, words in commands():
        if words[0] != "make":
            continue
        assert words[1] in targets, where
        for variable in words[2:]:
            assert f"$({variable.partition('=')[0]})" in makefile or f"$(if $({variable.partition('=')[0]})" in makefile


def test_every_make_target_is_documented() -> None:
    """The README's development section names every target that `make help` lists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    assert listed <= {words[1] for where, words in commands() if where.startswith("README.md")}


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=where) for where, words in commands() if Path(words[0]).name == "eddy"]
)
def test_eddy_commands_have_these_options(words: list[str]) -> None:
    """Every `eddy` command of the documents names a subcommand and options that its help lists."""
    command = words[1:3] if words[1] == "client" else words[1:2]
    run = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-m", "eddy.cli", *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", run.stdout), option


def test_client_commands_run(server: ServerProcess) -> None:
    """Every `eddy client` command of the documents runs as it stands, in this order.

    ID and TOKEN are those of the session kept before.
    """
    found = ""
    for where, words in commands():
        if words[1] != "client":
            continue
        kept = {"ID": found.partition(":")[0], "ID:TOKEN": found}
        arguments = [kept.get(word, word) for word in words[1:]]
        run = subprocess.run(  # noqa: S603  # our own command
            [sys.executable, "-W", "error", "-m", "eddy.cli", *arguments, "--target", server.target],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60.0,
            check=False,
            cwd=ROOT,
        )
        assert run.returncode == 0, f"{where}: {run.stderr}"
        assert run.stdout or words[2] == "close", where
        if "--keep" in words:
            [found] = re.findall(r"--session (\w+:\w+)", run.stderr)


@pytest.mark.parametrize("words", commands_of("docker", "run"))
def test_docker_run_fits_the_image(words: list[str]) -> None:
    """Every `docker run` names the image that `make image` builds, its ports, folders and known variables."""
    options, [image, *command] = docker_options(words[2:])
    assert image in {f"eddy:{VERSION}-cpu", f"eddy:{VERSION}-gpu"}
    assert ("--gpus" in options) == image.endswith("-gpu")
    assert ("--read-only" in options, options["--cap-drop"]) == (True, ["ALL"])
    for published in options["--publish"]:
        host, outside, inside = published.split(":")
        assert (host, outside) == ("127.0.0.1", inside)
        assert inside in {port.rpartition(":")[2] for port in PORTS}
    for mount in options.get("--volume", []):
        source, target, mode = mount.split(":")
        assert source.startswith("$PWD/")
        assert target.startswith("/")
        assert mode == "ro"
    for variable in options.get("--env", []):
        assert re.fullmatch(r"EDDY_(SERVER|SESSION|MODEL)_[A-Z_]+=.+", variable)
    if command:
        known = subprocess.run(  # noqa: S603  # our own command
            [sys.executable, "-m", "eddy.cli", command[0], "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert all(re.search(rf"{word}\b", known) for word in command if word.startswith("--"))


@pytest.mark.parametrize("words", commands_of("docker", "build"))
def test_docker_build_fits_the_dockerfile(words: list[str]) -> None:
    """Every `docker build` builds this folder under the image's tag, with arguments that the Dockerfile declares."""
    options, [context] = docker_options(words[2:])
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    assert context == "."
    assert options["--tag"][0].startswith(f"eddy:{VERSION}-")
    assert {argument.partition("=")[0] for argument in options.get("--build-arg", [])} <= declared


@pytest.mark.parametrize("words", commands_of("docker", "compose"))
def test_docker_compose_names_files_and_services(words: list[str]) -> None:
    """Every `docker compose` names compose files of the repository, a command that there is, and their services."""
    files = [words[index + 1] for index, word in enumerate(words) if word == "--file"]
    assert files
    services = set().union(*(yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"] for file in files))
    command, *rest = words[2 + 2 * len(files) :]
    assert command in {"up", "down", "stop", "logs"}
    assert {word for word in rest if not word.startswith("--")} <= services
    assert {word for word in rest if word.startswith("--")} <= {"--build", "--detach", "--follow", "--volumes"}


@pytest.mark.parametrize("words", commands_of("kubectl"))
def test_kubectl_names_what_the_manifest_has(words: list[str]) -> None:
    """Every `kubectl` applies a file of the repository, or names an object that the manifest has."""
    manifest = ROOT / "deploy" / "kubernetes.yaml"
    objects = {
        f"{item['kind'].lower()}/{item['metadata']['name']}"
        for item in yaml.safe_load_all(manifest.read_text(encoding="utf-8"))
    }
    if words[1] == "apply":
        assert words[2] == "--filename"
        assert (ROOT / words[3]).is_file()
    elif words[1] == "create":  # A secret that the manifest does not hold.
        assert words[2:5] == ["secret", "tls", "eddy-tls"]
    else:
        assert words[1] in {"rollout", "port-forward"}
        assert {word for word in words if "/" in word} <= objects


@pytest.mark.parametrize("text", params([(where, text) for where, text in blocks("toml") if _is_config(where)]))
def test_configuration_blocks_are_valid(text: str, tmp_path: Path) -> None:
    """The configuration files in the documents load, and set something."""
    path = tmp_path / "eddy.toml"
    path.write_text(text, encoding="utf-8")
    assert set(load_config(path).origins.values()) == {"default", str(path)}


@pytest.mark.parametrize("document", ["README.md", "docs/configuration.md"])
def test_configuration_table_is_complete_and_true(document: str) -> None:
    """The table has every key in order: its type, its default as TOML writes it, its variable and its meaning."""
    text = (ROOT / document).read_text(encoding="utf-8")
    shown = text.partition("<!-- keys: begin -->\n")[2].partition("<!-- keys: end -->")[0]
    assert shown == markdown_table(), "write it anew: eddy config --markdown"
    rows = table(document, "| key |")
    assert [row[0] for row in rows] == list(KEYS)
    for name, _, default, variable, _ in rows:
        value = tomllib.loads(f"value = {default}")["value"]
        assert (tuple(value) if isinstance(value, list) else value) == KEYS[name].default
        assert set(load_config(environment={variable: _plain(value)}).origins.items()) >= {(name, variable)}


def _plain(value: object) -> str:
    """A value as an environment variable writes it."""
    return str(value).lower() if isinstance(value, bool) else "" if value == [] else str(value)


def test_metrics_table_is_what_is_exposed(server: ServerProcess) -> None:
    """The table has exactly the `eddy_` metrics of /metrics, with their types and labels."""
    # A refusal, so that its counter appears.
    with SyncClient(server.target) as client, pytest.raises(errors.NotFound), client.session("no-such-model"):
        pass
    # A call is counted as finished when the server is done with it, which may be after its client is.
    deadline = time.monotonic() + 30.0
    while True:
        with urlopen(f"http://{server.http}/metrics", timeout=5.0) as response:
            text = response.read().decode()
        if re.search(r"^eddy_grpc_finished_calls_total\{", text, re.MULTILINE) or time.monotonic() > deadline:
            break
    types = dict(re.findall(r"^# TYPE (eddy_\w+) (\w+)$", text, re.MULTILINE))
    exposed = {}
    for name, labels in re.findall(r"^(eddy_\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        family = name if name in types else name.rpartition("_")[0]  # A histogram's _bucket, _count and _sum.
        own = set(re.findall(r'(\w+)="', labels)) - ({"le"} if types[family] == "histogram" else set())
        exposed[family] = (types[family], ", ".join(sorted(own)))
    assert exposed.keys() == types.keys()
    assert {name: (kind, labels) for name, kind, labels, _ in table("README.md", "| metric |")} == exposed


def test_error_table_is_the_servers() -> None:
    """The wire page has every reason with the gRPC code that the server gives it."""
    import grpc

    names = {code.value[0]: code.name for code in grpc.StatusCode}
    expected = {reason.name: names[GRPC_CODES[reason]] for reason in Reason}
    assert {reason: code for reason, code, _ in table("docs/wire.md", "| reason |")} == expected


def test_bytes_on_the_wire_page_are_the_message() -> None:
    """The annotated bytes of the wire page are the message that it describes."""
    [text] = [text for where, text in blocks("text") if where.startswith("docs/wire.md")]
    shown = bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b(?= |$)", "\n".join(map(_hex_part, text.splitlines())))))
    step = inference_pb2.StepChunk(
        handles=np.array([1 << 32 | 1, 1 << 32 | 2], "<u8").tobytes(),
        positions=np.array([0, 5], "<u8").tobytes(),
        num_steps=1,
        inputs=[
            inference_pb2.Tensor(
                name="values",
                dtype=contract_pb2.DATA_TYPE_FLOAT32,
                shape=[2, 1, 1],
                data=np.array([44.5, 45.25], "<f4").tobytes(),
            )
        ],
    )
    assert shown == inference_pb2.StreamRequest(tag=7, step=step).SerializeToString()
    assert len(shown) == 69


def _hex_part(line: str) -> str:
    """A line's bytes: what stands left of the notes, which begin at one column."""
    return line[:48].rstrip() + " "


def test_figures_table_has_every_figure_and_bar() -> None:
    """The README's benchmark table names what `make bench` measures, with the same bars."""
    rows = {name: bar for name, bar, *_ in table("README.md", "| figure |")}
    expected = {
        item.name: "" if item.bar is None else f"{item.better.value} {item.bar:g}" for item in DEFINITIONS.values()
    }
    assert rows == expected


def test_paths_and_links_exist() -> None:
    """Every relative link of the documents, and every path of the README's file tree, is there."""
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
    [tree] = [text for where, text in blocks("text") if where.startswith("README.md") and text.startswith("protos/")]
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def _write_film(path: Path) -> str:
    """A short grey film in which a bright square moves to the right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=64, height=64, pix_fmt="yuvj420p")
        for number in range(8):
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[16:48, 4 * number : 4 * number + 32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def test_small_examples_run(server: ServerProcess, tmp_path: Path) -> None:
    """The short scripts run against a server and print what they promise."""
    sample = str(ROOT / "models" / "forecast-gru" / "1" / "sample.csv")
    cases = {
        "stream_text": [server.target],
        "stream_csv": [sample, "glucose", server.target],
        "many_sessions": [server.target],
        "sync_client": [server.target],
        "stream_video": [_write_film(tmp_path / "film.avi"), server.target],
    }
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    for name, arguments in cases.items():
        run = subprocess.run(  # noqa: S603  # our own scripts
            [sys.executable, "-m", f"examples.{name}", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60.0,
            env=environment,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert not run.stderr
        assert len(run.stdout) > 50


def test_architecture_names_every_module() -> None:
    """The layer table of the architecture page has every module of the service, once."""
    rows = table("docs/architecture.md", "| layer |")
    named = [name.strip(" `") for row in rows for name in row[1].split(",")]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "service").glob("*.py") if path.stem != "__init__")


def _names_in(path: Path) -> set[str]:
    """Functions, classes and variables at a file's top."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_every_promise_has_its_test() -> None:
    """Each test that the table of promises names exists, and each promise names one."""
    promises = table("README.md", "| promise | proof |")
    assert len(promises) >= 8
    for promise, proof in promises:
        named = re.findall(r"tests/[\w/]+\.py(?:::\w+)?", proof)
        assert named, promise
        for each in named:
            file, _, name = each.partition("::")
            assert (ROOT / file).is_file(), each
            assert not name or name in _names_in(ROOT / file), each
