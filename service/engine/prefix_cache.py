"""Which cells of the context hold which tokens: a radix tree over the sequences that llama.cpp knows. Pure.

A *branch* is one of llama.cpp's sequence ids. Branches that begin with the same tokens share the cells of that
beginning; the tree has one node for every run of tokens that the same branches share. A branch is held while a request
writes to it, and stays as a cached one afterwards, until its cells are needed: the least recently used goes first,
from its end. What llama.cpp has to do about it comes out as a list of `CacheAction`, in order.

    free ──take──> held ──keep──> cached ──evict──> free
                    │ └──────────release─────────────^
                    └ cut (tokens that were drafted and refused)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """Forget the tokens of a branch from `start` up to `end` (None: all that follow)."""

    branch: int
    start: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Let `target` read the cells that `source` has for positions `start` up to `end`."""

    source: int
    target: int
    start: int
    end: int


CacheAction = Cut | Share


@dataclass(frozen=True, slots=True)
class Match:
    """The longest usable beginning: `length` tokens of branch `source`. `known` tokens are in the tree.

    They differ for memories that cannot be cut: there a beginning is usable only at the very end of some branch.
    """

    length: int
    source: int
    known: int


class _Node:
    """A run of tokens and the branches that hold it.

    A node that is not listed among its parent's children repeats tokens that a sibling holds in other cells. Where
    memory cannot be cut, such nodes are listed all the same: each ends where another state is.
    """

    __slots__ = ("branches", "children", "listed", "parent", "reused", "start", "tokens")

    def __init__(self, parent: _Node | None, start: int, tokens: list[int], branches: set[int]) -> None:
        self.parent = parent
        self.start = start  # position of the first token
        self.tokens = tokens
        self.branches = branches
        self.children: dict[int, list[_Node]] = {}  # listed ones, by first token
        self.listed = False
        self.reused = False  # a later request has begun with it

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class _Branch:
    """Where one sequence of llama.cpp ends in the tree."""

    __slots__ = ("held", "id", "last_used", "lasting", "node")

    def __init__(self, branch_id: int, node: _Node, last_used: int) -> None:
        self.id = branch_id
        self.node = node
        self.held = True
        self.lasting = False
        self.last_used = last_used

    @property
    def length(self) -> int:
        return self.node.end


class PrefixCache:
    """The tree, the branches, and the count of cells."""

    def __init__(self, *, cells: int, branches: int, can_cut: bool = True, keeps: bool = True) -> None:
        """`cells` tokens fit; `branches` sequence ids exist. `can_cut` is False for memories with recurrent state.

        Without `keeps` nothing outlives its request.
        """
        self.cells = cells
        self.can_cut = can_cut
        self.keeps = keeps
        self.actions: list[CacheAction] = []
        self._roots: dict[Hashable, _Node] = {}
        self._branches: dict[int, _Branch] = {}
        self._free_ids = list(range(branches - 1, -1, -1))
        self._used = 0
        self._held = 0
        self._clock = 0

    # --- what there is -----------------------------------------------------------------------------------------

    @property
    def used_cells(self) -> int:
        """Cells that hold keys and values."""
        return self._used

    @property
    def held_cells(self) -> int:
        """Cells of requests that run; the rest of the used ones can be had by eviction."""
        return self._held

    @property
    def cached_cells(self) -> int:
        """Cells that only the cache keeps."""
        return self._used - self._held

    @property
    def free_cells(self) -> int:
        """Cells with nothing in them."""
        return self.cells - self._used

    def length(self, branch: int) -> int:
        """Tokens of a branch."""
        return self._branches[branch].length

    def tokens(self, branch: int) -> list[int]:
        """The tokens of a branch, from its beginning."""
        return [token for node in self._path(self._branches[branch].node) for token in node.tokens]

    def take_actions(self) -> list[CacheAction]:
        """What llama.cpp has to do before the next decode, oldest first; the list starts anew."""
        actions, self.actions = self.actions, []
        return actions

    # --- looking up --------------------------------------------------------------------------------------------

    def match(self, salt: Hashable, tokens: Sequence[int]) -> Match:
        """The longest beginning of `tokens` that a new branch could share, and how much of it the tree knows.

        Only branches that were taken with the same `salt` are looked at.
        """
        length, source, known = 0, -1, 0
        open_nodes = [self._roots[salt]] if salt in self._roots else []
        while open_nodes:
            node = open_nodes.pop()
            for child in node.children.get(tokens[node.end], ()) if node.end < len(tokens) else ():
                end = child.start + _common(child.tokens, tokens, child.start)
                known = max(known, end)
                if self.can_cut:
                    length, source = end, next(iter(child.branches))
                elif end == child.end > length and (ending := self._branch_ending_at(child)) is not None:
                    length, source = end, ending
                if end == child.end:
                    open_nodes.append(child)
        return Match(length=length, source=source, known=known)

    def newly_held(self, match: Match) -> int:
        """Cells of a match that no running request holds yet: sharing them makes that many fewer evictable."""
        if match.length == 0:
            return 0
        count = 0
        for node in self._path(self._branches[match.source].node):
            if node.start >= match.length:
                break
            if not self._is_held(node):
                count += min(node.end, match.length) - node.start
        return count

    # --- a branch's life ---------------------------------------------------------------------------------------

    def take(self, salt: Hashable, match: Match) -> int:
        """A new branch that begins with a match; its `length` says with how much of it.

        Evicts a cached branch if no id is free; where that could only be the match's own source, nothing is shared.
        """
        source = self._branches.get(match.source) if match.length else None
        if not self._free_ids and source is not None and self._cached() == [source]:
            source = None
        if source is not None:
            source.last_used = self._tick()
        branch_id = self._free_id(spare=-1 if source is None else source.id)
        if source is None:
            node = self._roots.get(salt)
            if node is None:
                node = self._roots[salt] = _Node(None, 0, [], set())
                node.listed = True
        else:
            node = self._split_at(source.node, match.length)
            self.actions.append(Share(source.id, branch_id, 0, match.length))
        branch = _Branch(branch_id, node, self._tick())
        for step in self._path(node):
            if not self._is_held(step):
                self._held += len(step.tokens)
            step.branches.add(branch_id)
            step.reused = True
        self._branches[branch_id] = branch
        return branch_id

    def extend(self, branch_id: int, tokens: Sequence[int]) -> None:
        """The cells of these tokens have been computed, behind what the branch has."""
        if not tokens:
            return
        branch = self._branches[branch_id]
        node = branch.node
        if node.parent is not None and node.branches == {branch_id} and not node.children:
            node.tokens.extend(tokens)
        else:
            branch.node = _Node(node, node.end, list(tokens), {branch_id})
            self._list_in_parent(branch.node)
        self._used += len(tokens)
        self._held += len(tokens)

    def keep(self, branch_id: int, *, lasting: bool = False) -> None:
        """Its request is over: the branch stays as a cached one, unless it adds nothing to what is cached.

        A `lasting` one is expected to be gone on with, and is not trimmed.
        """
        branch = self._branches[branch_id]
        branch.lasting = lasting
        worth = self.keeps and branch.length > 0 and (branch.node.listed or self._merge(branch))
        if not worth:
            self.release(branch_id)
            return
        self._unhold(branch)
        branch.last_used = self._tick()
        if len(branch.node.branches) > 1 and (self.can_cut or self._has_twin(branch)):
            self._remove(branch)  # others keep every cell of it

    def release(self, branch_id: int) -> None:
        """Drop a branch; cells that no other branch shares become free."""
        branch = self._branches[branch_id]
        if branch.held:
            self._unhold(branch)
        self._remove(branch)

    def checkpoint(self, branch_id: int) -> bool:
        """Cache a copy of a held branch as it is now, for memories that cannot be cut; False when no id is to spare."""
        if not self.keeps or self._branch_ending_at(self._branches[branch_id].node, cached=True) is not None:
            return False
        if not self._free_ids and not self._cached():
            return False
        node = self._branches[branch_id].node
        copy = self._free_id(spare=branch_id)
        self.actions.append(Share(branch_id, copy, 0, node.end))
        branch = _Branch(copy, node, self._tick())
        branch.held = False
        for step in self._path(node):
            step.branches.add(copy)
        self._branches[copy] = branch
        return True

    def make_room(self, tokens: int) -> bool:
        """Evict until so many cells are free; False when even an empty cache is not enough."""
        while self.free_cells < tokens:
            cached = self._cached()
            if not cached:
                return False
            branch = min(cached, key=lambda candidate: candidate.last_used)
            self._shorten(branch, tokens - self.free_cells)
        return True

    def trim(self, limit: int) -> None:
        """Shorten cached branches until only `limit` cells are cached, as far as nothing was reused and may last.

        Attention looks at every cell in use, also to find that it belongs to others: what nobody comes back for
        makes everybody slower.
        """
        while self.cached_cells > limit:
            idle = [branch for branch in self._cached() if not branch.lasting and not branch.node.reused]
            if not idle:
                return
            branch = min(idle, key=lambda candidate: candidate.last_used)
            self._shorten(branch, len(branch.node.tokens))

    # --- inside ------------------------------------------------------------------------------------------------

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _cached(self) -> list[_Branch]:
        return [branch for branch in self._branches.values() if not branch.held]

    def _is_held(self, node: _Node) -> bool:
        return any(self._branches[branch].held for branch in node.branches)

    def _branch_ending_at(self, node: _Node, *, cached: bool = False) -> int | None:
        for branch_id in node.branches:
            branch = self._branches[branch_id]
            if branch.node is node and not (cached and branch.held):
                return branch_id
        return None

    def _has_twin(self, branch: _Branch) -> bool:
        return any(
            self._branches[other].node is branch.node and not self._branches[other].held
            for other in branch.node.branches
            if other != branch.id
        )

    @staticmethod
    def _path(node: _Node | None) -> list[_Node]:
        path = []
        while node is not None:
            path.append(node)
            node = node.parent
        path.reverse()
        return path

    def _free_id(self, *, spare: int) -> int:
        if not self._free_ids:
            cached = [branch for branch in self._cached() if branch.id != spare]
            assert cached, "every branch is held"
            self._remove(min(cached, key=lambda candidate: candidate.last_used))
        return self._free_ids.pop()

    def _split_at(self, node: _Node, length: int) -> _Node:
        """The node on the way to `node` that ends at position `length`, made by a split where there is none."""
        while node.start >= length:
            assert node.parent is not None
            node = node.parent
        if node.end == length:
            return node
        upper = _Node(node.parent, node.start, node.tokens[: length - node.start], set(node.branches))
        assert node.parent is not None
        upper.listed = node.listed
        upper.reused = node.reused
        if node.listed:
            siblings = node.parent.children[upper.tokens[0]]
            siblings[siblings.index(node)] = upper
        node.tokens = node.tokens[length - node.start :]
        node.start = length
        node.parent = upper
        node.listed = False
        self._list_in_parent(node)
        return upper

    def _list_in_parent(self, node: _Node) -> None:
        assert node.parent is not None
        siblings = node.parent.children.get(node.tokens[0])
        if node.parent.listed and (siblings is None or not self.can_cut):
            node.parent.children.setdefault(node.tokens[0], []).append(node)
            node.listed = True

    def _unhold(self, branch: _Branch) -> None:
        branch.held = False
        for node in self._path(branch.node):
            if not self._is_held(node):
                self._held -= len(node.tokens)

    def _remove(self, branch: _Branch) -> None:
        """Take an unheld branch out of the tree."""
        assert not branch.held
        node: _Node | None = branch.node
        while node is not None:
            parent = node.parent
            node.branches.discard(branch.id)
            if not node.branches and parent is not None:
                self._used -= len(node.tokens)
                _unlist(node)
            node = parent
        del self._branches[branch.id]
        self._free_ids.append(branch.id)
        self.actions.append(Cut(branch.id))
        for salt in [salt for salt, root in self._roots.items() if not root.branches]:
            del self._roots[salt]

    def _shorten(self, branch: _Branch, tokens: int) -> None:
        """Free at most `tokens` cells from the end of a cached branch; remove it when nothing of its own is left."""
        node = branch.node
        if not self.can_cut or node.parent is None or node.branches != {branch.id} or not node.listed:
            self._remove(branch)
            return
        count = min(tokens, len(node.tokens))
        self.actions.append(Cut(branch.id, node.end - count))
        self._used -= count
        if count < len(node.tokens):
            del node.tokens[-count:]
            return
        node.branches.clear()
        _unlist(node)
        branch.node = node.parent
        if branch.node.parent is None or branch.node.branches != {branch.id}:
            self._remove(branch)

    def _merge(self, branch: _Branch) -> bool:
        """Give up cells that repeat what listed nodes hold, so that the rest can be listed; False if that cannot be."""
        path = self._path(branch.node)
        first = next(node for node in path if not node.listed)
        base = first.parent
        assert base is not None
        if not base.listed or not self.can_cut or any(node.branches != {branch.id} for node in path if not node.listed):
            return False
        own = [token for node in path if not node.listed for token in node.tokens]
        held = branch.held
        if held:
            self._unhold(branch)
        for node in path:
            if not node.listed:
                self._used -= len(node.tokens)
                node.branches.clear()
        # Walk what is listed as far as it agrees.
        node, done = base, 0
        while done < len(own):
            children = node.children.get(own[done])
            if children is None:
                break
            child = children[0]
            common = _common(child.tokens, own, done)
            source = next(iter(child.branches))
            if common < len(child.tokens):
                child = self._split_at(child, child.start + common)
            child.branches.add(branch.id)
            self.actions.append(Cut(branch.id, child.start, child.end))
            self.actions.append(Share(source, branch.id, child.start, child.end))
            node, done = child, done + common
        if done < len(own):
            node = _Node(node, node.end, own[done:], {branch.id})
            self._list_in_parent(node)
            self._used += len(node.tokens)
        branch.node = node
        if held:
            for step in self._path(node):
                if not self._is_held(step):
                    self._held += len(step.tokens)
            branch.held = True
        return True


def _unlist(node: _Node) -> None:
    if node.listed and node.parent is not None:
        siblings = node.parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.tokens[0]]
        node.listed = False


def _common(run: Sequence[int], tokens: Sequence[int], offset: int) -> int:
    """How many tokens of `run` agree with `tokens` from `offset` on; slices are compared, which C does."""
    limit = min(len(run), len(tokens) - offset)
    if list(run[:limit]) == list(tokens[offset : offset + limit]):
        return limit
    low, high = 0, limit  # the first `low` agree; the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if list(run[low:middle]) == list(tokens[offset + low : offset + middle]):
            low = middle
        else:
            high = middle
    return low
