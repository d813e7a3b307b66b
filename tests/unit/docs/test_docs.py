"""What docs/ promises is what the code has: settings, error codes, routes, fields, levels, commands, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from fastapi import FastAPI
from pydantic import BaseModel

from service.api import (
    adapter_shapes,
    advice_shapes,
    anthropic_shapes,
    care_shapes,
    catalogue_shapes,
    desired,
    generate_shapes,
    laboratory_bodies,
    laboratory_shapes,
    llama_server_shapes,
    ollama_shapes,
    openai_embeddings,
    remote_shapes,
)
from service.api.openai_chat_shapes import ChatBody
from service.api.openai_responses_shapes import ResponsesBody
from service.api.openai_shapes import CompletionBody
from service.api.responses import STATUS, TYPES, status_of
from service.api.shapes import Listing
from service.app import create_app
from service.cli.program import build
from service.domain.errors import leaves
from service.domain.quants import ALIASES, QUANTIZATIONS
from service.settings import FOREIGN_NAMES, FOREIGN_PREFIXES, PREFIX, Settings

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
CODES = sorted({kind.code for kind in leaves()})

# Route of api.md -> the body that its table of fields describes.
BODIES: dict[str, type[BaseModel]] = {
    "POST /v1/generate": generate_shapes.GenerateBody,
    "POST /v1/quantize": laboratory_bodies.QuantizeBody,
    "POST /v1/calibrate": laboratory_bodies.CalibrateBody,
    "POST /v1/evaluate": laboratory_bodies.EvaluateBody,
    "POST /v1/variants/{ref}/rebuild": laboratory_bodies.RebuildBody,
    "Recipes": laboratory_bodies.RecipeBody,
    "POST /v1/models": catalogue_shapes.ImportBody,
    "POST /v1/models/copy": catalogue_shapes.CopyBody,
    "POST /v1/bundles": catalogue_shapes.BundleBody,
    "POST /v1/adapters": adapter_shapes.AdapterBody,
    "POST /v1/verify": care_shapes.VerifyBody,
    "POST /v1/prune": care_shapes.PruneBody,
    "PUT /v1/models/{ref}/desired": desired.DesiredBody,
    "POST /v1/workers/{ref}/load": catalogue_shapes.LoadBody,
    "POST /v1/embeddings": openai_embeddings.EmbeddingsBody,
    "POST /v1/messages": anthropic_shapes.MessagesBody,
    "POST /api/embed": ollama_shapes.OllamaEmbedBody,
    "POST /api/embeddings": ollama_shapes.OllamaEmbeddingsBody,
    "POST /api/show": ollama_shapes.OllamaShowBody,
    "POST /api/copy": ollama_shapes.OllamaCopyBody,
    "DELETE /api/delete": ollama_shapes.OllamaNamedBody,
    "POST /api/pull": ollama_shapes.OllamaTransferBody,
    "POST /api/push": ollama_shapes.OllamaTransferBody,
    "POST /tokenize": llama_server_shapes.TokenizeBody,
    "POST /detokenize": llama_server_shapes.DetokenizeBody,
    "POST /completion": llama_server_shapes.LlamaServerCompletionBody,
    "POST /v1/rerank": llama_server_shapes.RerankBody,
}
# Member of a body that its section explains in the same way, under `member.field`.
MEMBERS: dict[str, type[BaseModel]] = {"search": laboratory_bodies.SearchBody}
# Shape of an answer -> the section of api.md that explains its fields.
ANSWERS: dict[type[BaseModel], str] = {
    generate_shapes.GenerationShape: "POST /v1/generate",
    generate_shapes.LogprobShape: "POST /v1/generate",
    generate_shapes.ChoiceShape: "POST /v1/generate",
    generate_shapes.ChoicesShape: "POST /v1/generate",
    generate_shapes.UsageShape: "POST /v1/generate",
    generate_shapes.TimingsShape: "POST /v1/generate",
    openai_embeddings.EmbeddingsShape: "POST /v1/embeddings",
    openai_embeddings.EmbeddingShape: "POST /v1/embeddings",
    openai_embeddings.EmbeddingUsageShape: "POST /v1/embeddings",
    anthropic_shapes.MessageShape: "POST /v1/messages",
    anthropic_shapes.MessageUsageShape: "POST /v1/messages",
    llama_server_shapes.TokenPieceShape: "POST /tokenize",
    llama_server_shapes.CompletedShape: "POST /completion",
    llama_server_shapes.RanksShape: "POST /v1/rerank",
    llama_server_shapes.RankShape: "POST /v1/rerank",
    llama_server_shapes.SlotShape: "GET /slots",
    catalogue_shapes.PlanShape: "POST /v1/quantize",
    catalogue_shapes.TensorShape: "POST /v1/quantize",
    laboratory_bodies.TargetBody: "Budgets",
    laboratory_bodies.UntilBody: "Steps back",
    laboratory_shapes.SearchShape: "Budgets",
    laboratory_shapes.ImportanceMatrixShape: "GET /v1/importance-matrices",
    laboratory_shapes.TensorStatisticsShape: "GET /v1/importance-matrices/{digest}",
    laboratory_shapes.CardShape: "Cards",
    laboratory_shapes.TextFiguresShape: "Cards",
    laboratory_shapes.DivergenceShape: "Cards",
    laboratory_shapes.SpeedShape: "Cards",
    laboratory_shapes.TaskScoreShape: "Cards",
    laboratory_shapes.DatasetShape: "GET /v1/datasets",
    adapter_shapes.AdapterShape: "GET /v1/adapters",
    adapter_shapes.GoneAdapterShape: "DELETE /v1/adapters/{ref}/{name}",
    catalogue_shapes.JobShape: "Jobs",
    desired.DesiredShape: "PUT /v1/models/{ref}/desired",
    desired.DesiredLevelShape: "PUT /v1/models/{ref}/desired",
    catalogue_shapes.StepShape: "Jobs",
    catalogue_shapes.JobErrorShape: "Jobs",
    catalogue_shapes.VariantShape: "GET /v1/variants",
    catalogue_shapes.LineageShape: "GET /v1/variants",
    catalogue_shapes.MeasurementShape: "GET /v1/variants",
    catalogue_shapes.AvailableShape: "GET /v1/variants",
    catalogue_shapes.DeletedShape: "DELETE /v1/variants/{ref}",
    remote_shapes.RemoteShape: "GET /v1/remote/{address}",
    remote_shapes.RemoteLevelShape: "GET /v1/remote/{address}",
    remote_shapes.RemoteFileShape: "GET /v1/remote/{address}",
    catalogue_shapes.RemoteOriginShape: "GET /v1/variants",
    catalogue_shapes.VerifiedShape: "POST /v1/variants/{ref}/verify",
    care_shapes.StoreShape: "GET /v1/store",
    care_shapes.PruneShape: "POST /v1/prune",
    care_shapes.LeavingShape: "POST /v1/prune",
    catalogue_shapes.BlobShape: "PUT /v1/blobs/{digest}",
    catalogue_shapes.PieceShape: "PATCH /v1/blobs/{digest}",
    catalogue_shapes.WorkerShape: "GET /v1/workers",
    catalogue_shapes.WorkerListing: "GET /v1/workers",
    catalogue_shapes.UnloadedShape: "POST /v1/workers/{ref}/unload",
}
ANSWERS |= dict.fromkeys(
    (
        advice_shapes.RecommendationShape,
        advice_shapes.AdvisedShape,
        advice_shapes.ConsideredShape,
        advice_shapes.MemoryShape,
        advice_shapes.LossShape,
        advice_shapes.PaceShape,
    ),
    "GET /v1/recommend",
)
ANSWERS |= dict.fromkeys((advice_shapes.FrontierShape, advice_shapes.FrontierPointShape), "GET /v1/frontier")
LISTING = {"object", "data"}  # explained once, under Conventions


@cache
def page(name: str) -> str:
    return (DOCS / name).read_text()


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row."""
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|- "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def row_of(text: str, first: str, *, cells: int) -> list[str]:
    """The one row of that many cells whose first one is `first` in backticks."""
    (found,) = [row for row in rows(text) if len(row) == cells and row[0] == f"`{first}`"]
    return found


def sections(text: str) -> dict[str, str]:
    """Headings of the third level with what stands under them; one heading may name several routes."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=#{2,3} )", text, flags=re.MULTILINE):
        heading, _, body = part.partition("\n")
        for name in re.findall(r"`([A-Z]+ /[^`]*)`", heading) or [heading.strip("# ")]:
            found[name] = found.get(name, "") + body
    return found


def without_code(text: str) -> str:
    """Prose and tables alone."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def shown(value: Any) -> str:
    """A default or a limit as the documents write it: no trailing zeros, no exponents, lists with commas."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def states(text: str, number: float) -> bool:
    """Whether `text` has this very number, and not as a part of another."""
    return re.search(rf"(?<![\d.-]){re.escape(shown(number))}(?![\d.])", text) is not None


# --- configuration.md --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default_and_limits(name: str) -> None:
    field = Settings.model_fields[name]
    _, kind, default, limits, meaning = row_of(page("configuration.md"), PREFIX + name.upper(), cells=5)
    expected = "unset" if field.default in (None, ()) else f"`{shown(field.default)}`"
    assert re.fullmatch(rf"{re.escape(expected)}( \(\d+ [KMGTP]iB\))?", default)
    for rule in field.metadata:
        for bound in ("ge", "le", "max_length"):
            if hasattr(rule, bound) and getattr(rule, bound) is not None:
                assert states(limits, getattr(rule, bound)), bound
    for word in get_args(field.annotation):
        if isinstance(word, str):
            assert f"`{word}`" in limits
    for unit in ("bytes", "seconds", "tokens"):
        assert (unit == kind) == (name.endswith(f"_{unit}") or (name, unit) == ("context_length", "tokens"))
    assert meaning


def test_no_setting_is_documented_that_does_not_exist() -> None:
    text = page("configuration.md")
    own, other = text.split("## Other variables")
    documented = {name for row in rows(own) for name in re.findall(r"`(QUANTRY_[A-Z0-9_]+)`", row[0])}
    assert documented == {PREFIX + name.upper() for name in Settings.model_fields}
    tolerated = {name for row in rows(other) for name in re.findall(r"`(QUANTRY_[A-Z0-9_]+)…?`", row[0])}
    assert tolerated == FOREIGN_NAMES | set(FOREIGN_PREFIXES)
    assert {"QUANTRY_BIND", "QUANTRY_MEMORY", "QUANTRY_MODELS"} <= set(
        re.findall(r"\$\{(QUANTRY_[A-Z]+)", (ROOT / "docker-compose.yml").read_text())
    )


# --- api.md ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_is_documented_with_its_status(code: str) -> None:
    (status,) = {status_of(kind) for kind in leaves() if kind.code == code}
    found = row_of(sections(page("api.md"))["Errors"], code, cells=4)
    assert found[1] == str(status)
    assert found[2]


def test_no_error_code_is_documented_that_does_not_exist() -> None:
    documented = [row[0].strip("`") for row in rows(sections(page("api.md"))["Errors"]) if len(row) == 4][1:]
    assert sorted(documented) == CODES


def test_the_type_of_every_status_is_documented() -> None:
    documented = {
        int(status): row[1].strip("`")
        for row in rows(sections(page("api.md"))["Errors"])
        if len(row) == 2
        for status in re.findall(r"\d{3}", row[0])
    }
    assert documented == TYPES
    assert set(STATUS.values()) <= set(documented)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    return create_app(Settings(home=tmp_path))


def test_every_route_is_documented_and_no_other(app: FastAPI) -> None:
    served = {
        f"{method.upper()} {path}" for path, operations in app.openapi()["paths"].items() for method in operations
    }
    assert {name for name in sections(page("api.md")) if " /" in name} == served


def test_the_routes_outside_of_the_document_are_named(app: FastAPI) -> None:
    for path in (app.openapi_url, app.docs_url, app.redoc_url):
        assert f"{path}`" in page("api.md")


def test_every_query_parameter_is_documented(app: FastAPI) -> None:
    documented = sections(page("api.md"))
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    assert f"`{parameter['name']}`" in documented[f"{method.upper()} {path}"], (path, parameter)


@pytest.mark.parametrize("route", BODIES)
def test_every_field_of_a_request_is_documented_with_its_default_and_limits(route: str) -> None:
    text = sections(page("api.md"))[route]
    documented = [name for row in rows(text) if len(row) == 4 for name in re.findall(r"^`(\w+)`$", row[0])]
    assert sorted(documented) == sorted(field.alias or name for name, field in BODIES[route].model_fields.items())
    check_fields(text, BODIES[route])


@pytest.mark.parametrize("member", MEMBERS)
def test_every_field_within_a_field_is_documented_too(member: str) -> None:
    text = sections(page("api.md"))["Budgets"]
    documented = [row[0].strip("`") for row in rows(text) if len(row) == 4 and row[0].startswith(f"`{member}.")]
    assert sorted(documented) == sorted(f"{member}.{name}" for name in MEMBERS[member].model_fields)
    check_fields(text, MEMBERS[member], prefix=f"{member}.")


def check_fields(text: str, body: type[BaseModel], prefix: str = "") -> None:
    by_alias = {field.alias or name: field for name, field in body.model_fields.items()}
    for name, schema in body.model_json_schema()["properties"].items():
        field = by_alias[name]
        _, _, default, limits = row_of(text, prefix + name, cells=4)
        if field.is_required():
            assert default == "required"
        else:
            value = field.get_default(call_default_factory=True)
            spelled = {"None": "null", "True": "true", "False": "false"}
            assert default == f"`{spelled.get(str(value), value)}`"
        for bound in ("minimum", "maximum", "maxLength", "maxItems"):
            for limit in _found(schema, bound):
                assert states(limits, limit), (name, bound, limit)


def _found(schema: Any, key: str) -> Iterator[float]:
    if isinstance(schema, dict):
        if isinstance(schema.get(key), (int, float)):
            yield schema[key]
        for value in schema.values():
            yield from _found(value, key)
    elif isinstance(schema, list):
        for value in schema:
            yield from _found(value, key)


@pytest.mark.parametrize("shape", ANSWERS, ids=lambda shape: shape.__name__)
def test_every_field_of_an_answer_is_explained_where_it_is_sent(shape: type[BaseModel]) -> None:
    text = without_code(sections(page("api.md"))[ANSWERS[shape]])
    expected = set(shape.model_fields) - (LISTING if issubclass(shape, Listing) else set())
    assert [name for name in expected if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("body", "column"),
    [(ChatBody, 1), (CompletionBody, 2), (ResponsesBody, 3)],
    ids=["chat", "completions", "responses"],
)
def test_every_field_of_the_openai_dialect_is_documented(body: type[BaseModel], column: int) -> None:
    text = sections(page("api.md"))["The OpenAI dialect"]
    documented = {
        name for row in rows(text) if len(row) == 6 and row[column] for name in re.findall(r"`(\w+)`", row[0])
    }
    assert documented == set(body.model_fields)


@pytest.mark.parametrize(
    ("body", "column"),
    [(ollama_shapes.OllamaGenerateBody, 1), (ollama_shapes.OllamaChatBody, 2)],
    ids=["generate", "chat"],
)
def test_every_field_of_the_ollama_dialect_is_documented(body: type[BaseModel], column: int) -> None:
    text = sections(page("api.md"))["The Ollama dialect"]
    documented = {
        name for row in rows(text) if len(row) == 5 and row[column] for name in re.findall(r"`(\w+)`", row[0])
    }
    assert documented == set(body.model_fields)


def test_every_option_of_ollamas_and_every_field_of_create_is_documented() -> None:
    text = sections(page("api.md"))
    options = {
        name for row in rows(text["The Ollama dialect"]) if len(row) == 3 for name in re.findall(r"`(\w+)`", row[0])
    }
    assert options == set(ollama_shapes.OllamaOptions.model_fields)
    documented = {row[0].strip("`") for row in rows(text["POST /api/create"])} - {"field"}
    fields = ollama_shapes.OllamaCreateBody.model_fields
    assert documented == {field.alias or name for name, field in fields.items()}


# --- levels.md ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", QUANTIZATIONS)
def test_every_level_is_documented(label: str) -> None:
    level = QUANTIZATIONS[label]
    _, file_type, bits, family, matrix, size, perplexity, advice = row_of(page("levels.md"), label, cells=8)
    assert file_type == str(level.file_type)
    assert float(bits) == level.bits_per_weight
    assert family == level.family
    assert matrix == ("needed" if level.needs_imatrix else "")
    assert advice == level.advice
    reference = level.reference
    assert size == (f"{reference.size_gib:.2f}G" if reference else "")
    added = reference.perplexity_added if reference else None
    assert perplexity == ("" if reference is None else "lossless" if added is None else f"+{added:.4f}")


def test_levels_and_aliases_are_all_there_and_no_others() -> None:
    text = page("levels.md")
    assert [row[0].strip("`") for row in rows(text) if len(row) == 8][1:] == list(QUANTIZATIONS)
    aliases = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", text, re.MULTILINE))
    assert aliases == ALIASES


# --- cli.md ------------------------------------------------------------------------------------------------------

COMMAND: Any = typer.main.get_command(build())
# `serve` has the settings as options: configuration.md has those.
SETTINGS = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
SHARED = {"--url", "--api-key", "--json"}


def test_every_command_is_documented_and_no_other() -> None:
    headings = re.findall(r"^## quantry ([\w-]+)$", page("cli.md"), re.MULTILINE)
    assert sorted(headings) == sorted(COMMAND.commands)
    listed = re.findall(r"\[`([\w-]+)`\]\(#quantry-", page("cli.md").partition("\n## ")[0])
    assert sorted(listed) == sorted(COMMAND.commands)


@pytest.mark.parametrize("name", COMMAND.commands)
def test_every_option_of_a_command_is_documented_and_no_other(name: str) -> None:
    found = {option for parameter in COMMAND.commands[name].params for option in _options(parameter)} - SHARED
    if name == "serve":
        found -= SETTINGS
    text = sections(page("cli.md"))[f"quantry {name}"]
    documented = {
        option for row in rows(text) if row[0].startswith("`-") for option in re.findall(r"`(-[\w-]+)", row[0])
    }
    assert documented == found


def test_the_options_of_every_command_are_documented() -> None:
    documented = sections(page("cli.md"))["Options of every command"]
    assert {option for row in rows(documented) for option in re.findall(r"`(--[\w-]+)", row[0])} >= SHARED


def _options(parameter: Any) -> Iterator[str]:
    if parameter.param_type_name == "option":
        yield from (*parameter.opts, *parameter.secondary_opts)


# --- all pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_local_file_resolves(path: Path) -> None:
    text = without_code(path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target
