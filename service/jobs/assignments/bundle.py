"""A bundle: what it holds of a model taken in, file by file. Server process.

The archive's texts are read here, within bounds (`store.bundles`); its GGUF files only in the child. Bytes that the
store has are not written again, so a run that broke off goes on with what is missing; what it has entered stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msgspec.structs import replace as changed

from service.domain.bundles import BundledVariant, believed_card, believed_digest
from service.domain.catalog import Lineage, Variant
from service.domain.errors import BlobNotFound, LabelMismatch, NameTaken
from service.domain.jobs import BundleSpec, JobStatus, MadeFile, Step
from service.domain.names import ModelKey
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.assignments.bundle_entries import (
    AdapterEntry,
    Entry,
    adapters_of,
    bases_of,
    entries_of,
    matrix_step,
)
from service.jobs.assignments.bundle_names import give_presets, give_tags
from service.jobs.messages import AdapterMade, BundlePart, BundleTask, Calibrated, Made, Outcome, PartKind, Task
from service.store.bundles.reading import MatrixFile, Stored, read_bundle
from service.store.derived import key_of

# What loading a model and computing a few tokens with it takes, against copying it.
_LOAD_SHARE = 8


class BundleAssignment:
    """The variants of a bundle, its importance matrices, then its adapters: numbered in this order."""

    def __init__(self, spec: BundleSpec, bench: Bench) -> None:
        """Raises BlobNotFound when the upload is gone, InvalidModel, DigestMismatch and InvalidParameter for what is no
        bundle, NameTaken for a name that stands for another file, DiskFull when there is no room.
        """
        self._bench = bench
        source = bench.blob(spec.digest, "this bundle") if spec.digest is not None else spec.path
        assert source is not None
        bundle = read_bundle(source)
        self._entries = entries_of(bundle.files, spec.name)
        self._matrices = bundle.matrices
        self._adapters = adapters_of(bundle, self._entries, spec.name)
        self._model = self._entries[0].key
        self._known: dict[int, Variant] = {}
        self._twins: dict[int, str] = {}  # entries and adapters whose bytes another one brings
        self._made: dict[str, MadeFile] = {}
        self._found: dict[str, AdapterMade] = {}
        self._names: dict[int, str] = {}
        self._variants: dict[int, Variant] = {}
        self._said: dict[int, list[str]] = {}
        self._are_known_entered = False
        parts = self._parts()
        self._todo = [number for number, _ in parts]
        bench.stores.blobs.check_space(sum(part.size_bytes for _, part in parts if not part.stored))
        self.task: Task | None = None
        if parts:
            listed = tuple(part for _, part in parts)
            self.task = BundleTask(source, bundle.archive_bytes, bundle.modified_ns, listed, bench.niceness)
        named = (
            *(entry.shown for entry in self._entries),
            *(matrix_step(matrix.digest) for matrix in self._matrices),
            *(adapter.shown for adapter in self._adapters),
        )
        still = {*self._todo, *self._twins}
        self.steps = tuple(
            Step(name) if number in still else Step(name, JobStatus.SUCCEEDED, 1.0, "already stored")
            for number, name in enumerate(named)
        )
        smallest = min(entry.file.size_bytes for entry in self._entries)
        self.weights = (
            *(entry.file.size_bytes for entry in self._entries),
            *(matrix.size_bytes for matrix in self._matrices),
            *(adapter.file.size_bytes + smallest // _LOAD_SHARE for adapter in self._adapters),
        )

    def step_of(self, number: int) -> int:
        """The child counts only what it is to do."""
        return self._todo[number]

    def accept(self, outcome: Outcome) -> str | None:
        """Commit a file and enter what it is. Raises LabelMismatch, NameTaken."""
        assert isinstance(outcome, Made | Calibrated | AdapterMade)
        number = self._todo[outcome.step]
        temp = self._bench.temp(f"part-{number}")
        file = outcome.file if isinstance(outcome, Made) else outcome
        if temp.exists():
            self._bench.commit(temp, file.digest, file.size_bytes)
        if isinstance(outcome, Made):
            self._made[outcome.file.digest] = outcome.file
            return self._enter(number, outcome.file)
        self._hold(outcome.digest, outcome.size_bytes)
        if isinstance(outcome, Calibrated):
            self._enter_matrix(number, outcome)
        else:
            self._enter_known()  # an adapter goes into a model that is there
            self._found[outcome.digest] = outcome
            self._enter_adapter(number, outcome)
        return None

    def remarks(self) -> Sequence[Remark]:
        """What of the bundle's names was left out."""
        return [Remark(number, "; ".join(told)) for number, told in self._said.items()]

    def conclude(self) -> None:
        """Enter what was stored already, then what names add. Raises BlobNotFound when that has gone meanwhile."""
        self._enter_known()
        for number, digest in self._twins.items():
            if number >= len(self._entries):
                self._enter_adapter(number, self._found[digest])
        came: dict[ModelKey, dict[str, tuple[int, Lineage]]] = {}
        for number, variant in self._variants.items():
            of_model = came.setdefault(variant.model, {})
            of_model[variant.tag.lower()] = (variant.id, self._entries[number].lineage)
        for number, variant in self._variants.items():
            about = self._entries[number].file.about
            if about is not None and about.presets:
                told = give_presets(self._bench.stores.catalog, variant, about, came[variant.model])
                if told:
                    self._said.setdefault(number, []).extend(told)

    def settle(self) -> None:
        """What was entered stays."""

    def result(self) -> tuple[str, ...]:
        """The names of the variants that are there, in the order of the bundle."""
        return tuple(self._names[number] for number in sorted(self._names))

    # --- what is to be done --------------------------------------------------------------------------------------

    def _parts(self) -> list[tuple[int, BundlePart]]:
        """What the child is to bring, by the number of its step. Notes what needs no child."""
        blobs, catalog = self._bench.stores.blobs, self._bench.stores.catalog
        digests = {entry.file.digest for entry in self._entries}
        stored = {
            variant.digest: variant
            for variant in catalog.variants()
            if variant.digest in digests and not variant.corrupt and blobs.has(variant.digest)
        }
        adapters = self._missing_adapters()
        bases = {number: bases_of(self._entries, entry.key) for number, entry in adapters}
        needed = frozenset(digest for found in bases.values() for digest in found)
        paths: dict[str, str] = {}  # where the models can be read when adapters have their turn
        parts: list[tuple[int, BundlePart]] = []
        for number, entry in enumerate(self._entries):
            self._check_free(entry)
            digest = entry.file.digest
            if digest in stored:
                self._known[number] = stored[digest]
                paths[digest] = str(blobs.path(digest))
            elif digest in paths:
                self._twins[number] = digest
            else:
                part = self._part(number, entry.file, entry.name, PartKind.MODEL)
                if digest in needed and not part.stored:
                    part = changed(part, keep=str(self._bench.temp(f"base-{number}")))
                paths[digest] = part.stored or part.keep
                parts.append((number, part))
        parts += self._matrix_parts()
        brought: set[str] = set()
        for number, adapter in adapters:
            if adapter.file.digest in brought:
                self._twins[number] = adapter.file.digest
                continue
            brought.add(adapter.file.digest)
            part = self._part(number, adapter.file, adapter.name, PartKind.ADAPTER)
            parts.append((number, changed(part, bases=tuple(paths[digest] for digest in bases[number]))))
        return parts

    def _matrix_parts(self) -> list[tuple[int, BundlePart]]:
        known = {matrix.digest for matrix in self._bench.stores.laboratory.importance_matrices()}
        parts: dict[str, tuple[int, BundlePart]] = {}
        for number, matrix in enumerate(self._matrices, len(self._entries)):
            part = self._part(number, matrix, matrix_step(matrix.digest), PartKind.IMPORTANCE)
            if matrix.digest not in known or not part.stored:
                parts.setdefault(matrix.digest, (number, part))
        return list(parts.values())

    def _missing_adapters(self) -> list[tuple[int, AdapterEntry]]:
        """The adapters that are not there. Raises NameTaken for the name of another one."""
        missing = []
        for number, entry in enumerate(self._adapters, len(self._entries) + len(self._matrices)):
            there = self._bench.stores.catalog.adapters.all(entry.key)
            known = next((adapter for adapter in there if adapter.name.lower() == entry.name.lower()), None)
            if known is not None and known.digest != entry.file.digest:
                raise NameTaken(
                    f"{known.name} is another adapter of {entry.key.display}; delete it first, or give the bundle "
                    "another name.",
                    param="name",
                )
            if known is None or not self._stored_path(known.digest):
                missing.append((number, entry))
        return missing

    def _part(self, number: int, file: Stored, name: str, kind: PartKind) -> BundlePart:
        target = str(self._bench.temp(f"part-{number}"))
        path = self._stored_path(file.digest)
        return BundlePart(name, file.digest, file.size_bytes, file.offset, target, path, kind)

    def _stored_path(self, digest: str) -> str:
        """Where the bytes lie in the store; "" where they do not, or are damaged."""
        blobs = self._bench.stores.blobs
        blob = self._bench.stores.catalog.blob(digest)
        is_there = blob is not None and not blob.corrupt and blobs.has(digest)
        return str(blobs.path(digest)) if is_there else ""

    def _check_free(self, entry: Entry) -> None:
        """Raise NameTaken when the name is known to stand for another file."""
        if entry.label is None:
            return
        for sibling in self._bench.stores.catalog.variants(entry.key.display):
            same_name = (sibling.flavour.lower(), sibling.quantization) == (entry.flavour.lower(), entry.label)
            if same_name and sibling.digest != entry.file.digest:
                raise NameTaken(
                    f"{sibling.name} is another file; delete it first, or give the bundle another name.", param="name"
                )

    # --- entering ------------------------------------------------------------------------------------------------

    def _enter_known(self) -> None:
        """Enter the variants whose bytes were stored already, or came with another one."""
        if self._are_known_entered:
            return
        for number, twin in self._known.items():
            self._enter(number, MadeFile("", twin.digest, twin.size_bytes, twin.facts))
        for number, digest in self._twins.items():
            if number < len(self._entries):
                self._enter(number, self._made[digest])
        self._are_known_entered = True

    def _enter(self, number: int, file: MadeFile) -> str | None:
        entry, catalog = self._entries[number], self._bench.stores.catalog
        self._hold(file.digest, file.size_bytes)
        found = file.facts.quantization
        if entry.label is not None and entry.label != found:
            if not entry.is_mix:
                raise LabelMismatch(
                    f"The bundle says {entry.label} and the file is {found}; it is not what it is called.", param="name"
                )
            file = replace(file, facts=replace(file.facts, quantization=entry.label))
        variant = catalog.add_variant((entry.key, entry.flavour), file, entry.lineage)
        self._names[number] = variant.name
        self._variants[number] = variant
        about = entry.file.about
        if about is None:
            return None
        self._add_card(variant, about)
        left = give_tags(catalog, variant, about)
        if not left:
            return None
        self._said[number] = [f"the tag {', '.join(left)} means another variant here and stays"]
        return self._said[number][0]

    def _enter_matrix(self, number: int, outcome: Calibrated) -> None:
        file: MatrixFile = self._matrices[number - len(self._entries)]
        self._bench.stores.laboratory.add_importance_matrix(
            self._model,
            outcome.digest,
            outcome.size_bytes,
            outcome.facts,
            # What a bundle says that it was computed from, no later job is to take for computed here.
            made_from=key_of("bundled", outcome.digest),
            source_digest=believed_digest(file.about.source_digest),
            dataset_digest=believed_digest(file.about.dataset_digest),
        )

    def _enter_adapter(self, number: int, outcome: AdapterMade) -> None:
        entry = self._adapters[number - len(self._entries) - len(self._matrices)]
        adapters = self._bench.stores.catalog.adapters
        adapters.add(entry.key, entry.name, outcome.digest, outcome.size_bytes, outcome.facts)

    def _hold(self, digest: str, size_bytes: int) -> None:
        """Keep the sweep off it for a while. Raises BlobNotFound when it was there and is not any more."""
        if not self._bench.stores.blobs.hold(digest, size_bytes):
            raise BlobNotFound("A file of the bundle was stored already and is gone by now; start again.")

    def _add_card(self, variant: Variant, about: BundledVariant) -> None:
        laboratory = self._bench.stores.laboratory
        if about.card is None or laboratory.cards([variant.id]):
            return
        card = believed_card(about.card)
        if card.text is not None or card.tasks:
            laboratory.add_card(variant.id, card, job_id=self._bench.job_id)
