"""`quantry run`: one answer for a prompt or for piped text, and a chat that Ctrl-C does not end."""

from __future__ import annotations

import json
from collections.abc import Callable

from service.cli.failures import ExitCode
from tests.integration.cli.terminal import Terminal, quantry
from tests.server import Server

QUESTION = 'What does "horse" mean?'
ANSWER = "Horse (noun): solid-hoofed herbivorous quadruped"
CTRL_C, CTRL_D = "\x03", "\x04"


def test_a_prompt_is_answered_on_standard_output_and_nothing_else_is(gloss_server: Server) -> None:
    done = quantry(gloss_server.url, "run", "gloss:F16", QUESTION, "--temperature", "0")
    assert done.stdout.startswith(ANSWER)
    assert done.stdout.endswith("\n")
    assert done.stderr == ""


def test_piped_text_is_the_question_or_follows_it(gloss_server: Server) -> None:
    asked = quantry(gloss_server.url, "run", "gloss:F16", "--temperature", "0", text=f"{QUESTION}\n")
    assert asked.stdout.startswith(ANSWER)
    both = quantry(gloss_server.url, "run", "gloss:F16", "What does", "--temperature", "0", text='"horse" mean?')
    assert both.returncode == 0
    assert both.stdout.strip()


def test_nothing_to_ask_is_a_wrong_command_line(gloss_server: Server) -> None:
    assert quantry(gloss_server.url, "run", "gloss").returncode == ExitCode.USAGE


def test_as_json_an_answer_is_its_events_a_line_each(gloss_server: Server) -> None:
    done = quantry(gloss_server.url, "run", "gloss:F16", QUESTION, "--temperature", "0", "--json")
    *tokens, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["event"] for event in tokens} == {"token"}
    assert "".join(event["text"] for event in tokens).startswith(ANSWER)
    assert (last["event"], last["finish_reason"]) == ("done", "stop")


def test_raw_text_is_continued_without_the_template(gloss_server: Server) -> None:
    done = quantry(gloss_server.url, "run", "gloss:F16", "The word", "--raw", "--max-tokens", "4", "--verbose")
    assert done.returncode == 0
    assert "4 tokens in" in done.stderr
    assert "ended by length" in done.stderr


def test_a_chat_streams_obeys_and_says_goodbye(gloss_server: Server, on_terminal: Callable[..., Terminal]) -> None:
    chat = on_terminal(gloss_server.url, "run", "gloss:F16", "--temperature", "0")
    chat.wait_for(">>> ")
    chat.type(f"{QUESTION}\n")
    seen = chat.wait_for(ANSWER)
    seen = chat.wait_for(">>> ", seen)
    chat.type("/set temperature 0.5\n")
    seen = chat.wait_for("temperature = 0.5", seen)
    chat.type("/show\n")
    seen = chat.wait_for("turns", seen)
    chat.type("/clear\n")
    seen = chat.wait_for("forgotten", seen)
    chat.type("/nonsense\n")
    seen = chat.wait_for("/help", seen)
    chat.type("/bye\n")
    assert chat.end() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(gloss_server: Server, on_terminal: Callable[..., Terminal]) -> None:
    # Raw and without its end token the model goes on until the context is full: seconds, unless it is stopped.
    chat = on_terminal(gloss_server.url, "run", "gloss:F16", "--raw", "--temperature", "0")
    seen = chat.wait_for(">>> ")
    chat.type("And the LORD said\n")
    seen = chat.wait_for("unto", seen)
    chat.type(CTRL_C)
    seen = chat.wait_for("(stopped)", seen)
    seen = chat.wait_for(">>> ", seen)
    seen = chat.press_until(CTRL_C, "Ctrl-D or /bye", seen)
    seen = chat.wait_for(">>> ", seen)
    chat.type(CTRL_D)
    assert chat.end() == 0


def test_a_model_that_is_not_there_ends_no_chat_but_is_told(
    gloss_server: Server, on_terminal: Callable[..., Terminal]
) -> None:
    chat = on_terminal(gloss_server.url, "run", "nobody")
    seen = chat.wait_for(">>> ")
    chat.type("hello\n")
    seen = chat.wait_for("error: ", seen)
    seen = chat.wait_for(">>> ", seen)
    chat.type("/bye\n")
    assert chat.end() == 0
