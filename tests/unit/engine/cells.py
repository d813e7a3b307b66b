"""A model of llama.cpp's unified cache that carries out every action to the letter."""

from __future__ import annotations

from service.engine.prefix_cache import CacheAction, Cut


class Cells:
    """Cells of (position, token), each with the set of sequence ids that read it."""

    def __init__(self) -> None:
        self.cells: list[tuple[int, int, set[int]]] = []

    def apply(self, actions: list[CacheAction]) -> None:
        for action in actions:
            if isinstance(action, Cut):
                self.cut(action.branch, action.start, action.end)
            else:
                for position, _, owners in self.cells:
                    if action.source in owners and action.start <= position < action.end:
                        owners.add(action.target)

    def cut(self, branch: int, start: int, end: int | None = None) -> None:
        for position, _, owners in self.cells:
            if position >= start and (end is None or position < end):
                owners.discard(branch)
        self.cells = [cell for cell in self.cells if cell[2]]

    def compute(self, branch: int, start: int, tokens: list[int]) -> None:
        self.cells += [(start + offset, token, {branch}) for offset, token in enumerate(tokens)]

    def tokens(self, branch: int) -> list[int]:
        held = sorted((position, token) for position, token, owners in self.cells if branch in owners)
        assert [position for position, _ in held] == list(range(len(held))), "a hole, or two tokens at one position"
        return [token for _, token in held]
