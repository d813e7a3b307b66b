"""Levels that are wanted get made and stay; levels that a request names are made for it, where that is switched on."""

from __future__ import annotations

import json
import time
from typing import Any

from typer.testing import CliRunner

from service.cli.program import build
from tests.server import MakeServer, Server, until

PATH = "/v1/models/gloss/desired"


def settled(server: Server, path: str = PATH) -> Any:
    """The wish once nothing is in the making."""
    deadline = time.monotonic() + 60
    while True:
        wish = server.json("GET", path, 200)
        if not {level["state"] for level in wish["levels"]} & {"queued", "running", "missing"}:
            return wish
        assert time.monotonic() < deadline, wish
        time.sleep(0.05)


def desired(server: Server, *arguments: str) -> Any:
    return CliRunner().invoke(build(), ["--url", server.url, "desired", *arguments])


def states(wish: Any) -> dict[str, str]:
    return {level["quantization"]: level["state"] for level in wish["levels"]}


def test_what_is_wanted_is_made_kept_and_remembered_over_a_restart(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    assert server.json("GET", PATH, 404)["error"]["code"] == "desired_not_found"
    first = server.json("PUT", PATH, 200, {"levels": ["q4_k", "Q8_0", "F16", "IQ1_S"]})
    assert states(first)["F16"] == "stored"
    assert states(first)["IQ1_S"] == "impossible"
    made = settled(server)
    assert states(made) == {"Q4_K_M": "stored", "Q8_0": "stored", "F16": "stored", "IQ1_S": "impossible"}
    assert made["left"] == 1
    server.json("DELETE", "/v1/variants/gloss:Q8_0", 200)
    server.stop()
    server.start()  # which looks at once
    until(lambda: "gloss:Q8_0" in server.names())
    shown = desired(server, "gloss")
    assert shown.exit_code == 0, shown.output
    assert "Q8_0" in shown.stdout
    assert "IQ1_S" in shown.stdout
    changed = desired(server, "gloss", "q8_0", "--json")
    assert json.loads(changed.stdout)["left"] == 0
    assert desired(server, "gloss", "--nothing").exit_code == 0
    server.json("GET", PATH, 404)
    assert "gloss:Q8_0" in server.names()
    assert desired(server, "gloss", "--imatrix", "auto").exit_code == 2


def test_a_wish_for_what_is_not_there_or_not_a_model_is_refused(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    assert (
        server.json("PUT", "/v1/models/glos/desired", 404, {"levels": ["Q8_0"]})["error"]["code"] == "model_not_found"
    )
    assert (
        server.json("PUT", "/v1/models/gloss:F16/desired", 400, {"levels": ["Q8_0"]})["error"]["code"] == "invalid_name"
    )
    assert server.json("PUT", PATH, 400, {"levels": ["Q9"]})["error"]["code"] == "unknown_quantization"
    matrix = {"levels": ["Q8_0"], "importance_matrix": "sha256:" + "0" * 64}
    assert server.json("PUT", PATH, 404, matrix)["error"]["code"] == "importance_matrix_not_found"


def test_a_level_is_made_for_the_request_that_names_it(make_gloss_server: MakeServer) -> None:
    server = make_gloss_server(QUANTRY_ON_DEMAND="on")
    body = {"model": "gloss:q5_k", "prompt": "sea: ", "max_tokens": 4}
    answer = server.json("POST", "/v1/generate", 200, body)
    assert answer["model"] == "gloss:Q5_K_M"
    chat = {"model": "gloss:Q6_K", "messages": [{"role": "user", "content": "sea"}], "max_tokens": 4}
    refused = server.client.post("/v1/chat/completions", json=chat, headers={"Prefer": "respond-async"})
    assert refused.status_code == 202, refused.text
    assert refused.headers["Preference-Applied"] == "respond-async"
    server.wait_for_job(refused.json()["id"])
    assert server.json("POST", "/v1/chat/completions", 200, chat)["model"] == "gloss:Q6_K"
    impatient = server.client.post(
        "/v1/generate", json={**body, "model": "gloss:IQ2_XXS"}, headers={"Prefer": "wait=0"}
    )
    assert impatient.status_code == 503, impatient.text
    assert impatient.json()["error"]["code"] == "being_made"
    assert int(impatient.headers["Retry-After"]) > 0
    for name in ("gloss:nothing", "glos:Q4_0"):
        assert server.json("POST", "/v1/generate", 404, {**body, "model": name})["error"]["code"] == "model_not_found"


def test_without_the_setting_nothing_is_made(gloss_server: Server) -> None:
    before = gloss_server.names()
    body = {"model": "gloss:Q5_0", "prompt": "sea: ", "max_tokens": 4}
    gloss_server.json("POST", "/v1/generate", 404, body)
    assert gloss_server.names() == before
