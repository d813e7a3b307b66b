"""Whether a model's chat template can be used, found out once, at its import. In the job's child.

The template runs in a process of its own (`template_check`): it may run for ever, or eat all memory, and costs the
import a few seconds. A model whose template is of no use still completes raw prompts.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from service.children import child_argv, child_environment, signal_name
from service.domain.catalog import TEMPLATE_BROKEN, TEMPLATE_OK
from service.engine.template import RENDER_SECONDS
from service.jobs.template_check import COMPILING, ONE_TURN

# The check counts seconds of the processor; this is for one that gets none.
_PATIENCE_SECONDS = 600.0
_MOST_REASON_CHARACTERS = 300


def template_verdict(template: str, bos: str, eos: str) -> str | None:
    """What is to be said of a chat template: see `FileFacts.template_verdict`. None where it could not be found out."""
    given = json.dumps({"template": template, "bos": bos, "eos": eos})
    try:
        done = subprocess.run(
            child_argv("service.jobs.template_check"),
            input=given.encode("utf-8", "surrogatepass"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(os.environ),
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    return verdict_of(lines, done.returncode)


def verdict_of(lines: Sequence[Mapping[str, Any]], status: int) -> str | None:
    """The verdict on what the check wrote before it ended with `status`. Pure."""
    if not lines:
        return None
    refused = {line["case"]: line["refused"] for line in lines if line.get("refused") is not None}
    last = lines[-1]
    if status != 0 or "refused" not in last:
        # The line before a case is all that is left of it.
        refused[last["case"]] = _death(status)
    for case in (COMPILING, ONE_TURN):
        if case in refused:
            reason = " ".join("".join(c if c.isprintable() else " " for c in refused[case]).split())
            return f"{TEMPLATE_BROKEN}{reason[:_MOST_REASON_CHARACTERS]}"
    return f"refuses {', '.join(refused)}" if refused else TEMPLATE_OK


def _death(status: int) -> str:
    if signal_name(status) == "SIGXCPU":
        return f"The chat template ran for more than {RENDER_SECONDS:g} s."
    return "The chat template ended the process that tried it, most likely for lack of memory."
