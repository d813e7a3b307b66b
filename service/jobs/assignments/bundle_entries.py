"""What the files of a bundle are to become: names, levels, models, decided before anything is copied. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.bundles import believed
from service.domain.catalog import Lineage
from service.domain.errors import InvalidModel, InvalidName, InvalidParameter
from service.domain.names import ModelKey, check_not_reserved, parse_ref
from service.domain.quants import find_label
from service.store.bundles.reading import AdapterFile, Bundle, BundledFile

_DIGITS = slice(7, 19)  # of a digest, to show


@dataclass(frozen=True, slots=True)
class Entry:
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
        return "-".join(part for part in (self.flavour, self.label) if part) or self.file.digest[_DIGITS]

    @property
    def lineage(self) -> Lineage:
        """Where its variant comes from."""
        about = self.file.about
        return Lineage("imported") if about is None else believed(about.lineage, about.model, self.key)


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """An adapter of the bundle, and the model that it is to be one of."""

    file: AdapterFile
    key: ModelKey

    @property
    def name(self) -> str:
        """What it is called within its model."""
        return self.file.about.name

    @property
    def shown(self) -> str:
        """What its step is called."""
        return f"adapter {self.name}"


def entries_of(files: Sequence[BundledFile], name: str | None) -> tuple[Entry, ...]:
    """What the models of a bundle are to become, under their model's new name or their own.

    Raises InvalidParameter where there is none, InvalidName, InvalidModel for two files of one name.
    """
    found = tuple(_entry(file, name) for file in files)
    named = [(entry.key.folded, entry.flavour.lower(), entry.label) for entry in found if entry.label is not None]
    if len(set(named)) < len(named):
        raise InvalidModel("The bundle has two files of one name; make it anew.")
    return found


def adapters_of(bundle: Bundle, entries: Sequence[Entry], name: str | None) -> tuple[AdapterEntry, ...]:
    """What its adapters are to become. Raises InvalidName, InvalidModel for one whose model is not in the bundle."""
    keys = {entry.key.folded: entry.key for entry in entries}
    found = []
    for file in bundle.adapters:
        key = keys.get(parse_ref(name or file.about.model).key.folded)
        if key is None:
            raise InvalidModel(f"The bundle has the adapter {file.about.name} and not its model; make it anew.")
        found.append(AdapterEntry(file, key))
    return tuple(found)


def bases_of(entries: Sequence[Entry], key: ModelKey) -> tuple[str, ...]:
    """Digests of the models that an adapter of `key` may have been made for: the smallest file of each flavour."""
    smallest: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.file.size_bytes):
        if entry.key.folded == key.folded:
            smallest.setdefault(entry.flavour.lower(), entry)
    return tuple(dict.fromkeys(entry.file.digest for entry in smallest.values()))


def matrix_step(digest: str) -> str:
    """What the step of an importance matrix is called."""
    return f"importance matrix {digest[_DIGITS]}"


def check_name(name: str) -> str:
    """A model's new name in canonical form. Raises InvalidName for one with a tag: the bundle has those."""
    ref = parse_ref(name)
    if ref.tag is not None:
        raise InvalidName("The name of a bundle's model has no tag: its variants keep theirs.", param="name")
    return ref.key.display


def _entry(file: BundledFile, name: str | None) -> Entry:
    about = file.about
    if about is None:
        if name is None:
            raise InvalidParameter("The bundle does not say what its model is called; give it a name.", param="name")
        ref = parse_ref(f"{name}:{file.tag}" if file.tag else name)
        return Entry(file, ref.key, ref.flavour, ref.label, is_mix=False)
    key = parse_ref(name or about.model).key
    label = find_label(about.quantization)
    if about.flavour:
        parse_ref(f"{key.display}:{about.flavour}")
        check_not_reserved(about.flavour)
    recipe = believed(about.lineage, about.model, key).recipe
    is_mix = recipe is not None and not recipe.is_stock and recipe.quantization == label
    return Entry(file, key, about.flavour, label, is_mix)
