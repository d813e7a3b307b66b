"""Promises of the trial of chat templates: it always ends, in little memory, and says what the template is good for."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from service.domain.catalog import FileFacts, ModelShape
from service.jobs.templates import template_verdict

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"


def test_a_common_template_is_found_to_work() -> None:
    assert template_verdict("{{ bos_token }}" + CHATML, "<s>", "</s>") == "ok"


def test_what_a_template_refuses_is_named_and_leaves_it_of_use() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    verdict = template_verdict(template + "{% if tools %}{{ tools.nothing.here }}{% endif %}", "", "")
    assert verdict == "refuses a system turn, tools"
    assert facts(verdict).template_fault is None


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('not with me') }}", "not with me"),
        ("{% if %}", "cannot be compiled"),
        ("{{ messages.__class__.__base__.__subclasses__()[0]() }}", "failed (SecurityError)"),
        ("{{ ''.__class__.__mro__ }}", "failed (SecurityError)"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "failed (SecurityError)"),
        ("{{ self.__init__.__globals__ }}", "failed"),
        ("{% include '/etc/passwd' %}", "failed"),
        ("{{ messages.append(1) }}", "failed (SecurityError)"),
        ("{{ 'A' * 1000000000 }}", "multiplies too far"),
        ("{{ 9 ** 9 ** 9 }}", "uses powers"),
        ("{{ range(10000000) | list }}", "loops over"),
        ("{% if 1 %}" * 500 + "{% endif %}" * 500, "cannot be compiled"),
        ("x" * 200_000, "longer than"),
    ],
)  # fmt: skip
def test_a_template_that_is_of_no_use_is_told_with_its_reason(template: str, reason: str) -> None:
    verdict = template_verdict(template, "", "")
    assert verdict is not None
    assert reason in (facts(verdict).template_fault or "")


@pytest.mark.parametrize(
    "template",
    [
        LOOP + LOOP + LOOP + END + END + END,
        "{% set ns = namespace(s=['ab']) %}" + LOOP + "{% set ns.s = ns.s + ns.s %}" + END,
        pytest.param("{{ ('a,' * 500000).split(',') | join('b' * 1000000) }}", marks=pytest.mark.slow),
        pytest.param(
            "{% for a in range(90000) %}{% set x = ('x' * 1000000) | upper | list | sort | join %}{% endfor %}",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_template_that_never_ends_or_eats_all_memory_ends_in_a_verdict(template: str) -> None:
    started = time.monotonic()
    # In a process of its own: what the system counts of children is the largest of all that there ever were.
    done = subprocess.run([sys.executable, "-c", WEIGHED], input=template.encode(), capture_output=True, check=True)
    verdict, cpu_seconds, largest_kib = json.loads(done.stdout)
    assert verdict.startswith("broken: ")
    assert cpu_seconds < 5
    assert largest_kib < 700_000
    assert time.monotonic() - started < 60  # of a busy machine


WEIGHED = """
import json, resource, sys
from service.jobs.templates import template_verdict
verdict = template_verdict(sys.stdin.read(), "", "")
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([verdict, used.ru_utime, used.ru_maxrss]))
"""


def facts(verdict: str) -> FileFacts:
    return FileFacts("F16", 1, 16.0, 1, ModelShape("llama"), template_verdict=verdict)
