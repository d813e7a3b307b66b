"""Which variant a name means, and what a copy, an import or a deletion does to the names of a model.

Pure decisions over the variants of one model, in no process in particular; they know no SQL and no disk.
`choose` is the one place where a name becomes a variant, for every route and every list of aliases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.domain.catalog import Variant
from service.domain.errors import Conflict, InvalidName, LabelMismatch
from service.domain.names import DEFAULT_TAG, ModelKey, ModelRef, check_not_reserved, parse_ref, split_tag
from service.domain.quants import ALIASES, preference

_SHORT_LABELS: dict[str, list[str]] = {}
for _alias, _label in ALIASES.items():
    _SHORT_LABELS.setdefault(_label, []).append(_alias)


def choose(ref: ModelRef, variants: Sequence[Variant]) -> Variant | None:
    """The variant that `ref` means among all variants of its model; None when it means none.

    | written                | means                                                                        |
    |------------------------|------------------------------------------------------------------------------|
    | a label in the tag     | that flavour ("" when none is written) and that label                         |
    | nothing, or `latest`   | the owner's choice (a tag `latest`), else the recommended variant, no flavour first |
    | another word           | the variant whose canonical tag it is, else the tag of that name, else the recommended one of that flavour |
    """  # noqa: E501
    if ref.label is not None:
        flavour = ref.flavour.lower()
        return next((v for v in variants if v.quantization == ref.label and v.flavour.lower() == flavour), None)
    word = _word(ref)
    if not ref.wants_default:
        # Only a file without a known label has a canonical tag that is a free word.
        for variant in variants:
            if variant.tag.lower() == word:
                return variant
    tagged = tagged_variant(word, variants)
    if tagged is not None:
        return tagged
    if ref.wants_default:
        return best(variants)
    return best([v for v in variants if v.flavour.lower() == word])


def choose_source(ref: ModelRef, variants: Sequence[Variant]) -> Variant | None:
    """The variant to make levels from: as `choose`, but a bare name means the variant that has lost least.

    Among equals the one with more bits, then the one without a flavour. A flavour alone means the same within it.
    """
    if ref.label is not None or (not ref.wants_default and tagged_variant(_word(ref), variants) is not None):
        return choose(ref, variants)
    meant = variants if ref.wants_default else [v for v in variants if v.flavour.lower() == _word(ref)]
    if not meant:
        return choose(ref, variants)
    return min(meant, key=lambda v: (v.lossy, -v.facts.bits_per_weight, v.flavour != "", v.id))


def best(variants: Iterable[Variant]) -> Variant | None:
    """The recommended one of a model's variants: those without a flavour first, then by `quants.preference`."""
    return min(variants, key=_rank, default=None)


def tagged_variant(word: str, variants: Iterable[Variant]) -> Variant | None:
    """The variant that carries the free tag `word`, given in lower case."""
    return next((v for v in variants if any(tag.lower() == word for tag in v.tags)), None)


def aliases_in(variants: Sequence[Variant]) -> dict[int, list[str]]:
    """For all variants of one model: variant id -> every other name that `choose` takes to it, shortest first."""
    found: dict[int, list[str]] = {variant.id: [] for variant in variants}
    words: dict[str, str | None] = {"": None, DEFAULT_TAG: DEFAULT_TAG}
    for variant in variants:
        for label in _SHORT_LABELS.get(variant.quantization, ()):
            tag = f"{variant.flavour}-{label}" if variant.flavour else label
            found[variant.id].append(f"{variant.model.display}:{tag}")
        for word in (variant.flavour, *variant.tags):
            # A flavour can look like a label ("x-Q4_K" of x-Q4_K-Q8_0), and then means that level of flavour x.
            if word and split_tag(word)[1] is None:
                words.setdefault(word.lower(), word)
    for tag_word in words.values():
        if not variants:
            break
        key = variants[0].model
        ref = ModelRef(key=key, tag=tag_word, flavour=tag_word or "", label=None)
        chosen = choose(ref, variants)
        if chosen is not None and chosen.name != ref.display:
            found[chosen.id].append(ref.display)
    for names in found.values():
        names.sort(key=lambda name: (len(name), name))
    return found


def check_label(ref: ModelRef, quantization: str) -> None:
    """Raise LabelMismatch when `ref` names another level than the file's own."""
    if ref.label is not None and ref.label != quantization:
        raise LabelMismatch(
            f"The name says {ref.label} and the file is {quantization}; leave the level out of the name, "
            f"or write {ref.key.display}:{quantization}.",
            param="name",
        )


def check_canonical(key: ModelKey, flavour: str, quantization: str) -> None:
    """Raise InvalidName when the canonical name would be none, e.g. a flavour that leaves no room for the label."""
    check_not_reserved(flavour)
    tag = f"{flavour}-{quantization}" if flavour else quantization
    try:
        parse_ref(f"{key.display}:{tag}")
    except InvalidName as error:
        raise InvalidName(
            f"The tag leaves no room for the level {quantization} after it; use a shorter one.", param="name"
        ) from error


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy writes: a variant of `flavour` in the destination's model (None: it is there), and a tag `word`."""

    flavour: str | None
    word: str | None


def plan_copy(source: Variant, destination: ModelRef) -> CopyPlan:
    """What `copy source destination` writes. Raises LabelMismatch, and InvalidName for a reserved word.

    | destination                | same model as the source   | another model                     |
    |----------------------------|----------------------------|-----------------------------------|
    | bare                       | tag `latest`               | variant without flavour           |
    | `latest` or another word   | that tag                   | variant without flavour, that tag |
    | [flavour-]label            | variant of that flavour    | variant of that flavour           |
    """
    check_label(destination, source.quantization)
    check_not_reserved(destination.flavour)
    if destination.label is not None:
        return CopyPlan(flavour=destination.flavour, word=None)
    if destination.key.folded == source.model.folded:
        word = destination.tag or DEFAULT_TAG
        return CopyPlan(flavour=None, word=None if word.lower() == source.tag.lower() else word)
    if destination.tag is None or destination.tag.lower() == source.quantization.lower():
        return CopyPlan(flavour="", word=None)
    return CopyPlan(flavour="", word=destination.tag)


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """What a deletion removes: these variants, or the tag `word` (lower case) alone."""

    variants: tuple[Variant, ...] = ()
    word: str | None = None


def plan_delete(ref: ModelRef, variants: Sequence[Variant]) -> DeletePlan | None:
    """What `delete ref` removes from its model; None when the name means nothing.

    A bare name is the whole model, a label one variant, a word its tag. A word that is no tag and reaches a variant
    by rule alone removes nothing and raises Conflict: a deletion of `latest` sent twice must not cost a file.
    """
    if ref.tag is None:
        return DeletePlan(variants=tuple(variants)) if variants else None
    chosen = choose(ref, variants)
    if chosen is None:
        return None
    if ref.label is not None or chosen.tag.lower() == _word(ref):
        return DeletePlan(variants=(chosen,))
    if tagged_variant(_word(ref), variants) is not None:
        return DeletePlan(word=_word(ref))
    raise Conflict(
        f"{ref.display} is no tag of its own, it reaches {chosen.name} by rule; delete {chosen.name} if that is meant.",
        param="name",
    )


def _word(ref: ModelRef) -> str:
    return DEFAULT_TAG if ref.tag is None else ref.tag.lower()


def _rank(variant: Variant) -> tuple[bool, int, str, int]:
    return bool(variant.flavour), preference(variant.quantization), variant.flavour.lower(), variant.id
