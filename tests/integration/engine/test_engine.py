"""The engine over real models: whatever it does to be fast, texts are those of one request at a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from service.domain.generation import (
    AdapterUse,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    SamplingParams,
)
from service.domain.recipes import Recipe
from service.engine.drafting import DraftModel
from service.llama.quantizer import quantize_model
from tests.integration.engine.driving import GREEDY, Answer, greedy, running
from tests.tiny_models import GENERATING, write_adapter

WORDS = json.loads((Path(__file__).parents[3] / "demo" / "words.json").read_text())
STORY = "The word that I want to have explained is a word for what people do when they meet, and the word is "


@pytest.mark.parametrize("kind", GENERATING)
def test_greedy_text_with_the_cache_is_the_text_without_it(kind: str, tiny: dict[str, Path]) -> None:
    """Full attention, sliding window, recurrent, hybrid; prompts pass the window, texts share beginnings."""
    prompts = [STORY * 2 + end for end in ("one", "two", "three", "two and a half")]
    conversation = STORY
    with running(tiny[kind], keeps_prefixes=False, speculates=False) as plain, running(tiny[kind]) as cached:
        alone = [plain.ask(prompt, greedy(12)).text for prompt in prompts]
        one_by_one = [cached.ask(prompt, greedy(12)) for prompt in prompts]
        assert [answer.text for answer in one_by_one] == alone
        assert max(answer.cached for answer in one_by_one) > 40
        together = cached.ask_all(prompts, greedy(12))
        assert [answer.text for answer in together] == alone
        for _ in range(3):
            tokens = cached.tokens(conversation)
            assert cached.ask(tokens, greedy(8)).text == plain.ask(tokens, greedy(8)).text
            conversation += "more"
        assert cached.engine.free_cells == 1024
        assert plain.engine.cached_cells == 0


@pytest.mark.parametrize("kind", GENERATING)
def test_the_next_turn_computes_only_what_is_new(kind: str, tiny: dict[str, Path]) -> None:
    with running(tiny[kind]) as driver:
        prompt = driver.tokens(STORY)
        first = driver.submit(prompt, greedy(10))
        generated: list[int] = []
        while not driver.engine.is_idle:
            choice = driver.engine._requests[first][0]
            generated = choice.sequence.tokens
            driver.step()
        second = driver.ask([*generated, *driver.tokens("and then")], greedy(4))
    assert second.cached == len(prompt) + 9  # the last drawn token was never computed


def test_requests_that_arrive_together_compute_their_common_beginning_once(gloss: Path) -> None:
    with running(gloss, slots=8) as driver:
        answers = driver.ask_all([STORY * 3 + str(number) for number in range(8)], greedy(4))
        common = len(driver.tokens(STORY * 3)) - 2
    assert answers[0].cached == 0
    assert all(answer.cached >= common for answer in answers[1:])


def test_requests_with_different_salts_share_nothing(gloss: Path) -> None:
    with running(gloss) as driver:
        driver.ask(STORY, greedy(4, cache_salt="one key"))
        assert driver.ask(STORY, greedy(4, cache_salt="another key")).cached == 0
        assert driver.ask(STORY, greedy(4, cache_salt="one key")).cached > 0
        assert driver.ask(STORY, greedy(4, cache_salt="one key", cache_prompt=False)).cached == 0


def test_64_greedy_requests_at_once_get_their_texts_of_one_at_a_time(gloss: Path) -> None:
    """Kernels for one token and for many add in another order: where two tokens are all but equally likely, either
    may come. Nothing else may differ (docs/measurements.md says how often that is)."""
    prompts = [f"<|im_start|>user\n{word}<|im_end|>\n<|im_start|>assistant\n" for word in list(WORDS)[:64]]
    request = replace(greedy(24), ignore_eos=False, logprobs=2)
    with running(gloss, slots=16, cells=4096) as driver:
        tokens = [driver.model.tokenize(prompt, add_special=True, parse_special=True) for prompt in prompts]
        alone = [driver.ask(prompt, replace(request, cache_prompt=False, speculate=False)) for prompt in tokens]
        together = driver.ask_all(tokens, request)
    differing = 0
    for one, other in zip(alone, together, strict=True):
        if other.text != one.text:
            differing += 1
            gaps = [
                (mine.top[0].logprob - mine.top[1].logprob)
                for mine, others in zip(one.logprobs, other.logprobs, strict=False)
                if mine.token != others.token
            ]
            # None: one of them ended, and an end has no entry; then the last token before it was no tie.
            assert not gaps or gaps[0] < 0.05
    assert differing <= 2


def test_cells_run_out_and_every_text_still_comes_out_whole(gloss: Path) -> None:
    prompts = [STORY + str(number) for number in range(6)]
    with running(gloss, slots=6, cells=256, speculates=False) as driver:
        alone = [driver.ask(prompt, greedy(60)).text for prompt in prompts]
        together = driver.ask_all(prompts, greedy(60))
        assert [answer.text for answer in together] == alone
        assert driver.engine.free_cells == 256


def test_drafts_change_no_text_and_most_of_a_repetition_is_accepted(gloss: Path) -> None:
    chant = "one two three four five six seven eight nine ten " * 4
    with running(gloss, speculates=False) as plain, running(gloss) as driver:
        expected = plain.ask(chant, greedy(80)).text
        answers = [driver.ask(chant, greedy(80)) for _ in range(3)]
        assert {answer.text for answer in answers} == {expected}
        hot = GenerationRequest(prompt="", max_tokens=80, sampling=SamplingParams(temperature=0.7, seed=3))
        assert driver.ask(chant, hot).text == plain.ask(chant, hot).text
    usage = answers[-1].ends[0].usage
    assert usage.accepted_tokens <= usage.draft_tokens


def test_choices_share_the_prompt_and_draw_with_seeds_of_their_own(gloss: Path) -> None:
    hot = SamplingParams(temperature=2.0, seed=11)
    with running(gloss, slots=2) as driver:
        answer = driver.ask(STORY, GenerationRequest(prompt="", max_tokens=12, sampling=hot, choices=3))
        seeds = [replace(hot, seed=11 + index) for index in range(3)]
        alone = [driver.ask(STORY, GenerationRequest(prompt="", max_tokens=12, sampling=seed)).text for seed in seeds]
    assert sorted(answer.ends) == [0, 1, 2]
    assert [answer.texts[index] for index in range(3)] == alone
    assert len(set(alone)) > 1


def test_logprobs_come_for_every_token_likeliest_first(gloss: Path) -> None:
    with running(gloss) as driver:
        answer = driver.ask(STORY, greedy(6, logprobs=3))
        plain = driver.ask(STORY, greedy(6))
    drawn = answer.logprobs
    assert len(drawn) == 6
    assert b"".join(entry.token for entry in drawn).decode() == answer.text == plain.text
    for entry in drawn:
        assert entry.token == entry.top[0].token
        assert entry.logprob == pytest.approx(entry.top[0].logprob, abs=1e-4)
        assert entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob
        assert 0.99 < sum(math.exp(chance.logprob) for chance in entry.top) + 1 <= 2.001


def test_a_schema_holds_and_others_in_the_batch_are_left_alone(gloss: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    with running(gloss) as driver:
        free = driver.ask(STORY, greedy(30)).text
        asked = driver.submit(STORY, replace(greedy(200), ignore_eos=False, grammar=grammar, choices=2))
        other = driver.submit(STORY, greedy(30))
        driver.finish()
        constrained = driver.answers[asked]
        assert driver.answers[other].text == free
    for index in (0, 1):
        value = json.loads(constrained.texts[index])
        assert isinstance(value["a"], int)
        assert value["b"] in ("x", "y")
        assert constrained.ends[index].reason is FinishReason.STOP


def test_ignoring_the_end_bans_the_end_token(gloss: Path) -> None:
    with running(gloss) as driver:
        prompt = driver.model.tokenize(
            "<|im_start|>user\njoy<|im_end|>\n<|im_start|>assistant\n", add_special=True, parse_special=True
        )
        short = driver.ask(prompt, GenerationRequest(prompt="", max_tokens=200, sampling=GREEDY))
        long = driver.ask(prompt, greedy(200))
    assert short.ends[0].reason is FinishReason.STOP
    assert long.ends[0].usage.completion_tokens == 200
    assert long.text.startswith(short.text)


def test_adapters_change_only_the_texts_that_ask_for_them(gloss: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    write_adapter(adapter, gloss, seed=1)
    adapted = greedy(12, adapters=(AdapterUse("mine", 1.0),))
    with running(gloss, adapters={"mine": adapter}) as driver:
        plain, changed = driver.ask(STORY, greedy(12)).text, driver.ask(STORY, adapted).text
        ids = [driver.submit(STORY, request) for request in (greedy(12), adapted, greedy(12), adapted)]
        driver.finish()
        assert [driver.answers[request_id].text for request_id in ids] == [plain, changed, plain, changed]
    assert changed != plain


def test_a_paused_request_computes_nothing_and_goes_on_as_if_nothing_had_been(gloss: Path) -> None:
    with running(gloss, slots=1) as driver:
        expected = driver.ask(STORY, greedy(20)).text
        paused = driver.submit(STORY, greedy(20))
        for _ in range(5):
            driver.step()
        driver.engine.pause(paused)
        before = driver.answers[paused].texts.copy()
        assert driver.ask(STORY + "else", greedy(5)).ends
        assert driver.answers[paused].texts == before
        assert driver.engine.is_idle
        driver.engine.resume(paused)
        driver.finish()
        assert driver.answers[paused].text == expected


def test_2000_random_requests_with_random_cancellations_leave_all_cells_free(tiny: dict[str, Path]) -> None:
    chance = Random(7)
    with running(tiny["llama"], slots=8, cells=512, batch_tokens=64) as driver:
        words = driver.tokens(STORY)
        alive: list[int] = []
        submitted = 0
        while submitted < 2000 or not driver.engine.is_idle:
            while submitted < 2000 and len(alive) < 24:
                prompt = words[: chance.randrange(1, len(words))] + [chance.choice(words) for _ in range(3)]
                sampling = SamplingParams(temperature=chance.choice([0.0, 1.0]), seed=chance.randrange(99))
                request = GenerationRequest(
                    prompt="",
                    max_tokens=chance.randrange(1, 6),
                    sampling=sampling,
                    choices=chance.choice([1, 1, 1, 2]),
                    client=chance.choice("ab"),
                )
                alive.append(driver.submit(prompt, request))
                submitted += 1
            driver.step()
            for request_id in [request_id for request_id in alive if chance.random() < 0.05]:
                driver.engine.cancel(request_id)
                alive.remove(request_id)
            alive = [request_id for request_id in alive if request_id in driver.engine._requests]
        assert driver.engine.free_cells == 512
        assert all(answer.failed is None for answer in driver.answers.values())


def test_drafts_of_a_smaller_level_change_no_text_and_are_mostly_right(gloss: Path, tmp_path: Path) -> None:
    smaller = tmp_path / "smaller.gguf"
    quantize_model(gloss, smaller, Recipe("Q4_K_M"))
    with running(gloss, cells=512) as driver:
        draft = DraftModel(
            smaller,
            cells=512,
            slots=4,
            batch_tokens=64,
            threads=2,
            gpu_layers=0,
            extra_buffers=True,
            flash_attention=True,
        )
        draft.check(driver.model)
        prompts = [driver.tokens(STORY + str(number)) for number in range(3)]
        expected = [driver.ask(prompt, greedy(30)).text for prompt in prompts]
        ids = []
        for number, prompt in enumerate(prompts, 100):
            driver.answers[number] = Answer()
            driver.engine.submit(number, prompt, greedy(30), None, draft)
            for choice in driver.engine._requests[number]:
                choice.model_length.choose = lambda limit, *_, **__: min(limit, 4)  # type: ignore[method-assign]
            ids.append(number)
        driver.finish()
        answers = [driver.answers[number] for number in ids]
        draft.close()
    assert [answer.text for answer in answers] == expected
    usages = [answer.ends[0].usage for answer in answers]
    assert sum(usage.accepted_tokens for usage in usages) > 0.5 * sum(usage.draft_tokens for usage in usages) > 0
