"""Grammars to token masks, by llguidance: compiled on a side thread of the worker, followed on the engine's.

`GrammarCompiler.compile` bounds what a grammar may cost and tries its first token; a `Constraint` then says, token by
token, what may come next. Both ends of the work are bounded, since nothing can stop llguidance from outside: the
text of a grammar by grammar_limits.py, each step by llguidance's own limits and by the time it took.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from service.domain.errors import InvalidGrammar
from service.domain.generation import Grammar, GrammarKind
from service.engine.gbnf import parse_gbnf
from service.engine.grammar_limits import check_lark, check_regex, check_schema, check_size, refuse
from service.engine.lexemes import to_lark
from service.engine.tool_grammar import ToolGrammar
from service.llama.model import Model
from service.llama.vocabulary import token_bytes, tokenizer_address

# Found by trying: hostile grammars stay under 50 ms a step with these, at a vocabulary of 49,152 tokens, and an object
# may have 120 optional properties. Ambiguous grammars cost the cube of the items in a row, whence the low number.
_LIMITS = LLParserLimits(
    max_items_in_row=500,
    step_max_items=20_000,
    step_lexer_fuel=200_000,
    initial_lexer_fuel=300_000,
    max_lexer_states=20_000,  # 1 to 2 KB each
    max_grammar_size=200_000,
    verbose_errors=False,
)
# What gets past the limits costs the batch one such step, then its request fails. The thread's own time: what a busy
# neighbour takes from the machine is no fault of a grammar.
_MAX_STEP_CPU_SECONDS = 0.05

# JSON as models write it and as it is cheap: on one line, a space after `,` and `:` or none. Endless white space, which
# small models fall into, is no valid beginning of anything.
JSON_OPTIONS = {
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
    "coerce_one_of": False,  # a text that matches two of `oneOf` would be wrong
    "lenient": False,
}

_MAX_CACHED = 64
_MAX_CACHED_BYTES = 256 << 10
_LONGEST_REASON = 300
_FIRST_STEPS = 3
_TOO_MANY_CHOICES = "too many choices at one place (alternatives, or over about 120 optional properties of one object)"
# llguidance's words that say nothing to who wrote the grammar.
_TOLD_BETTER = {
    "NoExtensionBias": "it matches no text",
    "Current row has": _TOO_MANY_CHOICES,
    "Too many items": _TOO_MANY_CHOICES,
    "too many states": "its regular expressions are too large",
    "too many expressions": "its regular expressions are too large",
    "lexer precomputation failed": "its regular expressions are too large",
    "initial lexer configuration": "its regular expressions are too large",
    "oneOf constraints": "the alternatives of a `oneOf` cannot be told apart; use `anyOf`",
}
_MINUS_INFINITY = np.float32(-np.inf)


class GrammarCompiler:
    """Compiles grammars for one model, on any thread, and keeps the latest. Use it as long as the model is open."""

    def __init__(self, model: Model) -> None:
        """Does nothing yet: llguidance's copy of the vocabulary is made at first use (0.3 s for 49,152 tokens)."""
        self._model = model
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar | ToolGrammar, LLMatcher] = OrderedDict()
        self._compiled_bytes = 0
        self._mask = _Mask(model.vocabulary_size)

    def compile(self, grammar: Grammar | ToolGrammar) -> Constraint:
        """A constraint at its beginning. Raises InvalidGrammar, which says what to change.

        Takes milliseconds, up to about a second for the worst that the limits let through. llguidance works without
        the interpreter's lock, and no lock of ours is held meanwhile: others compile at the same time.
        """
        with self._lock:
            known = self._compiled.get(grammar)
            if known is not None:
                self._compiled.move_to_end(grammar)
                return Constraint(known.deep_copy(), self._mask)
        matcher = self._build(grammar)
        with self._lock:
            if grammar not in self._compiled:
                self._compiled[grammar] = matcher
                self._compiled_bytes += len(grammar.source)
            while self._compiled and (len(self._compiled) > _MAX_CACHED or self._compiled_bytes > _MAX_CACHED_BYTES):
                oldest, _ = self._compiled.popitem(last=False)
                self._compiled_bytes -= len(oldest.source)
            return Constraint(matcher.deep_copy(), self._mask)

    def _build(self, grammar: Grammar | ToolGrammar) -> LLMatcher:
        if isinstance(grammar, ToolGrammar):
            try:
                return self._matcher(GrammarKind.JSON_SCHEMA, LLMatcher.grammar_from_lark(grammar.source))
            except InvalidGrammar as error:
                error.param = "tools"
                raise
        check_size(grammar.kind, grammar.source)
        return self._matcher(grammar.kind, _SOURCES[grammar.kind](grammar.source))

    def _matcher(self, kind: GrammarKind, source: str) -> LLMatcher:
        try:
            matcher = LLMatcher(self._known_tokenizer(), source, log_level=0, limits=_LIMITS)
            reason = _reason(matcher) if matcher.is_error() else _first_steps(matcher)
        except BaseException as error:
            # A panic of the library's is no Exception; this thread and the worker live on.
            if type(error).__name__ != "PanicException":
                raise
            refuse(kind, "The grammar library failed over this grammar; write it in another way.")
        if reason:
            name = "schema" if kind is GrammarKind.JSON_SCHEMA else "grammar"
            refuse(kind, f"The {name} cannot be used: {reason}. Change that part or leave it out.")
        return matcher

    def _known_tokenizer(self) -> LLTokenizer:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                model = self._model
                ends = [token for token in range(model.vocabulary_size) if model.is_end(token)]
                # The stub file lacks this one; llguidance.llamacpp calls it as well.
                self._tokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
                    tokens=token_bytes(model),
                    vocab_ptr=model.vocab,
                    tokenize_fptr=tokenizer_address(),
                    eos_token=ends or [model.eos_token],
                    slices=None,
                )
            return self._tokenizer


class _Mask:
    """Room for one mask of the vocabulary, and how it is laid over logits; the engine thread's."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._bits = np.zeros(4 * ((vocabulary + 31) // 32), dtype=np.uint8)
        self._address = self._bits.ctypes.data

    def lay(self, matcher: LLMatcher, logits: NDArray[np.float32]) -> None:
        """Compute the mask of a matcher and write -inf over what it forbids."""
        bits = self._bits
        matcher.unsafe_compute_mask_ptr(self._address, bits.nbytes)
        np.invert(bits, out=bits)
        forbidden = np.unpackbits(bits, count=self._vocabulary, bitorder="little")
        np.copyto(logits, _MINUS_INFINITY, where=forbidden.view(np.bool_))


class Constraint:
    """Where one text stands in its grammar. The engine thread's; each text has its own.

    `error` says why the grammar cannot be followed any further; the text then cannot be ended well.
    """

    def __init__(self, matcher: LLMatcher, mask: _Mask) -> None:
        self._matcher = matcher
        self._mask = mask
        self.error: str | None = None

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Write -inf in place over tokens that may not come next; `logits` has shape (vocabulary,).

        The model's end tokens are left where the text may end. After an error, which `error` tells, `logits` is as it
        was or masked; whatever is drawn from it, `accept` refuses.
        """
        if self.error is None:
            started = time.thread_time()
            self._mask.lay(self._matcher, logits)
            self._check(started)

    def accept(self, token: int) -> bool:
        """Take the token that was drawn, an end token too. False when it was not allowed or the grammar failed."""
        if self.error is None:
            started = time.thread_time()
            if not self._matcher.consume_token(token):
                self.error = _failure(_reason(self._matcher))
            self._check(started)
        return self.error is None

    def forced(self) -> list[int]:
        """Tokens that must follow now whatever the model thinks, in its own spelling; mostly none."""
        if self.error is not None:
            return []
        started = time.thread_time()
        tokens = self._matcher.compute_ff_tokens()
        self._check(started)
        return [] if self._matcher.is_error() else tokens

    @property
    def is_finished(self) -> bool:
        """True when nothing may follow any more but an end token."""
        return self.error is None and self._matcher.is_stopped()

    def copy(self) -> Constraint:
        """Another text that goes on from here by itself."""
        copy = Constraint(self._matcher.deep_copy(), self._mask)
        copy.error = self.error
        return copy

    def _check(self, started: float) -> None:
        if self.error is None:
            if self._matcher.is_error():
                self.error = _failure(_reason(self._matcher))
            elif time.thread_time() - started > _MAX_STEP_CPU_SECONDS:
                self.error = _failure("one token of it took too long")


def _schema_source(source: str) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(check_schema(source)), overrides=JSON_OPTIONS)  # type: ignore[arg-type]


def _regex_source(source: str) -> str:
    check_regex(source)
    return LLMatcher.grammar_from_regex(source)


def _gbnf_source(source: str) -> str:
    return LLMatcher.grammar_from_lark(to_lark(parse_gbnf(source)))


def _lark_source(source: str) -> str:
    return LLMatcher.grammar_from_lark(check_lark(source))


# What llguidance reads, from what was checked.
_SOURCES: dict[GrammarKind, Callable[[str], str]] = {
    GrammarKind.JSON_SCHEMA: _schema_source,
    GrammarKind.REGEX: _regex_source,
    GrammarKind.GBNF: _gbnf_source,
    GrammarKind.LARK: _lark_source,
}


def _first_steps(matcher: LLMatcher) -> str:
    """Why a grammar fails over its first tokens, if it does: much of what is wrong shows only there."""
    probe = matcher.deep_copy()
    # The original's first mask: each copy then has the automaton that belongs to it.
    mask = matcher.compute_bitmask()
    for _ in range(_FIRST_STEPS):
        allowed = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little").nonzero()[0]
        # The first bytes of a vocabulary are single ones, which cut no corner.
        if probe.is_stopped() or not allowed.size or not probe.consume_token(int(allowed[0])) or probe.is_stopped():
            break
        mask = probe.compute_bitmask()
    return next((_reason(each) for each in (matcher, probe) if each.is_error()), "")


def _reason(matcher: LLMatcher) -> str:
    """llguidance's reason on one line, or better words for it."""
    for words, better in _TOLD_BETTER.items():
        if words in matcher.get_error():
            return better
    told = " ".join(matcher.get_error().replace("<non-verbose/>", "").split()).rstrip(".")
    return told[:_LONGEST_REASON] or "no reason is known"


def _failure(reason: str) -> str:
    return f"The grammar could not be followed further: {reason}. Make it simpler."
