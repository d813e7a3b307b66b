"""Adapters through a real server: each request gets the text of its own adapters, whoever runs beside it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import adapters, tiny_models
from tests.remote_hub import FakeHub, Fault
from tests.server import GLOSS, Server, stocked

PROMPT = "The lighthouse keeper wrote a letter to his sister, and she"
SETS: list[list[Any]] = [
    [],
    ["tone"],
    [{"name": "voice", "scale": 0.75}],
    ["tone", "voice"],
    [{"name": "tone", "scale": -1.0}],
    [{"name": "tone", "scale": 0.0}],
]


def ask(server: Server, uses: list[Any], **more: Any) -> str:
    body = {"model": "gloss:F16", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "adapters": uses, **more}
    answer = httpx.post(f"{server.url}/v1/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["text"])


def upload(server: Server, path: Path) -> str:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert server.client.put(f"/v1/blobs/{digest}", content=data).status_code in (200, 201)
    return digest


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed in (("voice", 1), ("other", 2)):
        tiny_models.write_adapter(folder / f"{name}.gguf", GLOSS, seed=seed)
    found = adapters.factors(GLOSS, only="mlp")
    return {
        "tone": adapters.write_peft(folder / "tone", found),
        "voice": folder / "voice.gguf",
        "other": folder / "other.gguf",
    }


@pytest.fixture(scope="module")
def hub(files: dict[str, Path]) -> Iterator[FakeHub]:
    """One repository with a PEFT adapter, one with GGUF adapters."""
    with FakeHub() as hub:
        hub.add("me/tone", {"README.md": b"#", **{path.name: path.read_bytes() for path in files["tone"].iterdir()}})
        hub.add("me/voices", {f"{name}.gguf": files[name].read_bytes() for name in ("voice", "other")})
        yield hub


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, gloss_home: Path, files: dict[str, Path], hub: FakeHub
) -> Iterator[Server]:
    """gloss with a PEFT adapter by its uploaded files, and a GGUF adapter by path."""
    settings = {"QUANTRY_PARALLEL": "8", **hub.settings}
    server = Server(stocked(tmp_path_factory.mktemp("adapters-server") / "home", gloss_home), settings).start()
    named = {path.name: upload(server, path) for path in files["tone"].iterdir()}
    server.json("POST", "/v1/adapters", 201, {"model": "gloss", "name": "tone", "files": named})
    server.json("POST", "/v1/adapters", 201, {"model": "gloss:F16", "name": "voice", "path": str(files["voice"])})
    yield server
    server.close()


def test_requests_with_other_adapters_and_with_none_run_at_once_and_get_the_texts_they_get_alone(
    server: Server,
) -> None:
    alone = [ask(server, uses, cache_prompt=False) for uses in SETS]
    assert alone[0] == alone[-1], "a scale of 0 is the base"
    assert len(set(alone)) == len(SETS) - 1
    wanted = list(itertools.islice(itertools.cycle(range(len(SETS))), 18))
    with ThreadPoolExecutor(len(wanted)) as pool:
        together = list(pool.map(lambda index: ask(server, SETS[index]), wanted))
    assert together == [alone[index] for index in wanted]
    (worker,) = server.json("GET", "/v1/workers", 200)["data"]
    assert sorted(worker["adapters"]) == ["tone", "voice"]


def test_the_memory_of_adapters_counts_from_their_first_use_on(server: Server) -> None:
    ask(server, [])
    server.json("POST", "/v1/workers/gloss:F16/unload", 200)
    ask(server, [])
    (before,) = server.json("GET", "/v1/workers", 200)["data"]
    ask(server, ["voice"])
    (after,) = server.json("GET", "/v1/workers", 200)["data"]
    size = server.json("GET", "/v1/adapters/gloss/voice", 200)["size_bytes"]
    assert (before["adapters"], after["adapters"]) == ([], ["voice"])
    assert after["memory_bytes"] - before["memory_bytes"] == size
    assert after["pid"] == before["pid"], "the worker went on"


def test_an_adapter_is_fetched_from_the_hub_and_a_line_that_drops_does_not_stop_it(
    server: Server, hub: FakeHub
) -> None:
    hub.faults["adapter_model.safetensors"] = [Fault.DROP]
    digests = {name: server.json("GET", f"/v1/adapters/gloss/{name}", 200)["digest"] for name in ("tone", "voice")}
    for name, address in (("tone", "hf.co/me/tone"), ("voice", "hf.co/me/voices:voice.gguf")):
        body = {"model": "gloss", "name": "fetched", "from": address}
        assert server.json("POST", "/v1/adapters", 201, body)["digest"] == digests[name]
        server.json("DELETE", "/v1/adapters/gloss/fetched", 200)
    assert not list((server.home / "blobs" / "partial").iterdir())
    hub.add("me/broken", {"voice.gguf": b"GGUF" + b"\0" * 1000})
    body = {"model": "gloss", "name": "fetched", "from": "hf.co/me/broken"}
    assert server.json("POST", "/v1/adapters", 422, body)["error"]["code"] == "invalid_model"
    assert not list((server.home / "blobs" / "partial").iterdir()), "what is no adapter is none the next time either"
    for address, status in (("hf.co/me/voices", 404), ("hf.co/me/nothing", 404), ("ftp://x/y", 400), ("gloss", 400)):
        body = {"model": "gloss", "name": "fetched", "from": address}
        assert server.client.post("/v1/adapters", json=body).status_code == status, address


def test_every_dialect_of_openai_takes_adapters_too(server: Server) -> None:
    expected = ask(server, ["tone"])
    body = {"model": "gloss", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "adapters": ["tone"]}
    assert server.json("POST", "/v1/completions", 200, body)["choices"][0]["text"] == expected


def test_an_adapter_that_replaces_another_under_its_name_is_not_answered_from_what_the_old_one_computed(
    server: Server, files: dict[str, Path]
) -> None:
    texts = []
    for name in ("voice", "other", "voice"):
        server.json("POST", "/v1/adapters", 201, {"model": "gloss", "name": "mine", "path": str(files[name])})
        texts.append(ask(server, ["Mine"]))
        server.json("DELETE", "/v1/adapters/gloss/mine", 200)
    assert texts[0] == texts[2] != texts[1]
    answer = server.json("POST", "/v1/generate", 404, {"model": "gloss", "prompt": "x", "adapters": ["mine"]})
    assert answer["error"]["code"] == "adapter_not_found"
    assert "tone, voice" in answer["error"]["message"]


def test_llama_server_s_clients_choose_by_number_and_set_scales_for_all(server: Server) -> None:
    def complete(**more: Any) -> str:
        body = {"model": "gloss:F16", "prompt": PROMPT, "n_predict": 24, "temperature": 0, **more}
        return str(server.json("POST", "/completion", 200, body)["content"])

    listed = server.json("GET", "/lora-adapters?model=gloss", 200)
    assert [(one["id"], one["path"], one["scale"]) for one in listed] == [(0, "tone", 0.0), (1, "voice", 0.0)]
    expected = ask(server, [{"name": "voice", "scale": 0.75}])
    assert complete(lora=[{"id": 1, "scale": 0.75}]) == expected
    assert complete() == ask(server, [])
    assert server.json("POST", "/lora-adapters?model=gloss", 200, [{"id": 1, "scale": 0.75}]) == {"success": True}
    assert complete() == expected
    assert complete(lora=[{"id": 0, "scale": 1.0}]) == ask(server, ["tone"])
    server.json("POST", "/lora-adapters?model=gloss", 200, [])
    assert complete() == ask(server, [])
    assert server.json("POST", "/completion", 404, {"model": "gloss", "prompt": "x", "lora": [{"id": 7, "scale": 1}]})


def test_a_name_made_by_ollama_s_create_carries_its_adapter(server: Server, files: dict[str, Path]) -> None:
    peft = {path.name: upload(server, path) for path in files["tone"].iterdir()}
    gguf = upload(server, files["other"])

    def generate(model: str) -> str:
        options = {"temperature": 0, "num_predict": 24}
        body = {"model": model, "prompt": PROMPT, "raw": True, "stream": False, "options": options}
        return str(server.json("POST", "/api/generate", 200, body)["response"])

    for name, adapter in (("toned", peft), ("othered", {"adapter.gguf": gguf})):
        body = {"model": name, "from": "gloss:F16", "adapters": adapter, "stream": False}
        assert server.json("POST", "/api/create", 200, body) == {"status": "success"}
    plain = generate("gloss:F16")
    assert len({plain, generate("toned"), generate("othered")}) == 3
    server.json("POST", "/api/copy", 200, {"source": "toned", "destination": "again"})
    assert generate("again") == generate("toned")
    listed = server.json("GET", "/v1/adapters", 200)["data"]
    assert sorted(one["model"] for one in listed) == ["again", "gloss", "gloss", "othered", "toned"]
    modelfile = server.json("POST", "/api/show", 200, {"model": "toned"})["modelfile"]
    (made,) = [one for one in listed if one["model"] == "toned"]
    assert f"ADAPTER {made['name']}" in modelfile
    assert server.client.delete(f"/v1/adapters/toned/{made['name']}").status_code == 409
    for name in ("toned", "othered", "again"):
        assert server.client.request("DELETE", "/api/delete", json={"model": name}).status_code == 200
    assert {one["model"] for one in server.json("GET", "/v1/adapters", 200)["data"]} == {"gloss"}
