"""A chat: what a line asks for, and what the next request holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.api.generate_shapes import GenerateBody
from service.cli.answers import harmless
from service.cli.chat import wanted_format
from service.cli.conversation import KNOBS, Conversation, Verb, read_line
from service.cli.failures import CommandFailed


@pytest.mark.parametrize(
    ("line", "verb"),
    [
        ("", Verb.NOTHING),
        ("   ", Verb.NOTHING),
        ("hello", Verb.SAY),
        ("what is /bye?", Verb.SAY),
        ("/bye", Verb.BYE),
        ("/EXIT", Verb.BYE),
        ("/clear", Verb.CLEAR),
        ("/set temperature 0", Verb.SET),
        ("/show", Verb.SHOW),
        ("/?", Verb.HELP),
        ("/nonsense", Verb.UNKNOWN),
        ("/", Verb.UNKNOWN),
    ],
)
def test_a_line_is_a_command_only_when_it_begins_with_a_slash(line: str, verb: Verb) -> None:
    assert read_line(line).verb is verb


def test_every_turn_is_sent_again_with_the_next() -> None:
    chat = Conversation("gloss")
    chat.remember("one", "two")
    assert chat.ask("three")["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]


def test_a_question_without_an_answer_is_dropped() -> None:
    chat = Conversation("gloss")
    chat.remember("one", "")
    assert len(chat.ask("two")["messages"]) == 1


def test_a_system_text_comes_first_and_can_be_taken_back() -> None:
    chat = Conversation("gloss")
    chat.set("system", "Be brief.")
    assert chat.ask("x")["messages"][0] == {"role": "system", "content": "Be brief."}
    chat.set("system", "")
    assert chat.ask("x")["messages"][0]["role"] == "user"


def test_raw_text_is_sent_as_a_prompt() -> None:
    body = Conversation("gloss", raw=True).ask("x")
    assert body["prompt"] == "x"
    assert "messages" not in body


@pytest.mark.parametrize(("value", "kept"), [("0", 0.0), ("1.5", 1.5), ("warm", None)])
def test_a_wrong_value_changes_nothing(value: str, kept: float | None) -> None:
    chat = Conversation("gloss")
    chat.set("temperature", value)
    assert chat.knobs.get("temperature") == kept


def test_an_unknown_setting_is_answered_with_those_there_are() -> None:
    assert "temperature" in Conversation("gloss").set("warmth", "1")


def test_every_setting_of_the_chat_is_a_field_of_the_api() -> None:
    assert set(KNOBS) <= set(GenerateBody.model_fields)


def test_a_request_of_the_chat_is_one_that_the_api_takes() -> None:
    chat = Conversation("gloss", system="s", stop=["x"], format={"type": "object"}, draft="gloss:Q2_K")
    for name in KNOBS:
        chat.set(name, "1")
    chat.remember("a", "b")
    GenerateBody.model_validate(chat.ask("hello"))


def test_a_format_is_json_or_a_schema_in_a_file(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert wanted_format("json") == "json"
    assert wanted_format(str(schema)) == {"type": "object"}
    for content in ("[]", "{", "\udcff"):
        schema.write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(CommandFailed, match="JSON schema"):
            wanted_format(str(schema))
    with pytest.raises(CommandFailed):
        wanted_format(str(tmp_path))


def test_a_models_text_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[2Jb\x07\x9b1m\nc\td\x7f é 日本") == "a[2Jb1m\nc\td é 日本"
