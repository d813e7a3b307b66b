"""The radix tree against a model of llama.cpp's cells that carries out every action to the letter."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.prefix_cache import Match, PrefixCache, Share
from tests.unit.engine.cells import Cells

NOTHING = Match(length=0, source=-1, known=0)


runs = st.lists(st.integers(0, 2), min_size=1, max_size=12)


class CacheMachine(RuleBasedStateMachine):
    """Takes, extends, keeps, releases and evicts at random."""

    @initialize(can_cut=st.booleans(), branches=st.integers(2, 6), cells=st.integers(20, 60))
    def start(self, can_cut: bool, branches: int, cells: int) -> None:
        self.cache = PrefixCache(cells=cells, branches=branches, can_cut=can_cut)
        self.branches = branches
        self.can_cut = can_cut
        self.llama = Cells()
        self.held: dict[int, list[int]] = {}

    def settle(self) -> None:
        self.llama.apply(self.cache.take_actions())

    def computed(self, branch: int, tokens: list[int]) -> None:
        if self.cache.make_room(len(tokens)):
            self.settle()
            self.llama.compute(branch, self.cache.length(branch), tokens)
            self.cache.extend(branch, tokens)
            self.held[branch] += tokens

    @precondition(lambda self: len(self.held) < self.branches)
    @rule(tokens=runs, salt=st.sampled_from(["a", "b"]))
    def take(self, tokens: list[int], salt: str) -> None:
        match = self.cache.match(salt, tokens)
        assert match.length <= match.known <= len(tokens)
        branch = self.cache.take(salt, match)
        length = self.cache.length(branch)
        assert length in (0, match.length)
        self.settle()
        self.held[branch] = tokens[:length]
        assert self.llama.tokens(branch) == tokens[:length]
        self.computed(branch, tokens[length:])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 2), max_size=4))
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        self.computed(data.draw(st.sampled_from(sorted(self.held))), tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[branch]
        self.cache.keep(branch, lasting=data.draw(st.booleans()))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[branch]
        self.cache.release(branch)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        self.cache.checkpoint(data.draw(st.sampled_from(sorted(self.held))))

    @rule(limit=st.integers(0, 60))
    def trim(self, limit: int) -> None:
        self.cache.trim(limit)

    @rule(tokens=st.integers(0, 60))
    def make_room(self, tokens: int) -> None:
        possible = tokens <= self.cache.cells - self.cache.held_cells
        assert self.cache.make_room(tokens) == possible

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.settle()
        assert len(self.llama.cells) == self.cache.used_cells <= self.cache.cells
        ours = [cell for cell in self.llama.cells if cell[2] & set(self.held)]
        assert len(ours) == self.cache.held_cells
        for branch, tokens in self.held.items():
            assert self.llama.tokens(branch) == tokens == self.cache.tokens(branch)
        for owners in (owners for _, _, owners in self.llama.cells):
            for branch in owners:
                assert self.llama.tokens(branch) == self.cache.tokens(branch)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def filled(*texts: list[int], can_cut: bool = True) -> PrefixCache:
    cache = PrefixCache(cells=100, branches=8, can_cut=can_cut)
    for tokens in texts:
        match = cache.match("", tokens)
        branch = cache.take("", match)
        cache.extend(branch, tokens[cache.length(branch) :])
        cache.keep(branch)
    cache.take_actions()
    return cache


def test_a_prompt_shares_the_longest_beginning_that_is_cached() -> None:
    cache = filled([1, 2, 3, 4], [1, 2, 9])
    match = cache.match("", [1, 2, 3, 7])
    assert match.length == 3
    branch = cache.take("", match)
    assert cache.take_actions() == [Share(match.source, branch, 0, 3)]
    assert cache.used_cells == 5  # 1 2 3 4 and the other 9: nothing was copied


def test_another_salt_sees_nothing() -> None:
    cache = filled([1, 2, 3])
    assert cache.match("other", [1, 2, 3]) == NOTHING


def test_without_cuts_only_a_whole_branch_is_shared_and_the_rest_is_known() -> None:
    cache = filled([1, 2, 3, 4], can_cut=False)
    assert cache.match("", [1, 2, 3, 9]) == Match(length=0, source=-1, known=3)
    assert cache.match("", [1, 2, 3, 4, 5]).length == 4


def test_a_checkpoint_makes_a_beginning_usable_without_cuts() -> None:
    cache = PrefixCache(cells=100, branches=8, can_cut=False)
    branch = cache.take("", NOTHING)
    cache.extend(branch, [1, 2])
    assert cache.checkpoint(branch)
    cache.extend(branch, [3, 4])
    cache.keep(branch)
    assert cache.match("", [1, 2, 9]).length == 2


def test_the_least_recently_used_branch_is_evicted_first_and_from_its_end() -> None:
    cache = filled([1, 1, 1, 1], [2, 2, 2, 2])
    cache.match("", [1])  # looking is not using
    branch = cache.take("", cache.match("", [1, 1, 1, 1]))
    cache.keep(branch)
    assert cache.make_room(94)
    assert cache.match("", [1, 1, 1, 1]).length == 4
    assert cache.match("", [2, 2, 2, 2]).length == 2


def test_what_running_requests_hold_is_never_evicted() -> None:
    cache = filled([1, 2, 3])
    branch = cache.take("", cache.match("", [1, 2]))
    assert not cache.make_room(99)
    assert cache.length(branch) == 2
    assert cache.used_cells == 2


def test_two_that_computed_the_same_text_leave_it_once() -> None:
    cache = PrefixCache(cells=100, branches=8)
    first, second = cache.take("", NOTHING), cache.take("", NOTHING)
    for token in (1, 2, 3):
        cache.extend(first, [token])
        cache.extend(second, [token])
    cache.extend(second, [4])
    assert cache.used_cells == 7
    cache.keep(first)
    cache.keep(second)
    assert cache.used_cells == 4
    assert cache.match("", [1, 2, 3, 4]).length == 4


def test_nothing_is_kept_where_keeping_is_off() -> None:
    cache = PrefixCache(cells=100, branches=4, keeps=False)
    branch = cache.take("", NOTHING)
    cache.extend(branch, [1, 2, 3])
    cache.keep(branch)
    assert cache.used_cells == 0


def test_trimming_takes_what_nobody_came_back_for_and_leaves_what_may_last() -> None:
    cache = filled([1, 1, 1, 1], [2, 2, 2, 2])
    conversation = cache.take("", NOTHING)
    cache.extend(conversation, [3, 3, 3, 3])
    cache.keep(conversation, lasting=True)
    cache.keep(cache.take("", cache.match("", [1, 1])))
    cache.trim(0)
    assert [cache.match("", [token] * 4).length for token in (1, 2, 3)] == [2, 0, 4]
