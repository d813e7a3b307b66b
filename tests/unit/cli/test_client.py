"""Every way a request can fail becomes one line, a remedy and an exit code."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx
import pytest

from service.api.catalogue_shapes import VariantListing
from service.cli.client import Client, is_local, ref_path
from service.cli.failures import CommandFailed, ExitCode, Problem


def failing(handler: Callable[[httpx.Request], httpx.Response], url: str = "http://127.0.0.1:9") -> Problem:
    with Client(url, transport=httpx.MockTransport(handler)) as client, pytest.raises(CommandFailed) as failed:
        client.get(VariantListing, "/v1/variants")
    return failed.value.problem


def refused(code: str, status: int = 400, **headers: str) -> Problem:
    error = {"error": {"code": code, "message": "No. Do that.", "type": "t", "param": None}}
    return failing(lambda request: httpx.Response(status, json=error, headers=headers))


def test_no_server_is_told_with_how_to_start_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(CommandFailed) as failed:
        client.get(VariantListing, "/v1/variants")
    assert failed.value.problem.exit_code is ExitCode.UNREACHABLE
    assert "quantry serve" in str(failed.value.problem.remedy)


def test_a_refusal_keeps_the_servers_words_and_code() -> None:
    problem = refused("name_taken", 409)
    assert (problem.code, problem.message, problem.remedy) == ("name_taken", "No. Do that.", None)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [("lossy_source", "--allow-requantize"), ("no_chat_template", "--raw"), ("invalid_api_key", "--api-key")],
)
def test_a_remedy_of_the_api_is_told_in_the_words_of_the_command(code: str, remedy: str) -> None:
    assert remedy in str(refused(code).remedy)


def test_a_full_queue_says_when_to_try_again() -> None:
    assert refused("queue_full", 429, **{"Retry-After": "7"}).remedy == "try again in 7 s"


@pytest.mark.parametrize(
    "answer", [httpx.Response(404, text="<html>"), httpx.Response(200, json=[]), httpx.Response(200, text="hello")]
)
def test_what_is_no_quantry_server_is_called_that(answer: httpx.Response) -> None:
    assert failing(lambda request: answer).code == "bad_answer"


def test_a_slow_server_is_told_apart_from_none() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    assert failing(slow).code == "timeout"


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host", "http://", "http://[::1"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        Client(url)
    assert failed.value.problem.exit_code is ExitCode.USAGE


def test_the_key_goes_with_every_request_and_no_key_sends_no_header() -> None:
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"object": "list", "data": [], "available": []})

    for key in ("a-key-of-some-length", None):
        with Client("http://127.0.0.1:9", key, transport=httpx.MockTransport(handler)) as client:
            client.get(VariantListing, "/v1/variants")
    assert seen == ["Bearer a-key-of-some-length", None]


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:1", True),
        ("http://[::1]:8080", True),
        ("http://192.168.1.4:8080", False),
        ("https://models.example", False),
    ],
)
def test_only_loopback_counts_as_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_a_name_is_one_part_of_a_path() -> None:
    assert ref_path("host:80/space/model:Q4_K_M?x#y") == "host%3A80%2Fspace%2Fmodel%3AQ4_K_M%3Fx%23y"
