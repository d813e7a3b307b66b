"""Tool calls through a worker process: the same parts in a stream and in a whole answer, errors that name the tools."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from service.api.generation import Choice, Generation
from service.domain.errors import InvalidGrammar
from service.domain.generation import (
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    Tool,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
)
from service.metrics import Metrics
from tests.integration.workers.test_pool import GREEDY, running_pool, variant

LIGHT = Tool("set_light", "Switches the light", '{"type": "object", "properties": {"on": {"type": "boolean"}}}')
ASKED = GenerationRequest(
    messages=(Message("user", "Make it dark."),),
    tools=(LIGHT,),
    tool_choice=ToolChoice(ToolMode.REQUIRED, parallel=False),
    sampling=GREEDY,
    max_tokens=60,
    choices=2,
)


async def test_calls_are_the_same_in_a_stream_and_in_a_whole_answer_of_a_worker() -> None:
    async with running_pool() as pool:

        async def generation(asked: GenerationRequest) -> Generation:
            stream = await pool.submit(variant(), asked)
            return Generation(variant(), stream, Metrics(), choices=asked.choices, began=time.monotonic())

        streamed = [Choice(), Choice()]
        async for event in await generation(ASKED):
            if isinstance(event, ToolCallDelta):
                streamed[event.choice].deltas.append(event)
            elif isinstance(event, Finished):
                streamed[event.choice].finished = event
        whole = await (await generation(ASKED)).whole()
        for choice in (*streamed, *whole):
            [call] = choice.tool_calls
            assert call.name == "set_light"
            assert call.id.startswith("call_")
            assert set(json.loads(call.arguments)) <= {"on"}
            assert choice.end.reason is FinishReason.TOOL_CALLS
            assert choice.text == choice.reasoning == ""
        assert len({choice.tool_calls[0].arguments for choice in (*streamed, *whole)}) == 1

        broken = replace(ASKED, tools=(replace(LIGHT, parameters='{"type": "no such type"}'),))
        refused = await generation(broken)
        with pytest.raises(InvalidGrammar) as caught:
            await refused.whole()
        assert caught.value.param == "tools"
