"""Whatever fits the document is answered as the document says, whatever does not is refused: against a real server.

schemathesis makes requests from the running server's own /openapi.json, in bounds and out of them, and checks every
answer. The seed is fixed: a failure comes again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings
from schemathesis import APIOperation, Case
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.openapi import from_url
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.specs.openapi.schemas import OpenApiSchema

from service.api.shapes import NAME_PATTERN
from tests.remote_hub import FakeHub
from tests.server import GLOSS, Server, stocked
from tests.tiny_models import write_adapter

KEY = "a-key-of-at-least-sixteen-characters"
HEADERS = {"X-API-Key": KEY}
FEW, MANY = 5, 100
# The explicit examples walk along every bound of every field: hundreds of requests for an operation with many.
Phases = tuple[Phase, ...]
DRAWN: Phases = (Phase.generate,)
ALL: Phases = (Phase.explicit, Phase.generate)
MAX_SEED = (1 << 63) - 1  # schemathesis reads the document's bound as a double, which rounds it up

CONFIG = {
    # The key is sent with every request; the check `ignored_auth` leaves it out, and sends others.
    "generation": {"with-security-parameters": False},
    "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503", "507"]}},
}

# Refusals of well-formed requests: each depends on what the words mean here, which no schema can say.
MEANING = {
    "digest_mismatch": "the digest is not that of the bytes sent",
    "context_length_exceeded": "the prompt is longer than this server's context",
    "invalid_grammar": "the grammar cannot be read or carried out",
    "importance_matrix_required": "llama.cpp makes this level only with an importance matrix",
    "quantization_not_applicable": "this model's tensors do not fit the level",
    "lossy_source": "the source has lost precision already",
    "label_mismatch": "the level in the name is not that of the file",
    "invalid_model": "the file is no model",
    "previous_response_not_found": "nothing is kept under that id",
    "body_too_large": "it says that it will be more than the operator allows",
}

# What goes together in a body of Ollama's dialect, and what a model can, is not in the document: its own has none.
OLLAMA_MEANING = {"not_supported", "invalid_parameter", "template_error", "unknown_quantization", "blob_not_found"}

# Never carried out.
REFUSED = {"POST /api/push", "POST /infill", "POST /v1/rerank"}  # the last two by gloss

# Adapters are not fetched from registries, and any word is the name of something in one. What a digest holds, and so
# whether it can be converted, is not in the document either.
PARTLY_REFUSED = REFUSED | {"POST /v1/adapters", "POST /v1/models"}

# They take the body of a route that generates, and look at what makes the prompt.
ONLY_PROMPT = {"POST /apply-template", "POST /v1/chat/completions/input_tokens", "POST /v1/responses/input_tokens"}

# Bodies of jobs that are started and at once cancelled.
WORK = ("POST /v1/quantize", "POST /v1/calibrate", "POST /v1/evaluate", "POST /v1/variants/{ref}/rebuild")

# `{ref}` may hold slashes, so the path of such an operation is also a name: other methods reach that name's own route.
ALSO_NAMES = {
    "POST /v1/variants/{ref}/verify": ("unsupported_method", "allow_header_conformance"),
    "POST /v1/variants/{ref}/rebuild": ("unsupported_method", "allow_header_conformance"),
    "GET /v1/variants/{ref}/file": ("unsupported_method", "allow_header_conformance"),
    "HEAD /v1/variants/{ref}/file": ("unsupported_method", "allow_header_conformance"),
    "GET /v1/models/{ref}/bundle": ("unsupported_method", "allow_header_conformance"),
    "HEAD /v1/models/{ref}/bundle": ("unsupported_method", "allow_header_conformance"),
    "POST /v1/variants/{ref}/repair": ("unsupported_method", "allow_header_conformance"),
    "POST /v1/variants/{ref}/pin": ("unsupported_method", "allow_header_conformance"),
    "DELETE /v1/variants/{ref}/pin": ("unsupported_method", "allow_header_conformance"),
    "POST /v1/models/copy": ("unsupported_method", "allow_header_conformance"),
    "POST /v1/responses/input_tokens": ("unsupported_method", "allow_header_conformance"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """All there is elsewhere: nothing leaves this machine."""
    with FakeHub() as hub:
        hub.add("o/r", {"model-F16.gguf": GLOSS.read_bytes()})
        yield hub


@pytest.fixture(scope="module")
def server(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """With keys, gloss in two levels, an importance matrix, a small context, and ended jobs."""
    options = {
        **hub.settings,
        "QUANTRY_API_KEYS": KEY,
        "QUANTRY_IMPORT_FOLDERS": str(GLOSS.parent),
        "QUANTRY_CONTEXT_LENGTH": "64",
    }
    server = Server(stocked(tmp_path_factory.mktemp("schemathesis") / "home", gloss_home), options)
    server.client.headers.update(HEADERS)
    server.start()
    server.quantize("Q4_K_M")
    write_adapter(server.home / "adapter.gguf", GLOSS)
    adapter = (server.home / "adapter.gguf").read_bytes()
    assert server.client.put(f"/v1/blobs/{digest_of(adapter)}", content=adapter).status_code == 201
    server.json("POST", "/v1/adapters", 201, {"model": "gloss", "name": "tone", "digest": digest_of(adapter)})
    job = server.json("POST", "/v1/calibrate", 202, {"model": "gloss", "chunks": 1})
    assert server.wait_for_job(job["id"])["status"] == "succeeded"
    yield server
    server.close()


@pytest.fixture(scope="module")
def document(server: Server) -> OpenApiSchema:
    config = SchemathesisConfig.from_dict(CONFIG)
    return from_url(f"{server.url}/openapi.json", headers=HEADERS, config=config)


class Aim:
    """Turns generated requests to what is there: nothing random ever reaches a stored model, a job or a blob.

    Half of the well-formed ones are left as they are, and find nothing. Out of bounds only names are changed, and
    only well-formed ones: what was made wrong stays wrong, and would do something if it were taken.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._job_id = server.json("GET", "/v1/jobs", 200)["data"][0]["id"]
        self._gloss_digest = server.json("GET", "/v1/variants/gloss:F16", 200)["digest"]
        self._adapter_digest = server.json("GET", "/v1/adapters/gloss/tone", 200)["digest"]
        bundle = server.client.get("/v1/models/gloss/bundle?levels=Q4_K_M").content
        self._bundle_digest = digest_of(bundle)
        assert server.client.put(f"/v1/blobs/{self._bundle_digest}", content=bundle).status_code == 201
        self._matrix_digest = server.json("GET", "/v1/importance-matrices", 200)["data"][0]["digest"]

    def at(self, case: Case) -> None:
        parameters: dict[str, Any] = case.path_parameters or {}
        body: Any = case.body
        drawn = zlib.crc32(repr((parameters, body if isinstance(body, dict) else None)).encode())
        negative = case.meta.generation.mode.is_negative
        if not negative and isinstance(body, dict):
            settle(body)
        if not negative and case.operation.label == "PUT /v1/datasets/{name}":
            case.body = dataset(case.body, (case.query or {}).get("kind", "text"))
        if not negative and drawn % 2:
            return
        self._names(case.operation.label, parameters, body)
        query: dict[str, Any] = case.query or {}
        if is_name(query.get("model")):
            query["model"] = "gloss"
        if negative:
            return
        if case.operation.label == "PATCH /v1/blobs/{digest}":
            piece = getattr(body, "data", None) or b""
            span = f"0-{len(piece) - 1}" if piece else "*"
            case.headers = {**(case.headers or {}), "Content-Range": f"bytes {span}/{len(piece)}"}
        if case.operation.label == "DELETE /v1/blobs/{digest}/upload":
            parameters["digest"] = self._begun_upload()
            return
        if "address" in parameters:
            parameters["address"] = "hf.co/o/r"
        if "job_id" in parameters:
            parameters["job_id"] = self._job_id
        if "response_id" in parameters:
            parameters["response_id"] = self._response_id()
            query.pop("after", None)
            query.pop("stream", None)
        if "adapters" in case.operation.label:
            self._adapter(case, parameters, body)
        elif "name" in parameters:
            self._dataset(case.operation.label, parameters)
        if "importance-matrices" in case.operation.label and "digest" in parameters:
            parameters["digest"] = self._matrix_digest
        elif "digest" in parameters:
            sent = getattr(body, "data", None)
            parameters["digest"] = digest_of(sent) if isinstance(sent, bytes) else self._gloss_digest
        if isinstance(body, dict):
            self._work(case.operation.label, body, drawn // 2)

    def _names(self, label: str, parameters: dict[str, Any], body: Any) -> None:
        if is_name(parameters.get("ref")):
            parameters["ref"] = "gloss" if label.endswith(("/bundle", "/desired")) else "gloss:Q4_K_M"
            if label.startswith("DELETE") and not label.endswith("/desired"):
                copy = {"source": "gloss:F16", "destination": "scratch"}
                assert self._server.client.post("/v1/models/copy", json=copy).status_code == 201
                parameters["ref"] = "scratch:F16"
        stored = "gloss:F16"
        if label in ("POST /api/create", "DELETE /api/delete"):
            copy = {"source": stored, "destination": "scratch"}
            assert self._server.client.post("/api/copy", json=copy).status_code == 200
            stored = "scratch"
        for field in ("model", "name", "source", "base") if " /api/" in label else ("model", "source", "base"):
            if isinstance(body, dict) and (is_name(body.get(field)) or are_names(body.get(field))):
                body[field] = stored

    def _response_id(self) -> str:
        asked = {"model": "gloss:F16", "input": "It", "max_output_tokens": 1}
        return str(self._server.json("POST", "/v1/responses", 200, asked)["id"])

    def _begun_upload(self) -> str:
        """The digest of a blob of two bytes, one of which is here."""
        digest = digest_of(b"ab")
        piece = self._server.client.patch(f"/v1/blobs/{digest}", content=b"a", headers={"Content-Range": "bytes 0-0/2"})
        assert piece.status_code == 202, piece.text
        return digest

    def _dataset(self, label: str, parameters: dict[str, Any]) -> None:
        parameters["name"] = "calibration"
        if not label.startswith("GET"):
            parameters["name"] = "scratch"
            assert self._server.client.put("/v1/datasets/scratch", content=b"text").status_code == 201

    def _adapter(self, case: Case, parameters: dict[str, Any], body: Any) -> None:
        label, known = case.operation.label, {"model": "gloss", "digest": self._adapter_digest}
        if label == "POST /lora-adapters":
            case.body = [{"id": 0, "scale": one["scale"]} for one in body or ()]
        elif isinstance(body, dict) and body.get("digest") is not None:
            body.update(known)
        elif "name" in parameters:
            parameters.update(ref="gloss", name="tone")
            if label.startswith("DELETE"):
                parameters["name"] = "scratch"
                self._server.json("POST", "/v1/adapters", 201, {**known, "name": "scratch"})

    def _work(self, label: str, body: dict[str, Any], drawn: int) -> None:
        """Long work only now and then."""
        if label == "POST /v1/models" and drawn % 4 == 0:
            if body.get("path") is not None:
                body["path"] = str(GLOSS)
            elif body.get("digest") is not None:
                body["digest"] = self._gloss_digest
        elif label == "POST /v1/bundles" and body.get("digest") is not None:
            body.update(digest=self._bundle_digest, name=None)
        elif label == "PUT /v1/models/{ref}/desired":
            body.update(levels=["F16", "Q4_K_M"], importance_matrix=None)  # which are there
        elif label == "POST /v1/quantize":
            body["dry_run"] = body.get("dry_run", False) or drawn % 8 > 0
            if drawn % 4 < 3:  # else in a child, which takes its time
                body.update(recipe=None, imatrix=None, tensors=False)
        elif " /api/" in label:
            self._ollama(label, body)
        elif label in WORK and body.get("dataset") is not None:
            body["dataset"] = "calibration"
            if "tasks" in body:
                body["tasks"] = []
        elif label.startswith("POST /v1/responses"):
            body["max_output_tokens"] = min(body.get("max_output_tokens") or 4, 4)
        elif "messages" in body or "prompt" in body:
            if drawn % 16 == 0:
                return
            limit = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
            body[limit] = min(body.get(limit) or 4, 4)
            if label.endswith((" /completion", " /completions")):
                body["n_predict"] = 4

    def _ollama(self, label: str, body: dict[str, Any]) -> None:
        if "prompt" in body or "messages" in body:
            body.update(options={"num_predict": 4}, keep_alive="5m")
        if label == "POST /api/create":
            body["from"] = "gloss:F16"
            for field in ("files", "adapters", "draft_files", "quantize", "quantization", "template"):
                body.pop(field, None)

    def after(self, case: Case, answer: Any) -> None:
        """End the jobs it has started: they are not what is tested here, and take the time of what is."""
        if case.operation.label in WORK and answer.status_code == 202:
            self._server.client.delete(f"/v1/jobs/{answer.json()['id']}")


def settle(body: dict[str, Any]) -> None:
    """Put right what fits the document and cannot be meant so."""
    if isinstance(body.get("input"), list) and any(isinstance(item, dict) for item in body["input"]):
        body["input"] = [item for item in body["input"] if item.get("type") != "item_reference"] or "It"
    if isinstance(body.get("adapters"), list) and body["adapters"]:
        body["adapters"] = ["tone"]
    if isinstance(body.get("lora"), list):
        body["lora"] = [{**one, "id": 0} for one in body["lora"]]
    for field in ("tokens", "content", "prompt"):
        if isinstance(body.get(field), list):
            body[field] = known_tokens(body[field])
    prompt = body.get("prompt")
    if prompt is not None and not "".join(map(str, prompt)):
        body["prompt"] = "It"  # gloss adds no token of its own to an empty prompt
    if isinstance(body.get("prompt"), list):
        body["prompt"] = known_tokens(body["prompt"])
    if isinstance(body.get("seed"), int):
        body["seed"] = max(-MAX_SEED, min(body["seed"], MAX_SEED))
    if isinstance(body.get("context_length"), int | float):
        body["context_length"] = 64  # the server's: more may be more than the model has, and is loaded anew
    if isinstance(body.get("parallel"), int | float):
        body["parallel"] = 1 + int(body["parallel"]) % 2  # 256 sequences take their time to load
    if "input" in body:  # of embeddings: gloss has 4096 tokens and vectors of 256 numbers, and other models have others
        body["input"] = known_tokens(body["input"])
        body["dimensions"] = min(body.get("dimensions") or 256, 256)


def dataset(content: Any, kind: str) -> bytes:
    """What was generated, if it is a text; else one, or a task."""
    if kind == "task":
        return b'{"prompt": "a", "expected": "b"}'
    text = content if isinstance(content, str) and content.isprintable() and content.strip() else "text"
    return text.encode()


def known_tokens(value: Any) -> Any:
    if isinstance(value, list):
        return [known_tokens(item) for item in value[:32]]  # thousands take their time
    return value % 4096 if isinstance(value, int | float) else value


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(NAME_PATTERN, value) is not None


def are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_name, value))


def refusal(answer: Any) -> dict[str, Any]:
    """The code and the field at fault, where they stand in the dialect's shape."""
    body = answer.json()
    error = body["error"]
    if not isinstance(error, dict):
        return {"code": body["code"], "param": None}
    if "details" in error:  # Anthropic's
        return {"code": error["details"]["error_code"], "param": error["details"]["param"]}
    return {"code": error.get("reason", error["code"]), "param": error["param"]}


def is_meaning(error: dict[str, Any]) -> bool:
    """Whether a refusal depends on what the words mean here: of a recipe, that is what a pattern finds and a key is."""
    # A choice names one of the tools, and what a call was given is JSON.
    # An address is one of several things, and its host is one that may be reached.
    fields = (
        "Content-Range",
        "address",
        "from",
        "recipe",
        "tool_choice",
        "tools",
        "function_call",
        "messages",
        "thinking.budget_tokens",
    )
    is_fields = error["code"] == "invalid_parameter" and str(error["param"]).startswith(fields)
    return is_fields or error["code"] in MEANING


def excluded_checks(case: Case, answer: Any) -> list[Any]:
    names = list(ALSO_NAMES.get(case.operation.label, ()))
    if case.operation.label in ONLY_PROMPT:
        names.append("negative_data_rejection")
    if answer.status_code in (400, 413, 422) and answer.content and is_meaning(refusal(answer)):
        names.append("positive_data_acceptance")
    if "/api/" in case.operation.label and answer.status_code == 400 and refusal(answer)["code"] in OLLAMA_MEANING:
        names.append("positive_data_acceptance")
    if (
        case.operation.label in PARTLY_REFUSED
        and answer.status_code == 400
        and refusal(answer)["code"] == "not_supported"
    ):
        names.append("positive_data_acceptance")
    return CHECKS.get_by_names(names)


def run(operation: APIOperation, schema: OpenApiSchema, aim: Aim, max_examples: int, phases: Phases) -> Counter[int]:
    """Every request for one operation; how often each status came."""
    statuses: Counter[int] = Counter()
    with requests.Session() as session:

        def check(case: Case) -> None:
            aim.at(case)
            answer = case.call(session=session, headers=HEADERS)
            aim.after(case, answer)
            statuses[answer.status_code] += 1
            case.validate_response(
                answer,
                headers=HEADERS,
                excluded_checks=excluded_checks(case, answer),
                transport_kwargs={"session": session, "headers": dict(HEADERS)},
            )

        build_operation_test(
            config=schema.config,
            operation=operation,
            test_func=check,
            given_kwargs={},
            feedback=FeedbackSources(),
            explicit_settings=settings(
                max_examples=max_examples,
                derandomize=True,
                database=None,
                deadline=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )()
    return statuses


def check_all(
    server: Server, schema: OpenApiSchema, subtests: pytest.Subtests, max_examples: int, phases: Phases
) -> None:
    load_all_checks()
    pid, aim = server.process.pid, Aim(server)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"openai", "ollama", "anthropic", "llama-server"} <= {tag for one in operations for tag in one.tags or ()}
    for operation in operations:
        with subtests.test(operation=operation.label):
            statuses = run(operation, schema, aim, max_examples, phases)
            # A few drawn at random may all be refused, or find nothing.
            if phases is ALL and operation.label not in REFUSED:
                assert any(200 <= status < 300 or status == 409 for status in statuses), statuses
    described = json.loads((server.home / "server.json").read_text())
    assert (described["pid"], server.process.pid, server.process.is_running()) == (pid, pid, True)
    assert server.json("GET", "/health", 200) == {"status": "ok"}
    lines = [json.loads(line) for line in (server.home / "test-server.log").read_text().splitlines()]
    assert [line for line in lines if line["level"] in ("error", "critical")] == []


def test_every_answer_is_as_the_document_says(
    server: Server, document: OpenApiSchema, subtests: pytest.Subtests
) -> None:
    check_all(server, document, subtests, FEW, DRAWN)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_every_answer_is_as_the_document_says_many_times_over(
    server: Server, document: OpenApiSchema, subtests: pytest.Subtests
) -> None:
    check_all(server, document, subtests, MANY, ALL)
