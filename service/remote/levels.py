"""Which files of a repository make which level. Pure.

model-Q4_K_M.gguf, UD-Q4_K_XL/model-UD-Q4_K_XL-00001-of-00002.gguf    levels, by what their names say
model-00001-of-00003.safetensors with config.json                     a checkpoint: a level that is made here
mmproj-*.gguf, *imatrix*, *-vocab.gguf                                 no models
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from service.domain.errors import ModelNotFound
from service.domain.quants import ALIASES, PREFERENCE, QUANTIZATIONS, find_label, preference
from service.domain.reach import shown
from service.domain.remote import CHECKPOINT, RemoteFile, RemoteLevel, fits

_PIECE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_KNOWN = sorted({*QUANTIZATIONS, *ALIASES, "FP16", "FP32"}, key=lambda label: (-len(label), label))
# Levels that others make of llama.cpp's: their names are kept, and the file says what it really is.
_LEVEL = re.compile(
    r"(?<![A-Za-z0-9])(?P<level>(?:UD-)?(?:"
    + "|".join(map(re.escape, _KNOWN))
    + r"|I?Q\d(?:_[A-Z0-9]{1,4}){1,3}))(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"mmproj|imatrix|(?:^|[-._])vocab(?:[-._]|$)|(?:^|[-._])lora(?:[-._]|$)", re.IGNORECASE)
_FLOATS = {"FP16": "F16", "FP32": "F32"}
_BESIDE = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
        "chat_template.jinja", "chat_template.json", "model.safetensors.index.json", "quantize_config.json",
        "quant_config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
        "sentencepiece.bpe.model", "tekken.json", "README.md",
    }
)  # fmt: skip
_WEIGHTS = re.compile(
    r"(?P<stem>model|pytorch_model|gptq_model[A-Za-z0-9-]*)(-(?P<n>\d{5})-of-(?P<count>\d{5}))?\.safetensors"
)
_LARGEST_BESIDE_BYTES = 128 * 1024 * 1024


def levels_of(files: Iterable[RemoteFile], checkpoint_level: str = "F16") -> tuple[RemoteLevel, ...]:
    """Every level that can be had, the smallest first. `checkpoint_level`: what a checkpoint becomes."""
    listed = sorted(files, key=lambda file: (file.name.count("/"), file.name))
    found = _gguf_levels(listed)
    checkpoint = _checkpoint(listed, checkpoint_level, {level.choice for level in found})
    if checkpoint is not None:
        found.append(checkpoint)
    return tuple(sorted(found, key=lambda level: (level.converts, level.size_bytes, level.choice)))


def recommended(levels: Sequence[RemoteLevel], memory_bytes: int = 0) -> RemoteLevel | None:
    """The level that a bare address means: the best that fits `memory_bytes` (0: any), else the smallest.

    GGUF files come before a checkpoint.
    """
    ready = [level for level in levels if not level.converts] or list(levels)
    if not ready:
        return None
    fitting = [level for level in ready if fits(level, memory_bytes)]
    if not fitting:
        return min(ready, key=lambda level: level.size_bytes)
    return min(fitting, key=lambda level: (_rank(level), -level.size_bytes))


def chosen(
    levels: Sequence[RemoteLevel], files: Sequence[RemoteFile], choice: str | None, memory_bytes: int = 0
) -> RemoteLevel:
    """What `choice` means: a level, a file's name, `safetensors`; None: the recommended one.

    Raises ModelNotFound with what there is.
    """
    if not levels:
        if any(file.name.lower().endswith((".bin", ".pt", ".pth")) for file in files):
            raise ModelNotFound(
                "It has neither GGUF nor safetensors files, only pickled ones, which are never read: they can run any "
                "code. Find a repository with safetensors.",
                param="from",
            )
        raise ModelNotFound("It has neither GGUF nor safetensors files of a model.", param="from")
    if choice is None:
        found = recommended(levels, memory_bytes)
        assert found is not None
        return found
    folded = choice.lower()
    for level in levels:
        if folded == level.choice.lower() or (folded == CHECKPOINT and level.converts):
            return level
    for in_whole in (True, False):
        for level in levels:
            names = [file.name if in_whole else file.name.rpartition("/")[2] for file in level.files]
            if any(name.lower() == folded for name in names):
                return level
    for level in levels:
        if level.level.lower() in (folded, f"ud-{folded}"):
            return level
    there = ", ".join(shown(level.choice) for level in levels[:40])
    raise ModelNotFound(f"It has no {shown(choice)}; there are {there}.", param="from")


def level_in(name: str) -> str | None:
    """The level that a file's path names, in canonical spelling; None when it names none."""
    for part in reversed(name.split("/")):
        matches = _LEVEL.findall(part)
        if matches:
            written = matches[-1].upper()
            return find_label(_FLOATS.get(written, written)) or written
    return None


def _gguf_levels(files: Sequence[RemoteFile]) -> list[RemoteLevel]:
    groups: dict[tuple[str, str, int], dict[int, RemoteFile]] = defaultdict(dict)
    for file in files:
        folder, _, base = file.name.rpartition("/")
        if not base.lower().endswith(".gguf") or _NO_MODEL.search(base):
            continue
        stem = base[: -len(".gguf")]
        piece = _PIECE.fullmatch(stem)
        if piece is None:
            groups[folder, stem, 1][1] = file
        else:
            groups[folder, piece["stem"], int(piece["count"])].setdefault(int(piece["number"]), file)
    found: list[RemoteLevel] = []
    taken: set[str] = set()
    for (folder, stem, count), pieces in groups.items():
        if sorted(pieces) != list(range(1, count + 1)):
            continue
        level = level_in(f"{folder}/{stem}") or "UNKNOWN"
        choice = level
        if level == "UNKNOWN" or level in taken:
            name = pieces[1].name
            base = name.rpartition("/")[2]
            choice = name if base in taken else base
        taken |= {level, choice}
        found.append(RemoteLevel(level, choice, tuple(pieces[number] for number in sorted(pieces))))
    return found


def _checkpoint(files: Sequence[RemoteFile], level: str, taken: set[str]) -> RemoteLevel | None:
    by_name = {file.name: file for file in files}
    if "config.json" not in by_name:
        return None
    sets: dict[tuple[str, int], dict[int, RemoteFile]] = defaultdict(dict)
    for name, file in by_name.items():
        match = _WEIGHTS.fullmatch(name)
        if match is not None:
            sets[match["stem"], int(match["count"] or 1)][int(match["n"] or 1)] = file
    whole = [pieces for (_, count), pieces in sets.items() if sorted(pieces) == list(range(1, count + 1))]
    if not whole:
        return None
    weights = max(whole, key=lambda pieces: sum(file.size_bytes or 0 for file in pieces.values()))
    beside = [
        file for name, file in by_name.items() if name in _BESIDE and (file.size_bytes or 0) <= _LARGEST_BESIDE_BYTES
    ]
    return RemoteLevel(
        level,
        CHECKPOINT if level in taken else level,
        (*(weights[number] for number in sorted(weights)), *beside),
        converts=True,
    )


def _rank(level: RemoteLevel) -> int:
    """As for stored levels; those with names of their own come after what they are like."""
    label = find_label(level.level)
    if label is not None:
        return 2 * preference(label)
    alike = level.level.removeprefix("UD-").replace("_XL", "_M")
    return 2 * preference(find_label(alike) or "") + 1 if find_label(alike) else 2 * len(PREFERENCE) + 2
