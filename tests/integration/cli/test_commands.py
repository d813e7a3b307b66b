"""Every command does its work against a real server, for people, in pipes, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.failures import ExitCode
from service.cli.program import build
from tests.server import GLOSS, KEY, Server, stocked

VARIANTS = ("gloss:F16", "gloss:Q8_0", "gloss:Q4_K_M", "gloss:Q2_K")


def run(server: Server, *arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(build(), ["--url", server.url, *arguments], **options)


def document(server: Server, *arguments: str) -> Any:
    result = run(server, *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Any:
    """One with gloss:F16 for the tests that change things, each under names of its own."""
    server = Server(stocked(tmp_path_factory.mktemp("cli-server") / "home", gloss_home), {}).start()
    yield server
    server.close()


# --- looking -----------------------------------------------------------------------------------------------------


def test_list_shows_every_variant_once_and_no_colours_in_a_pipe(gloss_server: Server) -> None:
    result = run(gloss_server, "list")
    assert "\x1b" not in result.stdout
    names = [line.split()[0] for line in result.stdout.splitlines()[2:]]
    assert names == list(VARIANTS)
    assert "gloss is gloss:Q4_K_M" in result.stderr


def test_list_can_show_memory_and_what_could_be_made(gloss_server: Server) -> None:
    text = run(gloss_server, "list", "gloss", "--context", "256", "--available").stdout
    assert "Memory" in text
    assert "gloss:Q6_K" in text
    assert "IQ2_XXS" not in text  # needs an importance matrix


def test_list_as_json_is_the_answer_of_the_api(gloss_server: Server) -> None:
    shown = document(gloss_server, "list")
    assert {row["name"] for row in shown["data"]} == set(VARIANTS)
    assert {row["name"] for row in shown["data"]} == set(gloss_server.names())


def test_a_model_that_is_not_there_is_told_with_1(gloss_server: Server) -> None:
    result = run(gloss_server, "show", "glos")
    assert result.exit_code == ExitCode.FAILED
    assert "quantry list" in result.stderr


def test_show_tells_where_a_variant_comes_from(gloss_server: Server) -> None:
    text = run(gloss_server, "show", "gloss:q2_k").stdout
    assert "Q2_K <- gloss:F16 (imported)" in text
    assert "2,732,448 bytes" in text
    assert document(gloss_server, "show", "gloss:q2_k")["lineage"]["source"] == "gloss:F16"


def test_plan_says_sizes_to_the_byte_and_makes_nothing(gloss_server: Server) -> None:
    before = gloss_server.names()
    rows = {row["quantization"]: row for row in document(gloss_server, "plan", "gloss", "q4_k", "Q6_K")["data"]}
    assert {label: row["size_bytes"] for label, row in rows.items()} == {"Q4_K_M": 3_776_928, "Q6_K": 4_875_168}
    assert "Q6_K" in run(gloss_server, "plan", "gloss").stdout
    assert gloss_server.names() == before


def test_plan_of_a_bare_name_starts_from_what_lost_least(gloss_server: Server) -> None:
    assert "gloss:F16 would become" in run(gloss_server, "plan", "gloss", "Q8_0").stdout


def test_verify_reads_the_file_again(gloss_server: Server) -> None:
    assert "is intact" in run(gloss_server, "verify", "gloss:Q8_0").stdout
    assert document(gloss_server, "verify", "gloss:Q8_0")["intact"] is True


def test_ps_shows_what_run_loaded_and_stop_unloads_it(gloss_server: Server) -> None:
    assert run(gloss_server, "run", "gloss:Q8_0", "Hello", "--max-tokens", "2").exit_code == 0
    assert "gloss:Q8_0" in run(gloss_server, "ps").stdout
    assert run(gloss_server, "stop", "gloss:Q8_0").exit_code == 0
    loaded = [worker["name"] for worker in document(gloss_server, "ps")["data"] if worker["state"] == "ready"]
    assert "gloss:Q8_0" not in loaded


def test_jobs_lists_shows_and_follows_those_that_ended(gloss_server: Server) -> None:
    newest = next(job for job in document(gloss_server, "jobs")["data"] if job["kind"] == "quantize")
    assert newest["id"] in run(gloss_server, "jobs").stdout
    assert "Q4_K_M" in run(gloss_server, "jobs", newest["id"]).stdout
    assert run(gloss_server, "jobs", newest["id"], "--watch").exit_code == 0
    assert run(gloss_server, "jobs", newest["id"], "--cancel").exit_code == ExitCode.FAILED
    assert run(gloss_server, "jobs", "--watch").exit_code == ExitCode.FAILED


def test_doctor_tells_how_each_model_runs_on_the_server(gloss_server: Server) -> None:
    run(gloss_server, "run", "gloss:Q4_K_M", "Hello", "--max-tokens", "1")
    report = document(gloss_server, "doctor")
    texts = [finding["text"] for finding in report["findings"]]
    assert report["healthy"] is True
    assert any("gloss:Q4_K_M" in text and "rung" in text for text in texts)
    assert any("llama.cpp" in text for text in texts)
    assert report["settings"]["context_length"] == "4096"


def test_doctor_without_a_server_says_so_and_is_no_less_well() -> None:
    result = CliRunner().invoke(build(), ["doctor", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 0
    assert "none answers" in result.stdout


# --- changing ----------------------------------------------------------------------------------------------------


def test_import_by_path_then_by_bytes_then_again(own_server: Server) -> None:
    assert "by-path:F16" in run(own_server, "import", "by-path", str(GLOSS)).stdout
    sent = document(own_server, "import", "by-bytes", str(GLOSS), "--upload")
    assert sent["digest"] == document(own_server, "show", "by-path")["digest"]
    assert document(own_server, "import", "by-bytes", str(GLOSS), "--upload")["name"] == "by-bytes:F16"


def test_bytes_that_the_server_lacks_are_sent_whole(own_server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    bytes_ = bytearray(GLOSS.read_bytes())
    bytes_[-1] ^= 1
    other.write_bytes(bytes_)
    assert document(own_server, "import", "changed", str(other), "--upload")["size_bytes"] == len(bytes_)


def test_a_file_that_is_no_model_is_refused_with_1(own_server: Server, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    result = run(own_server, "import", "text", str(text))
    assert result.exit_code == ExitCode.FAILED
    assert "GGUF" in result.stderr


def test_a_path_that_is_on_neither_side_is_told_so(own_server: Server) -> None:
    result = run(own_server, "import", "gone", "/no/such/model.gguf")
    assert result.exit_code == ExitCode.FAILED
    assert "is not on this machine either" in result.stderr


def test_a_server_that_takes_no_paths_is_sent_the_bytes(keyed_server: Server) -> None:
    assert run(keyed_server, "import", "sent", str(GLOSS), "--api-key", KEY).exit_code == 0
    refused = run(keyed_server, "import", "named", str(GLOSS), "--no-upload", "--api-key", KEY)
    assert refused.exit_code == ExitCode.FAILED
    assert "--upload" in refused.stderr


def test_quantize_waits_shows_each_level_and_lists_what_it_made(own_server: Server) -> None:
    run(own_server, "cp", "gloss:F16", "made")
    result = run(own_server, "quantize", "made", "q4_k", "Q8_0")
    assert result.exit_code == 0
    assert "Q4_K_M: succeeded (1 of 2)" in result.stderr
    assert all(name in result.stdout for name in ("made:Q4_K_M", "made:Q8_0"))


def test_quantize_as_json_is_the_job_a_line_each_to_its_end(own_server: Server) -> None:
    run(own_server, "cp", "gloss:F16", "lines")
    result = run(own_server, "quantize", "lines", "Q4_0", "--json")
    jobs = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(jobs) >= 2
    assert jobs[-1]["status"] == "succeeded"
    assert jobs[-1]["result"] == ["lines:Q4_0"]


def test_a_lossy_source_needs_the_flag_and_stays_marked(own_server: Server) -> None:
    run(own_server, "cp", "gloss:F16", "lossy")
    run(own_server, "quantize", "lossy", "Q4_0")
    refused = run(own_server, "quantize", "lossy:Q4_0", "Q2_K")
    assert refused.exit_code == ExitCode.FAILED
    assert "--allow-requantize" in refused.stderr
    allowed = run(own_server, "quantize", "lossy:Q4_0", "Q2_K", "--allow-requantize")
    assert allowed.exit_code == 0
    assert "lossy source" in allowed.stdout


def test_a_detached_job_is_followed_later(own_server: Server) -> None:
    run(own_server, "cp", "gloss:F16", "later")
    job = document(own_server, "quantize", "later", "Q5_0", "--detach")
    assert run(own_server, "jobs", job["id"], "--watch").exit_code == 0
    assert "later:Q5_0" in own_server.names()


def test_cp_and_rm_change_names_and_ask_nothing_in_a_pipe(own_server: Server) -> None:
    run(own_server, "cp", "gloss:F16", "first")
    assert "second is second:F16" in run(own_server, "cp", "first", "second").stdout
    gone = document(own_server, "rm", "first", "second:f16")
    assert [one["variants"] for one in gone["data"]] == [["first:F16"], ["second:F16"]]
    assert not {"first:F16", "second:F16"} & set(own_server.names())


def test_a_key_is_asked_for_and_taken_from_option_or_environment(keyed_server: Server) -> None:
    refused = run(keyed_server, "list")
    assert refused.exit_code == ExitCode.FAILED
    assert "--api-key" in refused.stderr
    assert run(keyed_server, "list", "--api-key", KEY).exit_code == 0
    assert run(keyed_server, "list", env={"QUANTRY_API_KEY": KEY}).exit_code == 0
