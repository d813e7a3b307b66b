"""Promises of prompt rendering: hostile templates end in an error within seconds, users' words stay words."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import NoChatTemplate, TemplateFailed
from service.domain.generation import GenerationRequest, Message
from service.engine.prompt import PromptRenderer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = {"<|im_start|>": 1, "<|im_end|>": 2, "<s>": 3}
FIRST_CHARACTER = 100


def tokenize(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """A tokenizer of one id per character that knows three special tokens."""
    pattern = "|".join(map(re.escape, SPECIAL)) if parse_special else "(?!)"
    tokens: list[int] = [3] if add_special else []
    position = 0
    for match in re.finditer(pattern, text):
        tokens += [FIRST_CHARACTER + ord(character) for character in text[position : match.start()]]
        tokens.append(SPECIAL[match.group()])
        position = match.end()
    return tokens + [FIRST_CHARACTER + ord(character) for character in text[position:]]


def renderer(template: str | None, *, adds_bos: bool = False) -> PromptRenderer:
    return PromptRenderer(
        template=template,
        tokenize=tokenize,
        bos_token=3,
        adds_bos=adds_bos,
        bos_text="<s>",
        eos_text="<|im_end|>",
        special_texts=list(SPECIAL),
    )


def chat(template: str | None, *contents: str, adds_bos: bool = False) -> list[int]:
    messages = tuple(Message("user", content) for content in contents)
    return renderer(template, adds_bos=adds_bos).tokens(GenerationRequest(messages=messages))


@given(st.text(alphabet="<|>imsendtar_/ \n", max_size=60), st.sampled_from(list(SPECIAL)), st.text(max_size=10))
def test_users_words_never_become_special_tokens(before: str, special: str, after: str) -> None:
    content = before + special + after
    tokens = chat(CHATML, content)
    assert [token for token in tokens if token < FIRST_CHARACTER] == [1, 2, 1]  # the template's own
    inside = tokens[tokens.index(FIRST_CHARACTER + ord("\n")) + 1 : tokens.index(2)]
    assert "".join(chr(token - FIRST_CHARACTER) for token in inside) == content


def test_a_template_that_trims_sees_the_same_text_with_and_without_special_words() -> None:
    trimming = "{{ messages[0].content | trim }}"
    assert chat(trimming, "  a <s> b  ") == [FIRST_CHARACTER + ord(character) for character in "a <s> b"]


def test_a_template_that_changes_case_still_finds_the_hidden_words() -> None:
    tokens = chat("{{ messages[0].content | upper }}{{ messages[0].content | lower }}", "a <s> B")
    assert "".join(chr(token - FIRST_CHARACTER) for token in tokens) == "A <s> Ba <s> b"


def test_a_raw_prompt_names_special_tokens_only_when_asked() -> None:
    words = renderer(None).tokens(GenerationRequest(prompt="<s>"))
    special = renderer(None).tokens(GenerationRequest(prompt="<s>", parse_special=True))
    assert words == [3, *(FIRST_CHARACTER + ord(character) for character in "<s>")]
    assert special == [3, 3]


def test_the_bos_token_is_there_once_whoever_adds_it() -> None:
    assert chat("{{ bos_token }}x", "", adds_bos=True)[:2] == [3, FIRST_CHARACTER + ord("x")]
    assert chat("x", "", adds_bos=True)[:2] == [3, FIRST_CHARACTER + ord("x")]
    assert chat("x", "", adds_bos=False) == [FIRST_CHARACTER + ord("x")]


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(NoChatTemplate, match="prompt instead"):
        chat(None, "hello")


def test_a_template_can_refuse_messages_in_its_own_words() -> None:
    with pytest.raises(TemplateFailed, match="roles must alternate"):
        chat("{{ raise_exception('roles must alternate') }}", "hello")


def test_the_generation_tag_and_loop_controls_of_common_templates_work() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert chat(template, "a", "b") == [FIRST_CHARACTER + ord("a")]


def test_tojson_does_not_escape_for_html() -> None:
    assert chat("{{ messages[0].content | tojson }}", "<é>") == [FIRST_CHARACTER + ord(c) for c in '"<é>"']


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ namespace.__init__.__globals__['os'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ('{0.__cla' + 'ss__}').format(1) }}",
    "{{ strftime_now.__code__.co_consts }}",
    "{{ strftime_now.__closure__ }}",
    "{% set x = namespace() %}{% set x.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'base' %}",
    "{{ dict.__mro__[1].__subclasses__() }}",
    "{{ (messages|selectattr('__class__')|list)[0].__class__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{% macro m() %}{{ m.__globals__ }}{% endmacro %}{{ m() }}",
    "{{ loop.__class__ }}",
    "{{ 'x'.encode().__class__.__base__.__subclasses__() }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ (1).__class__.__base__.__subclasses__()[0] }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_gets_out_of_the_sandbox(template: str) -> None:
    try:
        tokens = chat(template, "hello")
    except TemplateFailed:
        return
    text = "".join(chr(token - FIRST_CHARACTER) for token in tokens if token >= FIRST_CHARACTER)
    assert not re.search(r"<class|<function|<module|uid=|root:|os\.", text)


LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"
ENDLESS = [
    LOOP + LOOP + LOOP + END + END + END,
    "{{ 'A' * 1000000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ range(10000000) | list }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for a in range(90000) %}{{ 'x' * 10000 }}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ [0] * 1000000000 }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{{ ('a,' * 500000).split(',') | join('b' * 1000000) }}",
    LOOP + "{% set x = messages | tojson %}" + END + LOOP + LOOP + END + END,
    "(" * 200000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
]


@pytest.mark.parametrize("template", ENDLESS, ids=range(len(ENDLESS)))
def test_a_template_that_never_ends_is_stopped(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateFailed):
        chat(template, "hello")
    assert time.monotonic() - started < 10  # 1 s of its own; the rest is a busy machine


def test_tokens_come_before_what_a_prompt_or_messages_become() -> None:
    before = (200, 201)
    render = renderer(CHATML, adds_bos=True)
    words = [FIRST_CHARACTER + ord("a")]
    assert render.tokens(GenerationRequest(prompt_tokens=before)) == [200, 201]
    assert render.tokens(GenerationRequest(prompt="a", prompt_tokens=before)) == [200, 201, *words]
    messages = (Message("user", "a"),)
    alone = render.tokens(GenerationRequest(messages=messages))
    assert alone[0] == 3
    assert render.tokens(GenerationRequest(messages=messages, prompt_tokens=before)) == [200, 201, *alone[1:]]


@given(st.text(max_size=10), st.sampled_from(["", *SPECIAL]))
def test_an_answer_that_has_begun_stands_behind_the_prompt_in_plain_words(begun: str, special: str) -> None:
    question = (Message("user", "a"),)
    prompt = chat(CHATML, "a")
    asked = GenerationRequest(messages=(*question, Message("assistant", begun + special)), continues=True)
    rest = [FIRST_CHARACTER + ord(character) for character in begun + special]
    assert renderer(CHATML).tokens(asked) == prompt + rest
    assert renderer(CHATML).text(asked).endswith("<|im_start|>assistant\n" + begun + special)
