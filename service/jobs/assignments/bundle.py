"""A bundle: its variants taken in, one by one. Server process.

The archive's texts are read here, within bounds (`store.bundles`); its GGUF files only in the child. Bytes that the
store has are not written again, so a run that broke off goes on with what is missing; what it has entered stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from service.domain.bundles import BundledVariant, believed, believed_card
from service.domain.catalog import Lineage, Variant
from service.domain.errors import (
    BlobNotFound,
    InvalidModel,
    InvalidName,
    InvalidParameter,
    LabelMismatch,
    NameTaken,
)
from service.domain.jobs import BundleSpec, JobStatus, MadeFile, Step
from service.domain.names import ModelKey, check_not_reserved, parse_ref
from service.domain.quants import find_label
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import BundlePart, BundleTask, Made, Outcome, Task
from service.store import naming
from service.store.bundles.reading import BundledFile, read_bundle

_MAX_TAGS = 100


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of the bundle, and what it is to become. `label` None: whatever the file says that it is."""

    file: BundledFile
    key: ModelKey
    flavour: str
    label: str | None
    is_mix: bool  # made with options of its own: what its types look like is not its label

    @property
    def name(self) -> str:
        """The reference to hold the file against, e.g. `gloss:instruct-Q4_K_M`."""
        label = None if self.is_mix else self.label
        tag = "-".join(part for part in (self.flavour, label) if part)
        return f"{self.key.display}:{tag}" if tag else self.key.display

    @property
    def shown(self) -> str:
        """What its step is called."""
        return "-".join(part for part in (self.flavour, self.label) if part) or self.file.digest[7:19]


class BundleAssignment:
    """The variants of a bundle."""

    def __init__(self, spec: BundleSpec, bench: Bench) -> None:
        """Raises BlobNotFound when the upload is gone, InvalidModel, DigestMismatch and InvalidParameter for what is no
        bundle, NameTaken for a name that stands for another file, DiskFull when there is no room.
        """
        self._bench = bench
        blobs, catalog = bench.stores.blobs, bench.stores.catalog
        source = bench.blob(spec.digest, "this bundle") if spec.digest is not None else spec.path
        assert source is not None
        bundle = read_bundle(source)
        self._entries = _entries(bundle.files, spec.name)
        digests = {entry.file.digest for entry in self._entries}
        found = [variant for variant in catalog.variants() if variant.digest in digests]
        stored = {variant.digest: variant for variant in found if blobs.has(variant.digest)}
        self._known: dict[int, Variant] = {}
        self._twins: dict[int, str] = {}  # entries whose bytes another entry brings
        self._made: dict[str, MadeFile] = {}
        self._todo: list[int] = []
        parts: list[BundlePart] = []
        for number, entry in enumerate(self._entries):
            self._check_free(entry)
            file = entry.file
            twin = stored.get(file.digest)
            if twin is not None and not twin.corrupt:
                self._known[number] = twin
                continue
            if any(part.digest == file.digest for part in parts):
                self._twins[number] = file.digest
                continue
            blob = catalog.blob(file.digest)
            is_there = blob is not None and not blob.corrupt and blobs.has(file.digest)
            path = str(blobs.path(file.digest)) if is_there else ""
            target = str(bench.temp(f"part-{number}"))
            self._todo.append(number)
            parts.append(BundlePart(entry.name, file.digest, file.size_bytes, file.offset, target, path))
        blobs.check_space(sum(part.size_bytes for part in parts if not part.stored))
        self.task: Task | None = None
        if parts:
            self.task = BundleTask(source, bundle.archive_bytes, bundle.modified_ns, tuple(parts), bench.niceness)
        self.steps = tuple(
            Step(entry.shown, JobStatus.SUCCEEDED, 1.0, "already stored")
            if number in self._known
            else Step(entry.shown)
            for number, entry in enumerate(self._entries)
        )
        self.weights = tuple(entry.file.size_bytes for entry in self._entries)
        self._names: dict[int, str] = {}

    def step_of(self, number: int) -> int:
        """The child counts only what it is to do."""
        return self._todo[number]

    def accept(self, outcome: Outcome) -> str | None:
        """Commit a file and enter its variant. Raises LabelMismatch, NameTaken."""
        assert isinstance(outcome, Made)
        number = self._todo[outcome.step]
        file = outcome.file
        temp = self._bench.temp(f"part-{number}")
        if temp.exists():
            self._bench.commit(temp, file.digest, file.size_bytes)
        self._made[file.digest] = file
        return self._enter(number, file)

    def remarks(self) -> Sequence[Remark]:
        """None."""
        return ()

    def conclude(self) -> None:
        """Enter the variants whose bytes were stored already. Raises BlobNotFound when they have gone meanwhile."""
        for number, twin in self._known.items():
            self._enter(number, MadeFile("", twin.digest, twin.size_bytes, twin.facts))
        for number, digest in self._twins.items():
            self._enter(number, self._made[digest])

    def settle(self) -> None:
        """What was entered stays."""

    def result(self) -> tuple[str, ...]:
        """The names of the variants that are there, in the order of the bundle."""
        return tuple(self._names[number] for number in sorted(self._names))

    def _enter(self, number: int, file: MadeFile) -> str | None:
        entry, stores = self._entries[number], self._bench.stores
        with stores.blobs.open_upload(file.digest, file.size_bytes) as held:  # which keeps the sweep off it for a while
            if not held.exists:
                raise BlobNotFound("A file of the bundle was stored already and is gone by now; start again.")
        found = file.facts.quantization
        if entry.label is not None and entry.label != found:
            if not entry.is_mix:
                raise LabelMismatch(
                    f"The bundle says {entry.label} and the file is {found}; it is not what it is called.", param="name"
                )
            file = replace(file, facts=replace(file.facts, quantization=entry.label))
        variant = stores.catalog.add_variant((entry.key, entry.flavour), file, _lineage(entry))
        self._names[number] = variant.name
        about = entry.file.about
        if about is None:
            return None
        self._add_card(variant, about)
        left = [word for word in about.tags[:_MAX_TAGS] if not self._tag(variant, word)]
        return f"the tag {', '.join(left)} means another variant here and stays" if left else None

    def _add_card(self, variant: Variant, about: BundledVariant) -> None:
        laboratory = self._bench.stores.laboratory
        if about.card is None or laboratory.cards([variant.id]):
            return
        card = believed_card(about.card)
        if card.text is not None or card.tasks:
            laboratory.add_card(variant.id, card, job_id=self._bench.job_id)

    def _tag(self, variant: Variant, word: str) -> bool:
        """Give the variant its tag, unless that would take it from another one; False when it would."""
        catalog = self._bench.stores.catalog
        try:
            ref = parse_ref(f"{variant.model.display}:{word}")
            check_not_reserved(word)
        except InvalidName:
            return True
        if ref.label is not None:
            return True
        holder = naming.tagged_variant(word.lower(), catalog.variants(variant.model.display))
        if holder is not None:
            return holder.id == variant.id
        with suppress(NameTaken, InvalidName):
            catalog.copy(variant, ref)
        return True

    def _check_free(self, entry: _Entry) -> None:
        """Raise NameTaken when the name is known to stand for another file."""
        if entry.label is None:
            return
        for sibling in self._bench.stores.catalog.variants(entry.key.display):
            same_name = (sibling.flavour.lower(), sibling.quantization) == (entry.flavour.lower(), entry.label)
            if same_name and sibling.digest != entry.file.digest:
                raise NameTaken(
                    f"{sibling.name} is another file; delete it first, or give the bundle another name.", param="name"
                )


def _entries(files: Sequence[BundledFile], name: str | None) -> tuple[_Entry, ...]:
    """What the files of a bundle are to become, under the model's new name or their own.

    Raises InvalidParameter where there is none, InvalidName, InvalidModel for two files of one name.
    """
    found = tuple(_entry(file, name) for file in files)
    named = [(entry.key.folded, entry.flavour.lower(), entry.label) for entry in found if entry.label is not None]
    if len(set(named)) < len(named):
        raise InvalidModel("The bundle has two files of one name; make it anew.")
    return found


def _entry(file: BundledFile, name: str | None) -> _Entry:
    about = file.about
    if about is None:
        if name is None:
            raise InvalidParameter("The bundle does not say what its model is called; give it a name.", param="name")
        ref = parse_ref(f"{name}:{file.tag}" if file.tag else name)
        return _Entry(file, ref.key, ref.flavour, ref.label, is_mix=False)
    key = parse_ref(name or about.model).key
    label = find_label(about.quantization)
    if about.flavour:
        parse_ref(f"{key.display}:{about.flavour}")
        check_not_reserved(about.flavour)
    recipe = believed(about.lineage, about.model, key).recipe
    is_mix = recipe is not None and not recipe.is_stock and recipe.quantization == label
    return _Entry(file, key, about.flavour, label, is_mix)


def _lineage(entry: _Entry) -> Lineage:
    about = entry.file.about
    return Lineage("imported") if about is None else believed(about.lineage, about.model, entry.key)


def check_name(name: str) -> str:
    """A model's new name in canonical form. Raises InvalidName for one with a tag: the bundle has those."""
    ref = parse_ref(name)
    if ref.tag is not None:
        raise InvalidName("The name of a bundle's model has no tag: its variants keep theirs.", param="name")
    return ref.key.display
