"""A stream says what the whole answer says, and every dialect what the others say, for random requests.

The requests are drawn from fixed seeds: a failure comes again, and its number is in the test's name. Each is sent with
a key of its own, so that none finds its beginning in the cache: what comes from there was computed in another batch,
and where two tokens are as good as equally likely, the rounding of the batch decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.dialects.conftest import write_thinker
from tests.dialects.speaking import DIALECTS, Answer, Dialect, Question, ask, ask_streamed
from tests.server import GLOSS, Server, stocked

FEW, MANY = 3, 25  # for each of the eight routes
KEYS = [f"key-{number:04d}-of-equivalence" for number in range(2000)]
WORDS = [
    "horse",
    "ship",
    "a river",
    "light",
    "größer",
    "日本",
    "the sea",
    "to run",
    "noun",
    "water\nand oil",
    '"quoted"',
]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["noun", "verb"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}
LOOK_UP = {
    "name": "look_up",
    "description": "Look a word up",
    "parameters": {"type": "object", "properties": {"word": {"enum": ["horse", "ship"]}}, "required": ["word"]},
}
STOPS = [(), (), (" of",), ("noun", "\n"), ("<|never|>",)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """gloss, and gloss with a template for tools and thinking. Its client sends every request with another key."""
    folder = tmp_path_factory.mktemp("equivalence")
    write_thinker(folder / "thinker.gguf")
    options = {"QUANTRY_API_KEYS": ",".join(KEYS), "QUANTRY_IMPORT_FOLDERS": f"{GLOSS.parent},{folder}"}
    server = Server(stocked(folder / "home", gloss_home), options).start()
    keys = cycle(KEYS)

    def with_another_key(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {next(keys)}"
        return request

    server.client.auth = with_another_key
    server.json("POST", "/v1/models", 201, {"name": "thinker", "path": str(folder / "thinker.gguf")})
    yield server
    server.close()


def text_from(random: Random) -> str:
    return f"What does {random.choice(WORDS)} mean{random.choice(['?', ', and why?', ' to ' + random.choice(WORDS)])}"


def question_for(dialect: Dialect, random: Random) -> Question:
    """A request that this route can be asked."""
    raw = dialect.raw and (not dialect.chats or random.random() < 0.5)
    question = Question(
        model=random.choice(["gloss:F16", "gloss", "thinker"]),
        turns=(("user", text_from(random)),),
        most=random.randint(1, 24),
        raw=raw,
        stop=random.choice(STOPS),
    )
    if random.random() < 0.5:
        question = replace(
            question,
            temperature=random.choice([0.3, 0.8, 1.0]),
            seed=random.randrange(1 << 32),
            top_k=random.choice([0, 5, 40]),
            top_p=random.choice([0.5, 0.95, 1.0]),
        )
    if raw:
        return question
    if dialect.turns and random.random() < 0.5:
        before = (("user", text_from(random)), ("assistant", "That is a word."))
        question = replace(
            question, turns=((("system", "Be brief."),) if random.random() < 0.5 else ()) + before + question.turns
        )
    if question.model == "thinker":
        question = replace(question, thinks=random.choice([None, False, True]), most=random.randint(1, 60))
        if dialect.tools and random.random() < 0.5:
            return replace(question, tool=LOOK_UP)
    if random.random() < 0.3:
        question = replace(question, schema=SCHEMA, most=40, stop=())
    return question


def check_stream(server: Server, name: str, number: int) -> None:
    dialect = DIALECTS[name]
    question = question_for(dialect, Random(f"{name} {number}"))
    whole, streamed = ask(server, dialect, question), ask_streamed(server, dialect, question)
    assert streamed == whole, question
    assert whole.completion_tokens <= question.most
    assert whole.prompt_tokens > 0


@pytest.mark.parametrize("number", range(FEW))
@pytest.mark.parametrize("name", DIALECTS)
def test_a_stream_gives_the_text_usage_and_reason_of_the_whole_answer(server: Server, name: str, number: int) -> None:
    check_stream(server, name, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FEW, MANY))
@pytest.mark.parametrize("name", DIALECTS)
def test_a_stream_gives_what_the_whole_answer_gives_for_many_more(server: Server, name: str, number: int) -> None:
    check_stream(server, name, number)


def answers(server: Server, question: Question) -> dict[str, Answer]:
    """What every dialect that can be asked this says; a conversation reaches the others as its prompt."""
    found = {name: ask(server, dialect, question) for name, dialect in DIALECTS.items() if dialect.takes(question)}
    if not question.raw and question.thinks is None and question.schema is None:
        body = {"model": question.model, "messages": question.messages}
        prompt = server.json("POST", "/apply-template", 200, body)["prompt"]
        written = replace(question, turns=(("user", prompt),), raw=True)
        found |= {f"{name} of the prompt": ask(server, DIALECTS[name], written) for name in ("llama-server", "native")}
    return found


def check_alike(server: Server, question: Question, least: int) -> None:
    found = answers(server, question)
    assert len(found) >= least
    said = {(one.text, one.thinking, one.prompt_tokens, one.completion_tokens, one.reason) for one in found.values()}
    assert len(said) == 1, (question, found)
    assert {one.stopped_by for one in found.values()} <= {None, *question.stop}


@pytest.mark.parametrize("number", range(2))
def test_all_dialects_say_the_same(server: Server, number: int) -> None:
    random = Random(f"alike {number}")
    plain = Question("gloss", (("user", text_from(random)),), most=random.randint(8, 24))
    drawn = {"temperature": 0.8, "seed": random.randrange(1 << 32)}
    check_alike(server, plain, least=8)
    check_alike(server, replace(plain, turns=(("system", "Be brief."), *plain.turns)), least=7)
    check_alike(server, replace(plain, **drawn, stop=(" of",)), least=8)
    check_alike(server, replace(plain, schema=SCHEMA, most=40), least=6)
    check_alike(server, replace(plain, raw=True), least=4)
    check_alike(server, replace(plain, raw=True, **drawn), least=4)
    check_alike(server, replace(plain, model="thinker", thinks=False, most=40), least=6)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2, 40))
def test_all_dialects_say_the_same_many_times_over(server: Server, number: int) -> None:
    test_all_dialects_say_the_same(server, number)


@pytest.mark.parametrize("name", DIALECTS)
def test_auto_is_answered_by_the_level_that_the_header_names(server: Server, name: str) -> None:
    dialect = DIALECTS[name]
    question = Question("gloss:auto", (("user", "What is a ship?"),), most=4, raw=not dialect.chats)
    whole, streamed = ask(server, dialect, question), ask_streamed(server, dialect, question)
    assert streamed == whole
    assert whole.variant == "gloss:F16"
    assert replace(whole, variant="") == replace(ask(server, dialect, replace(question, model="gloss:F16")), variant="")


HELLO = [{"role": "user", "content": "Hello"}]
# Other routes that name a variant, and what they need beside it.
OTHERS: dict[str, dict[str, Any]] = {
    "/tokenize": {"content": "Hello"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": {"messages": HELLO},
    "/v1/chat/completions/input_tokens": {"messages": HELLO},
    "/v1/responses/input_tokens": {"input": "Hello"},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/v1/embeddings": {"input": "Hello"},
    "/api/embed": {"input": "Hello"},
    "/api/embeddings": {"prompt": "Hello"},
}


@pytest.mark.parametrize("path", OTHERS)
def test_auto_is_known_where_nothing_is_generated(server: Server, path: str) -> None:
    answer = server.client.post(path, json={"model": "gloss:auto", **OTHERS[path]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Quantry-Variant"] == "gloss:F16"


def test_all_dialects_count_the_same_tokens(server: Server) -> None:
    counts = [
        server.json("POST", path, 200, {"model": "gloss", **OTHERS[path]})["input_tokens"]
        for path in OTHERS
        if path.endswith(("input_tokens", "count_tokens"))
    ]
    prompt = server.json("POST", "/apply-template", 200, {"model": "gloss", "messages": HELLO})["prompt"]
    tokens = server.json("POST", "/tokenize", 200, {"model": "gloss", "content": prompt})["tokens"]
    assert counts == [len(tokens)] * 3
