"""How much a model is to think, in the words that clients of OpenAI's routes use. Fields and translation; no route.

OpenAI itself has only the effort; budgets, the switch and the format are llama-server's and vLLM's, whose clients send
them along.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.api.openai_shapes import Lenient
from service.api.shapes import MAX_TOKENS, WHOLE
from service.domain.generation import Reasoning

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Field(ge=-1, le=MAX_TOKENS, description="Tokens of thinking; 0: none, -1: no limit."), WHOLE]

# What chat templates that read an effort know.
_EFFORTS: dict[str, str] = {"minimal": "low", "xhigh": "high", "max": "high"}


class TemplateFields(Lenient):
    """Variables for the model's chat template. Those for thinking are carried out, the others are not."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


def reasoning_of(
    effort: Effort | None = None,
    budget: int | None = None,
    template: TemplateFields | None = None,
    *,
    split: bool = True,
) -> Reasoning:
    """As a domain value. Who says in any way that there is to be no thinking gets none."""
    switches = [] if template is None else [template.enable_thinking, template.thinking]
    if effort is not None:
        switches.append(effort != "none")
    if budget == 0:
        switches.append(False)
    said = [switch for switch in switches if switch is not None]
    return Reasoning(
        enabled=all(said) if said else None,
        max_tokens=None if budget is None or budget < 1 else budget,
        effort=None if effort in (None, "none") else _EFFORTS.get(effort, effort),
        split=split,
    )
