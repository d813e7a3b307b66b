"""From Ollama's bodies to what is asked of the engine: options, presets, messages, tools, thinking. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from service.api.ollama_shapes import (
    Asking,
    OllamaCall,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaMessage,
    OllamaOptions,
    OllamaTool,
)
from service.api.ollama_templates import jinja
from service.api.sampling import sampling_params
from service.domain.catalog import Variant
from service.domain.generation import GenerationRequest, Message, Reasoning, SamplingParams, Tool, ToolCall
from service.domain.presets import Preset

# Ollama's own defaults, not quantry's: a client that leaves an option out means these.
DEFAULTS = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.0, repeat_penalty=1.0, repeat_last_n=64)
_SEED_MASK = (1 << 32) - 1


def effective_options(sent: OllamaOptions | None, preset: Preset) -> OllamaOptions:
    """What was sent, and the preset's parameters where it says nothing."""
    given = {} if sent is None else sent.model_dump(exclude_none=True)
    return OllamaOptions.model_validate({**preset.parameters, **given})


def sampling(options: OllamaOptions) -> SamplingParams:
    """How to sample: what the options say, Ollama's defaults for the rest."""
    seed = None if options.seed is None or options.seed == -1 else options.seed & _SEED_MASK
    return sampling_params(options, DEFAULTS, seed=seed)


def common(body: Asking, options: OllamaOptions, preset: Preset, variant: Variant) -> GenerationRequest:
    """What both routes ask alike; the prompt or the messages are still to come."""
    limit = options.num_predict
    return GenerationRequest(
        max_tokens=limit if limit is not None and limit > 0 else None,
        sampling=sampling(options),
        stop=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()),
        logprobs=body.alternatives,
        grammar=body.grammar,
        reasoning=reasoning(body.think),
        template=preset.template,
        context_length=context_length(options.num_ctx, variant),
        adapters=preset.adapters,
    )


def context_length(wanted: int | None, variant: Variant) -> int | None:
    """The tokens to ask for: like Ollama never more than the model was trained for."""
    if not wanted:
        return None
    return min(wanted, variant.facts.shape.context_length or wanted)


def reasoning(think: bool | str | None) -> Reasoning:
    """Thinking on, off, on with a word for how much, or as the model does by itself."""
    if isinstance(think, str):
        return Reasoning(enabled=True, effort="high" if think == "max" else think)
    return Reasoning(enabled=think)


def generate_request(
    body: OllamaGenerateBody, asked: GenerationRequest, preset: Preset, variant: Variant
) -> GenerationRequest:
    """`asked` with its prompt: raw, or as what a user says after the system and the preset's messages.

    Raises NotSupported for a template of Go's.
    """
    text = body.prompt or ""
    if body.raw:
        return replace(asked, prompt=text, template=None, parse_special=True)
    template = jinja(body.template) if body.template else asked.template
    before = tuple(body.context or ())
    system = preset.system if body.system is None else body.system
    if template is None and not variant.facts.has_chat_template:
        # As Ollama's own default template has it: words, and nothing around them.
        words = [system, text] if system and not before else [text]
        return replace(asked, prompt="\n\n".join(words), prompt_tokens=before)
    # What was said before is in the context already.
    first = () if before else (*_system(system), *preset.messages)
    return replace(asked, messages=(*first, Message("user", text)), prompt_tokens=before, template=template)


def chat_request(body: OllamaChatBody, asked: GenerationRequest, preset: Preset) -> GenerationRequest:
    """`asked` with its messages, behind those of the preset, and its tools."""
    sent = domain_messages(body.messages or ())
    has_system = bool(sent) and sent[0].role == "system"
    messages = (*(() if has_system else _system(preset.system)), *preset.messages, *sent)
    if has_system and preset.messages:
        messages = (sent[0], *preset.messages, *sent[1:])
    return replace(
        asked,
        messages=messages,
        continues=messages[-1].role == "assistant" and not messages[-1].tool_calls,
        tools=tuple(domain_tool(tool) for tool in body.tools or ()),
    )


def domain_messages(sent: Sequence[OllamaMessage]) -> tuple[Message, ...]:
    """The turns. Calls without an id get one; results without one are of the first open call of their tool."""
    found: list[Message] = []
    open_calls: list[ToolCall] = []
    for message in sent:
        content = message.content or ""
        if message.role == "tool":
            found.append(_result(message, content, open_calls))
            continue
        calls = tuple(_call(call, len(found), index) for index, call in enumerate(message.tool_calls or ()))
        if message.role == "assistant":
            open_calls += calls
        found.append(Message(message.role, content, reasoning=message.thinking or None, tool_calls=calls))
    return tuple(found)


def domain_tool(tool: OllamaTool) -> Tool:
    """A tool as the engine shows it."""
    function = tool.function
    return Tool(function.name, function.description or "", json.dumps(function.parameters or {}, ensure_ascii=False))


def without_oldest(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """The messages without the `count` oldest that are not the system's, as Ollama shortens a conversation."""
    left = count
    kept: list[Message] = []
    for message in messages:
        if left and message.role != "system":
            left -= 1
        else:
            kept.append(message)
    return tuple(kept)


def droppable(messages: Sequence[Message]) -> int:
    """How many may go: neither the system's nor the last."""
    return max(0, sum(message.role != "system" for message in messages[:-1]))


def _system(system: str | None) -> tuple[Message, ...]:
    return (Message("system", system),) if system else ()


def _call(call: OllamaCall, turn: int, index: int) -> ToolCall:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    return ToolCall(call.id or f"call_{turn}_{index}", call.function.name, arguments)


def _result(message: OllamaMessage, content: str, open_calls: list[ToolCall]) -> Message:
    found = next((call for call in open_calls if call.id == message.tool_call_id), None)
    if found is None and not message.tool_call_id:
        by_name = (call for call in open_calls if call.name == message.tool_name)
        found = next(by_name, open_calls[0] if open_calls and not message.tool_name else None)
    if found is not None:
        open_calls.remove(found)
    call_id = message.tool_call_id or (None if found is None else found.id)
    name = message.tool_name or (None if found is None else found.name)
    return Message("tool", content, tool_call_id=call_id, name=name)
