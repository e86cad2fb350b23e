"""What the documents say is run: every command, every example, every link, in both languages."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

from pomona.bundle import TunedEntry
from pomona.run_folder import RUN_FILES
from pomona.samples import KINDS, SampleOptions, write_samples

ROOT = Path(__file__).parents[1]
LANGUAGES = ("README.md", "README.zh.md")
FLOWS = ("docs/flow.md", "docs/zh/flow.md")
FORMAT = "docs/bundle-format.md"
FETCHES = "pomona fetch "
NEEDS_INTERNET = (FETCHES, "pomona export runs/fruit --format web")
SERVES = "pomona serve "
FILE_SUFFIXES = "csv|html|json|onnx|png|safetensors|txt|yaml"

pytestmark = pytest.mark.skipif(not shutil.which("sh"), reason="the commands are written for sh")


class Block(NamedTuple):
    language: str
    text: str


def read_document(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def list_blocks(name: str) -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", read_document(name), re.M | re.S)
    return [Block(language, text) for language, text in found]


def list_commands(name: str) -> list[str]:
    lines = [line for block in list_blocks(name) if block.language == "sh" for line in block.text.splitlines()]
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]


def list_examples(name: str) -> list[str]:
    return [block.text for block in list_blocks(name) if block.language == "python"]


COMMANDS = list_commands("README.md")


@pytest.fixture(scope="module")
def home(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the README's literal commands work: photos and a `pomona` on the search path."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("photos", "later-photos"):
        shutil.copytree(rendered, folder / name)
    (folder / "new-photos").mkdir()
    for i, path in enumerate(sorted(rendered.rglob("*.jpg"))[::8]):
        shutil.copy(path, folder / "new-photos" / f"{i}.jpg")
    shutil.copy(folder / "new-photos" / "0.jpg", folder / "basket.jpg")
    write_samples(folder / "kiwi-photos", SampleOptions(n_per_kind=4, kinds=KINDS[7:8], size_px=72, n_workers=1))
    _decide(folder / "photos", folder / "decisions.csv")
    (folder / "bin").mkdir()
    shim = folder / "bin" / "pomona"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pomona "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    return folder


def _decide(photos: Path, decisions: Path) -> None:
    """Write what the page would export where a person drops one photo."""
    path = sorted(photos.rglob("*.jpg"))[0]
    name, sha256 = path.relative_to(photos).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
    decisions.write_text(f"file_name,sha256,decision,label\n{name},{sha256},drop,\n", encoding="utf-8")


@pytest.fixture(scope="module")
def outputs(home: Path) -> dict[str, str]:
    """Stdout of each README command that uses `pomona`, run in order; the first that fails ends it."""
    environment = _environment(home)
    results = {}
    for command in COMMANDS:
        if SERVES in command:
            results[command] = _serve_once(command, home, environment)
        elif "pomona" in command and not command.startswith(("pip", *NEEDS_INTERNET)):
            done = subprocess.run(
                ["sh", "-c", command], cwd=home, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            results[command] = done.stdout
    return results


def _serve_once(command: str, home: Path, environment: dict[str, str]) -> str:
    """Run a command that serves until it is asked to end, and end it when it answers; what it said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    own = ["sh", "-c", f"exec env {command} --port {port}"]
    with subprocess.Popen(own, cwd=home, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline_s = time.monotonic() + 60
            while process.poll() is None and not _is_ready(port) and time.monotonic() < deadline_s:
                time.sleep(0.1)
            assert _is_ready(port), command
        finally:
            process.terminate()
            said = process.communicate(timeout=30)[1]
    assert process.returncode == 0, f"{command}\n{said}"
    return said


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _environment(home: Path) -> dict[str, str]:
    import os

    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    user = home / "user"
    user.mkdir(exist_ok=True)
    return {
        **os.environ,
        "HOME": str(user),
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": path,
    }


# --- the two languages ----------------------------------------------------------------------------------------------


def test_both_languages_have_the_same_commands_in_the_same_order() -> None:
    assert len(COMMANDS) >= 8
    assert list_commands("README.zh.md") == COMMANDS


def test_both_languages_have_the_same_examples_but_for_comments() -> None:
    english, chinese = ([ast.dump(ast.parse(text)) for text in list_examples(name)] for name in LANGUAGES)
    assert len(english) >= 3
    assert chinese == english


@pytest.mark.parametrize("pair", [LANGUAGES, FLOWS], ids=["readme", "flow"])
def test_both_languages_have_the_same_structure(pair: tuple[str, str]) -> None:
    def outline(name: str) -> list[str]:
        text = re.sub(r"^```.*?^```$", "", read_document(name), flags=re.M | re.S)
        return re.findall(r"^(#+ |\|---.*|- |!\[|<!--.*-->)", text, re.M)

    english, chinese = (outline(name) for name in pair)
    assert chinese == english


@pytest.mark.parametrize("name", LANGUAGES)
def test_readme_has_a_place_for_the_figures(name: str) -> None:
    text = read_document(name)
    assert text.count("<!-- bench:begin -->") == text.count("<!-- bench:end -->") == 1
    assert text.index("<!-- bench:begin -->") < text.index("<!-- bench:end -->")


# --- commands and examples ------------------------------------------------------------------------------------------


def test_commands_of_the_readme_run(outputs: dict[str, str], home: Path) -> None:
    assert any(command.startswith("pomona train") for command in outputs)
    assert (home / "runs" / "fruit" / "report.html").is_file()
    answers = (home / "answers.csv").read_text("utf-8").splitlines()
    assert len(answers) == 1 + len(list((home / "new-photos").iterdir()))


def test_run_folder_holds_what_the_readme_and_the_format_say(outputs: dict[str, str], home: Path) -> None:
    written = {path.name for path in (home / "runs" / "fruit").iterdir()}
    every = {name for name in RUN_FILES if "." in name}
    for name in (*LANGUAGES, FORMAT):
        named = set(re.findall(rf"^\| `(\w+\.(?:{FILE_SUFFIXES}))` \|", read_document(name), re.M))
        assert written <= named <= every, name
    assert named == every  # the format leaves none out, whatever wrote it


def test_manifest_keys_are_those_of_the_format(outputs: dict[str, str], home: Path) -> None:
    import json

    manifest = json.loads((home / "runs" / "fruit" / "pomona.json").read_text("utf-8"))
    nested = {"preprocessing", "embedding"}
    wanted = {f"{key}.{inner}" for key in nested for inner in manifest[key]} | manifest.keys() - nested
    wanted |= {f"classes[].{inner}" for inner in manifest["classes"][0]}
    wanted |= {f"embedding.backbones[].{inner}" for inner in manifest["embedding"]["backbones"][0]}
    wanted |= {f"embedding.backbones[].tuned.{inner}" for inner in TunedEntry.model_fields}
    trust = manifest["trust"]
    wanted |= {"trust.unknown", "trust.unknown.kind", "trust.promise"}  # two more keys stand in the row of the first
    assert trust["unknown"].keys() == {"kind", "middles", "spreads", "threshold"}
    wanted |= {f"trust.{key}.{inner}" for key in ("link", "promise") for inner in trust[key]}
    section = read_document(FORMAT).split("## `pomona.json`")[1].split("\n## ")[0]
    named = []
    for cell in re.findall(r"^\| (`.*?`) \|", section, re.M):
        keys = re.findall(r"`(.+?)`", cell)
        parent = keys[0].rsplit(".", 1)[0]
        named += [parent + key if key.startswith(".") else key for key in keys]
    assert set(named) == wanted


@pytest.mark.parametrize("number", range(len(list_examples("README.md"))))
def test_examples_of_the_readme_run(
    number: int,
    outputs: dict[str, str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    exec(compile(list_examples("README.md")[number], f"README.md, example {number}", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def test_checksum_example_of_the_format_holds(
    outputs: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (example,) = list_examples(FORMAT)
    scope: dict[str, object] = {}
    exec(compile(example, FORMAT, "exec"), scope)
    assert isinstance(scope["wanted"], str)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", read_document("Makefile"), re.M))
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    for name in (*LANGUAGES, *FLOWS):
        named |= set(re.findall(r"`make ([\w-]+)`", read_document(name)))
    assert {"demo", "test"} <= named <= targets


def test_install_lines_name_extras_that_exist() -> None:
    extras = tomllib.loads(read_document("pyproject.toml"))["project"]["optional-dependencies"]
    lines = [command for command in COMMANDS if command.startswith("pip ")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"pip install (\.|'\.\[(\w+)\]')", line), line
        extra = re.search(r"\[(\w+)\]", line)
        assert extra is None or extra[1] in extras


def test_fetched_sets_exist() -> None:
    from pomona.fetch import find_photo_set

    names = [command.split()[2] for command in COMMANDS if command.startswith(FETCHES)]
    assert names
    for name in names:
        assert find_photo_set(name).name == name


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    for command in COMMANDS:
        assert re.match(r"(make|pip|pomona|curl|python -m http.server|POMONA_TOKEN=\S+ pomona) ", command) or (
            " | pomona " in command
        ), command


def test_predicting_asks_nothing_of_the_network(outputs: dict[str, str], home: Path) -> None:
    """The promise "no phone home": OpenVINO's telemetry, for one, would look a server up and leave an id at home."""
    program = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.getaddrinfo', 'socket.connect'):\n"
        "        print('NETWORK', event, arguments, file=sys.stderr, flush=True)\n"
        "sys.addaudithook(watch)\n"
        "from pomona.cli import run\n"
        "run()\n"
    )
    command = [sys.executable, "-c", program, "predict", "runs/fruit", "basket.jpg"]
    environment = {key: value for key, value in _environment(home).items() if key not in {"CI", "TF_BUILD"}}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert not list((home / "user").iterdir())


# --- the other documents --------------------------------------------------------------------------------------------


def list_modules() -> dict[str, str]:
    """Name of each module, and the first line of its docstring."""
    folder = ROOT / "src" / "pomona"
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        if "migrations" in path.parts:  # scripts that Alembic runs, and nobody imports
            continue
        name = ".".join(("pomona", *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        modules[name] = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]
    return modules


@pytest.mark.parametrize("name", FLOWS)
def test_flow_names_every_module(name: str) -> None:
    text = read_document(name)
    missing = [module for module in list_modules() if not re.search(rf"(?<![\w.]){re.escape(module)}(?![\w.])", text)]
    assert not missing, f"{name} does not name {', '.join(missing)}"


def test_tree_of_the_flow_is_made_from_docstrings() -> None:
    tree = read_document("docs/flow.md").split("## The tree")[1]
    written = dict(line.split(maxsplit=1) for line in re.findall(r"^pomona.*$", tree, re.M))
    assert written == list_modules()


def list_documents() -> list[str]:
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


@pytest.mark.parametrize("name", list_documents())
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read_document(name)):
        if "://" not in target:
            assert ((ROOT / name).parent / target.split("#")[0]).exists(), target


def test_decisions_are_numbered_and_have_the_three_parts() -> None:
    paths = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in paths] == list(range(1, len(paths) + 1))
    for path in paths:
        headings = re.findall(r"^## (.+)$", path.read_text("utf-8"), re.M)
        assert headings == ["Context", "Decision", "Consequences"], path.name


def test_pictures_are_small() -> None:
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size <= 350_000, path.name
