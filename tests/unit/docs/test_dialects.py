"""What docs/api.md says of the dialects at a glance is what there is: their routes, and the fields of their clients.

The clients are those from PyPI: a field that a newer one can send must be carried out, refused or listed as ignored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

import ollama._types as ollama
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from fastapi import FastAPI
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from service.api import (
    anthropic_shapes,
    llama_server_shapes,
    ollama_shapes,
    openai_chat_shapes,
    openai_embeddings,
    openai_responses_shapes,
    openai_shapes,
)
from service.app import create_app
from service.settings import PREFIX, Settings

TEXT = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
GLANCE = TEXT.split("## The dialects at a glance\n")[1].split("\n## ")[0]
DIALECTS = {"OpenAI": "openai", "Ollama": "ollama", "Anthropic": "anthropic", "llama-server": "llama-server"}
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD")

# Route -> what the client can send, and what is read here.
BODIES: dict[str, tuple[Any, type[BaseModel]]] = {
    "POST /v1/chat/completions": (chat_create_params.CompletionCreateParamsBase, openai_chat_shapes.ChatBody),
    "POST /v1/completions": (completion_create_params.CompletionCreateParamsBase, openai_shapes.CompletionBody),
    "POST /v1/responses": (response_create_params.ResponseCreateParamsBase, openai_responses_shapes.ResponsesBody),
    "POST /v1/embeddings": (embedding_create_params.EmbeddingCreateParams, openai_embeddings.EmbeddingsBody),
    "POST /v1/messages": (message_create_params.MessageCreateParamsBase, anthropic_shapes.MessagesBody),
    "POST /v1/messages/count_tokens": (
        message_count_tokens_params.MessageCountTokensParams,
        anthropic_shapes.CountBody,
    ),
    "POST /api/generate": (ollama.GenerateRequest, ollama_shapes.OllamaGenerateBody),
    "POST /api/chat": (ollama.ChatRequest, ollama_shapes.OllamaChatBody),
    "POST /api/embed": (ollama.EmbedRequest, ollama_shapes.OllamaEmbedBody),
    "POST /api/embeddings": (ollama.EmbeddingsRequest, ollama_shapes.OllamaEmbeddingsBody),
    "POST /api/create": (ollama.CreateRequest, ollama_shapes.OllamaCreateBody),
    "POST /api/copy": (ollama.CopyRequest, ollama_shapes.OllamaCopyBody),
    "DELETE /api/delete": (ollama.DeleteRequest, ollama_shapes.OllamaNamedBody),
    "POST /api/show": (ollama.ShowRequest, ollama_shapes.OllamaShowBody),
    "POST /api/pull": (ollama.PullRequest, ollama_shapes.OllamaTransferBody),
    "options": (ollama.Options, ollama_shapes.OllamaOptions),
}
# No client tells what llama-server reads.
OTHERS = {
    "POST /completion": llama_server_shapes.LlamaServerCompletionBody,
    "POST /infill": llama_server_shapes.InfillBody,
}


def rows(header: str) -> list[list[str]]:
    """The cells of the table that begins with these words."""
    table = GLANCE.split(f"| {header} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def ignored(route: str) -> set[str]:
    return {field for cells in rows("field | route") if route in words(cells[1]) for field in words(cells[0])}


def names(shape: Any) -> set[str]:
    if isinstance(shape, type) and issubclass(shape, BaseModel):
        return {str(field.serialization_alias or field.alias or name) for name, field in shape.model_fields.items()}
    return set(get_type_hints(shape))


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    return create_app(Settings(home=tmp_path))


def test_every_route_of_a_dialect_is_in_the_table_and_no_other_is_said_to_be_there(app: FastAPI) -> None:
    served = {
        (dialect, f"{method.upper()} {path}")
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        for dialect, tag in DIALECTS.items()
        if tag in operation["tags"]
    }
    said, missing = set(), set()
    for route, dialect, state in rows("route | dialect"):
        for name in words(route):
            (missing if state.startswith("not there") else said).add((dialect, name))
    assert said == served
    paths = set(app.openapi()["paths"])
    for dialect, name in missing:
        method, _, path = name.rpartition(" ")
        assert (dialect, name) not in served
        assert method in (*METHODS, "")
        if not method:
            assert not [known for known in paths if known == path or known.startswith(f"{path}/")], path


@pytest.mark.parametrize("route", BODIES)
def test_every_field_that_a_client_can_send_is_read_or_listed_as_ignored(route: str) -> None:
    theirs, ours = (names(shape) for shape in BODIES[route])
    assert theirs - ours - {"from_"} == {field for field in ignored(route) if field in theirs}
    assert not ignored(route) & ours


@pytest.mark.parametrize("route", OTHERS)
def test_nothing_that_is_read_is_said_to_be_ignored(route: str) -> None:
    assert ignored(route)
    assert not ignored(route) & names(OTHERS[route])


def test_ignored_fields_are_told_for_routes_that_there_are(app: FastAPI) -> None:
    for _, route, state in rows("field | route"):
        assert state.startswith("ignored")
        for name in words(route):
            assert name in (*BODIES, *OTHERS)
