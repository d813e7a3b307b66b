"""Names of models and variants: `[scheme://][host/][namespace/]model[:tag]`, in Ollama's grammar.

    host       1 to 350 characters  [A-Za-z0-9_] then [A-Za-z0-9_.:-]*   default registry.ollama.ai
    namespace  1 to  80 characters  [A-Za-z0-9_] then [A-Za-z0-9_-]*     default library (no dots)
    model      1 to  80 characters  [A-Za-z0-9_] then [A-Za-z0-9_.-]*
    tag        1 to  80 characters  [A-Za-z0-9_] then [A-Za-z0-9_.-]*    default latest

A tag is a quantization label (`q4_K`), a flavour and a label (`135m-instruct-q4_K_M`), or a free word; the word `auto`
is reserved for the level that is recommended here and now. Names match without regard to case and keep the case they
were stored with; labels match through their aliases. `name@digest` is no name. Every decision here is a pure function.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from service.domain.errors import InvalidName
from service.domain.quants import find_label

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
AUTO_TAG = "auto"

_LIMITS = {"host": 350, "namespace": 80, "model": 80, "tag": 80}
_GRAMMAR = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*"),
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which model: everything of a name but its tag, in the case it was written."""

    host: str
    namespace: str
    model: str

    @property
    def display(self) -> str:
        """The shortest name that reaches it: no default host, no default namespace."""
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.model}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}"
        return self.model

    @property
    def folded(self) -> str:
        """The full name in lower case: equal for equal models, the key of the catalogue."""
        return f"{self.host}/{self.namespace}/{self.model}".lower()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed reference. `tag` None: none was written. `flavour` and `label` are read from the tag."""

    key: ModelKey
    tag: str | None
    flavour: str
    label: str | None

    @property
    def wants_default(self) -> bool:
        """True for a bare name and for `latest`: the owner's choice, else the recommended variant."""
        return self.tag is None or self.tag.lower() == DEFAULT_TAG

    @property
    def wants_recommended(self) -> bool:
        """True for `auto`: the stored level that is recommended for this machine, as it is now."""
        return self.tag is not None and self.tag.lower() == AUTO_TAG

    @property
    def canonical_tag(self) -> str | None:
        """The tag with its label in canonical spelling; a free word as written; None for a bare name."""
        if self.label is None:
            return self.tag
        return f"{self.flavour}-{self.label}" if self.flavour else self.label

    @property
    def display(self) -> str:
        """The reference in canonical form."""
        tag = self.canonical_tag
        return self.key.display if tag is None else f"{self.key.display}:{tag}"


def parse_ref(text: str) -> ModelRef:
    """Read a reference as people type it.

    Raises InvalidName naming the part at fault.
    """
    if "@" in text:
        raise InvalidName("A name cannot carry a digest; write model:tag and read the digest from the answer.")
    rest = text.split("://", 1)[1] if "://" in text else text
    path, tag = _split_tag(rest)
    parts = path.split("/")
    if len(parts) > 3:
        raise InvalidName("A name has at most three parts before the tag: [host/][namespace/]model[:tag].")
    model = parts[-1]
    namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
    host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
    for part, value in (("host", host), ("namespace", namespace), ("model", model)):
        _check(part, value)
    key = ModelKey(host=host, namespace=namespace, model=model)
    if tag is None:
        return ModelRef(key=key, tag=None, flavour="", label=None)
    _check("tag", tag)
    flavour, label = split_tag(tag)
    return ModelRef(key=key, tag=tag, flavour=flavour, label=label)


def split_tag(tag: str) -> tuple[str, str | None]:
    """A tag as (flavour, canonical label). A free word gives (word, None); `latest` gives ("", None)."""
    label = find_label(tag)
    if label is not None:
        return "", label
    # A label holds no dash, so the flavour ends at the last one.
    flavour, dash, last = tag.rpartition("-")
    if dash and flavour:
        label = find_label(last)
        if label is not None:
            return flavour, label
    return ("" if tag.lower() == DEFAULT_TAG else tag), None


def check_not_reserved(word: str) -> None:
    """Raise InvalidName for a tag or a flavour that nothing can be called."""
    if word.lower() == AUTO_TAG:
        raise InvalidName(
            f"The tag {AUTO_TAG} is reserved: it stands for the level that is recommended here. Use another word.",
            param="name",
        )


def parse_digest(text: str) -> str:
    """`sha256:` and 64 lower-case hexadecimal digits, or InvalidName. Paths are built from nothing else."""
    if not _DIGEST.fullmatch(text):
        raise InvalidName("A digest is sha256: followed by 64 lower-case hexadecimal digits.", param="digest")
    return text


def closest(name: str, known: Iterable[str], limit: int = 5) -> list[str]:
    """The known names most like `name`, best first, for error messages."""
    by_folded = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_folded, n=limit, cutoff=0.5)
    return [by_folded[folded] for folded in found]


def _split_tag(text: str) -> tuple[str, str | None]:
    # A colon before the last slash belongs to the host's port.
    slash = text.rfind("/")
    colon = text.rfind(":")
    if colon > slash:
        return text[:colon], text[colon + 1 :]
    return text, None


def _check(part: str, value: str) -> None:
    if not value:
        raise InvalidName(f"The {part} of the name is empty; write [host/][namespace/]model[:tag].")
    if len(value) > _LIMITS[part]:
        raise InvalidName(f"The {part} of the name is longer than {_LIMITS[part]} characters.")
    if not _GRAMMAR[part].fullmatch(value):
        allowed = "letters, digits, _ and -" if part == "namespace" else "letters, digits, _, . and -"
        raise InvalidName(f"The {part} of the name may hold {allowed}, and starts with a letter, a digit or _.")
