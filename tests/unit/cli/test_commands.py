"""The command line itself: what there is, where options go, and how a failure ends, without a server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import background, serving
from service.cli.failures import CommandFailed, ExitCode
from service.cli.program import build
from service.cli.quantizing import TABLE_LEVELS
from service.cli.session import default_url, running_server
from service.settings import FOREIGN_NAMES, Settings, load_settings

COMMANDS = (
    "demo", "serve", "stop-server", "run", "ps", "stop", "import", "export", "adopt", "list", "show", "cp", "rm",
    "verify", "store", "prune", "pin", "unpin", "quantize", "plan", "calibrate", "evaluate", "rebuild", "recommend",
    "frontier", "importance", "datasets", "adapters", "jobs", "doctor", "version", "pull", "remote",
)  # fmt: skip
NEEDS_SERVER = (
    ["list"], ["show", "x"], ["cp", "x", "y"], ["rm", "x"], ["verify", "x"], ["ps"], ["stop", "x"], ["jobs"],
    ["jobs", "x", "--cancel"], ["jobs", "x", "--watch"], ["plan", "x"], ["quantize", "x", "Q8_0"], ["run", "x", "hi"],
    ["calibrate", "x"], ["evaluate", "x"], ["rebuild", "x"], ["importance"], ["datasets"], ["adapters"],
    ["adapters", "delete", "x", "y"], ["recommend", "x"], ["verify"], ["store"], ["prune"], ["pin", "x"],
    ["unpin", "x"], ["frontier", "x"], ["pull", "x"], ["remote", "x"], ["export", "x"],
    ["export", "x", "--bundle", "x.tar"],
)  # fmt: skip


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address that nothing answers at: bound, and never listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("QUANTRY_URL", "QUANTRY_API_KEY", "QUANTRY_PORT", "QUANTRY_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QUANTRY_HOME", str(tmp_path / "home"))


def quantry(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(build(), list(arguments), **options)


def test_the_help_lists_every_command() -> None:
    text = quantry("--help").stdout
    assert all(f" {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_shared_options(command: str) -> None:
    result = quantry(command, "--help")
    assert result.exit_code == 0
    assert all(option in result.stdout for option in ("--url", "--api-key", "--json"))


@pytest.mark.parametrize("arguments", NEEDS_SERVER, ids=" ".join)
def test_without_a_server_every_command_ends_with_3_and_a_remedy(arguments: list[str], nowhere: str) -> None:
    result = quantry("--url", nowhere, *arguments)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert nowhere in result.stderr
    assert "quantry serve" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", NEEDS_SERVER, ids=" ".join)
def test_with_json_a_failure_is_one_document_and_nothing_else(arguments: list[str], nowhere: str) -> None:
    result = quantry(*arguments, "--json", "--url", nowhere)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert json.loads(result.stdout)["error"]["code"] == "unreachable"
    assert result.stderr == ""


def test_an_option_after_the_command_wins_over_one_before_it(nowhere: str) -> None:
    assert nowhere in quantry("--url", "http://127.0.0.1:1", "list", "--url", nowhere).stderr


def test_the_address_comes_from_the_environment(nowhere: str) -> None:
    assert nowhere in quantry("list", env={"QUANTRY_URL": nowhere}).stderr


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"QUANTRY_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"QUANTRY_PORT": "9000", "QUANTRY_URL": "http://far:1"}, "http://far:1"),
    ],
)
def test_the_default_address_is_this_machine_at_the_port_of_the_server(environ: dict[str, str], url: str) -> None:
    assert default_url(environ) == url


def test_a_port_that_is_none_ends_with_2() -> None:
    result = quantry("list", env={"QUANTRY_PORT": "eighty"})
    assert result.exit_code == ExitCode.USAGE
    assert "QUANTRY_PORT" in result.stderr


def test_port_0_finds_the_server_that_wrote_its_address_down(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"pid": 1, "url": "http://127.0.0.1:5555"}')
    assert default_url({"QUANTRY_PORT": "0", "QUANTRY_HOME": str(tmp_path)}) == "http://127.0.0.1:5555"


@pytest.mark.parametrize(
    ("written", "called"), [("http://0.0.0.0:5", "http://127.0.0.1:5"), ("http://[::]:5", "http://[::1]:5")]
)
def test_a_server_on_all_addresses_is_called_on_this_machine(written: str, called: str, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"pid": 1, "url": written}))
    found = running_server(tmp_path)
    assert found is not None
    assert found.url == called


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "url": ""}', '{"pid": 1}'])
def test_a_broken_server_file_names_no_server(text: str, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(text)
    assert running_server(tmp_path) is None


def test_a_process_that_is_no_server_is_never_taken_for_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "server.json").write_text('{"pid": 1, "url": "http://127.0.0.1:5555"}')
    assert background.live_server(home) is None
    assert "No server runs" in quantry("stop-server").stdout


def test_every_setting_is_an_option_of_serve_but_the_keys() -> None:
    assert set(serving.setting_options()) == set(Settings.model_fields) - {"api_keys", "hub_token"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "99999"], "QUANTRY_PORT"),
        (["--log-level", "loud"], "QUANTRY_LOG_LEVEL"),
        (["--host", "0.0.0.0"], "QUANTRY_API_KEYS"),
    ],
)
def test_a_bad_setting_refuses_to_serve_with_2_and_names_it(arguments: list[str], named: str) -> None:
    result = quantry("serve", *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert named in result.stderr


def test_a_port_that_is_taken_is_told_with_the_variable_to_set() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        taken.settimeout(0)
        with pytest.raises(CommandFailed) as failed:
            background.check_port(load_settings(port=port))
    assert port in failed.value.problem.message
    assert "QUANTRY_PORT" in str(failed.value.problem.remedy)


def test_a_home_that_cannot_be_made_is_told_with_the_variable_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CommandFailed) as failed:
        background.check_home(tmp_path / "file" / "home")
    assert "Not a directory" in failed.value.problem.message
    assert "QUANTRY_HOME" in str(failed.value.problem.remedy)


def test_the_variables_of_clients_and_tools_do_not_stop_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN_NAMES:
        monkeypatch.setenv(name, "x")
    assert load_settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize", "gloss"], "--all"),
        (["quantize", "gloss", "Q8_0", "--all"], "--all"),
        (["jobs", "--cancel"], "--cancel"),
        (["run", "gloss"], "nothing to ask"),
        (["import", "x", "no-such-file.gguf"], "no-such-file.gguf"),
        (["import", "x", "no-such-file.gguf", "--upload"], "no-such-file.gguf"),
        (["plan", "gloss", "Q9"], "Q4_K_M"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_line_ends_with_2_before_anything_is_asked(
    arguments: list[str], words: str, nowhere: str
) -> None:
    result = quantry("--url", nowhere, *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert words in result.stderr


def test_the_version_is_told_without_a_server() -> None:
    assert set(json.loads(quantry("version", "--json").stdout)) == {"quantry", "llama_cpp_python", "python"}


def test_all_levels_are_those_with_published_figures() -> None:
    assert TABLE_LEVELS[0] == "Q2_K"
    assert TABLE_LEVELS[-1] == "Q8_0"
    assert len(TABLE_LEVELS) == 14
