"""Addresses of models elsewhere, as people write them. Pure.

    hf.co/owner/repo[:LEVEL or file][@revision]         a repository of the hub; huggingface.co/ and hf:// as well
    https://host/path/file.gguf                         a file
    [host/][namespace/]model[:tag][@sha256:digest]      a model of a registry, as Ollama names it

Every address has one canonical form, `display`, and parsing that gives the same address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit

from service.domain.errors import InvalidName, InvalidParameter
from service.domain.names import DEFAULT_TAG, ModelKey, ModelRef, parse_digest, parse_ref
from service.domain.quants import find_label
from service.domain.remote import CHECKPOINT

HUB = "hf.co"
MAX_ADDRESS = 1000
_HUB_NAMES = frozenset({HUB, "huggingface.co", "www.huggingface.co"})
_REPO_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_CHOICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
# A file in a folder: two levels may have files of one name.
_FILE_IN_FOLDER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._+-]{0,99}/){1,4}[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}\.gguf", re.I)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_TAG_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_PIECE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_LEVEL_AT_END = re.compile(r"[-._](?:UD-)?(?P<level>[A-Za-z0-9_]+)$")
_FORMS = (
    "Write hf.co/owner/repo:LEVEL for the hub, https://host/file.gguf for a file, or [host/][namespace/]model[:tag] "
    "for a registry."
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of the hub. `choice` is a level, or a file by its name or path; None: the recommended level."""

    repo: str
    choice: str | None = None
    revision: str | None = None

    @property
    def display(self) -> str:
        """Canonical form."""
        choice = "" if self.choice is None else f":{self.choice}"
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{HUB}/{self.repo}{choice}{revision}"

    @property
    def name(self) -> str:
        """The local name that a pull gives where none is asked for: the file's own level goes behind it.

        Raises InvalidName for a repository that no name can be made of.
        """
        choice = self.choice or ""
        is_word = choice != CHECKPOINT and find_label(choice) is None and _TAG_WORD.fullmatch(choice) is not None
        return _name(f"{HUB}/{self.repo}" + (f":{choice}" if is_word and not _is_file(choice) else ""))

    def pinned(self, revision: str) -> HubAddress:
        """The same at one commit."""
        return replace(self, revision=revision)


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """A model of a registry. `digest` is that of a manifest, which then counts and not the tag."""

    key: ModelKey
    tag: str = DEFAULT_TAG
    digest: str | None = None

    @property
    def display(self) -> str:
        """Canonical form; the default host is left out."""
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.key.display}:{self.tag}{digest}"

    @property
    def name(self) -> str:
        """The local name that a pull gives where none is asked for: the file's own level goes behind it."""
        ref = parse_ref(f"{self.key.display}:{self.tag}")
        return f"{self.key.display}:{ref.flavour}" if ref.flavour else self.key.display

    def pinned(self, digest: str) -> RegistryAddress:
        """The same at one manifest."""
        return replace(self, digest=digest)


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A GGUF file, or a piece of a split one, at a URL."""

    url: str

    @property
    def display(self) -> str:
        """Canonical form."""
        return self.url

    @property
    def name(self) -> str:
        """The local name that a pull gives where none is asked for. Raises InvalidName where none can be made."""
        stem = unquote(self.url.rpartition("/")[2])[: -len(".gguf")]
        piece = _PIECE.fullmatch(f"{stem}.gguf")
        stem = piece["stem"] if piece else stem
        level = _LEVEL_AT_END.search(stem)
        return _name(stem[: level.start()] if level and find_label(level["level"]) else stem)

    @property
    def urls(self) -> tuple[str, ...]:
        """The file; all pieces where it is one of several."""
        folder, _, base = self.url.rpartition("/")
        piece = _PIECE.fullmatch(base)
        if piece is None:
            return (self.url,)
        count = int(piece["count"])
        if not 1 <= int(piece["number"]) <= count <= 1000:
            raise InvalidParameter("The piece's number is not within their count; check the address.", param="from")
        return tuple(f"{folder}/{piece['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


Address = HubAddress | RegistryAddress | FileAddress


def parse_address(text: str, *, param: str = "from") -> Address:
    """Read an address as people write it. Raises InvalidParameter with the forms there are."""
    try:
        return _parsed(text)
    except (InvalidParameter, InvalidName) as error:
        raise InvalidParameter(error.message, param=param) from error


def pinned_address(address: str, revision: str | None) -> str:
    """The canonical address of the very same bytes: at the commit or the manifest that it meant."""
    parsed = parse_address(address)
    if revision is None or isinstance(parsed, FileAddress):
        return parsed.display
    return parsed.pinned(revision).display


def is_commit(revision: str) -> bool:
    """Whether a revision can mean one thing alone."""
    return _COMMIT.fullmatch(revision) is not None


def quoted(path: str) -> str:
    """A path of the hub for a URL: every character but the slashes is itself."""
    return quote(path, safe="/")


def _parsed(text: str) -> Address:
    if not text or len(text) > MAX_ADDRESS or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidParameter(f"An address has 1 to {MAX_ADDRESS} visible ASCII characters. {_FORMS}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        host, slash, path = text.partition("/")
        return _hub(path) if slash and host.lower() in _HUB_NAMES else _registry(text)
    scheme = scheme.lower()
    if scheme in ("hf", "ollama"):
        return _hub(rest) if scheme == "hf" else _registry(rest)
    if scheme not in ("http", "https"):
        raise InvalidParameter(f"Models are fetched over https. {_FORMS}")
    return _url(text)


def _hub(rest: str) -> HubAddress:
    path, at, revision = rest.partition("@")
    path, colon, choice = path.partition(":")
    return _hub_address(path.strip("/").split("/"), choice if colon else None, revision if at else None)


def _hub_address(parts: Sequence[str], choice: str | None, revision: str | None) -> HubAddress:
    if len(parts) != 2 or not all(_REPO_PART.fullmatch(part) and ".." not in part for part in parts):
        raise InvalidParameter(f"A repository of the hub is written hf.co/owner/repo. {_FORMS}")
    if choice is not None and not _CHOICE.fullmatch(choice) and not _FILE_IN_FOLDER.fullmatch(choice):
        raise InvalidParameter("Behind the colon stands a level such as Q4_K_M, or the name of a file.")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise InvalidParameter("Behind the @ stands a branch, a tag or a commit of the repository.")
    if choice is not None and choice.lower() == DEFAULT_TAG:
        choice = None  # as clients of Ollama's write it
    if choice is not None:
        choice = find_label(choice) or (CHECKPOINT if choice.lower() == CHECKPOINT else choice)
    return HubAddress("/".join(parts), choice, None if revision == "main" else revision)


def _registry(text: str) -> RegistryAddress:
    name, at, digest = text.partition("@")
    ref: ModelRef = parse_ref(name)
    return RegistryAddress(ref.key, ref.tag or DEFAULT_TAG, parse_digest(digest) if at else None)


def _url(text: str) -> Address:
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise InvalidParameter(f"That is no address. {_FORMS}") from None
    if not host or parts.username is not None or parts.password is not None:
        raise InvalidParameter("An address has a host, and no user or password in it.")
    if parts.query or parts.fragment:
        raise InvalidParameter("An address ends with the file's name: what follows a ? may be a secret, and is kept.")
    if host in _HUB_NAMES and port in (None, 443) and parts.scheme == "https":
        return _hub_page([unquote(part) for part in parts.path.strip("/").split("/")])
    if not _PATH.fullmatch(parts.path) or not parts.path.lower().endswith(".gguf"):
        raise InvalidParameter("An address of a file ends in .gguf.")
    if any(part in (".", "..") for part in unquote(parts.path).split("/")):
        raise InvalidParameter("An address has no . and .. among its folders.")
    shown_host = f"[{host}]" if ":" in host else host
    return FileAddress(f"{parts.scheme.lower()}://{shown_host}{'' if port is None else f':{port}'}{parts.path}")


def _hub_page(parts: Sequence[str]) -> HubAddress:
    """The page of a repository, of one of its revisions or of a file, as a browser's address bar has it."""
    match parts:
        case [_, _]:
            return _hub_address(parts, None, None)
        case [owner, repo, "tree", revision]:
            return _hub_address((owner, repo), None, revision)
        case [owner, repo, "resolve" | "blob", revision, *path] if path and path[-1].lower().endswith(".gguf"):
            return _hub_address((owner, repo), "/".join(path), revision)
    raise InvalidParameter(f"That is no repository and no GGUF file of the hub. {_FORMS}")


def _is_file(choice: str) -> bool:
    return choice.lower().endswith((".gguf", ".safetensors"))


def _name(text: str) -> str:
    try:
        return parse_ref(text).display
    except InvalidName as error:
        raise InvalidName(f"No name can be made of this address; give one. ({error.message})", param="name") from error
