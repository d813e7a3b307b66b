"""Addresses of models elsewhere, and what may be fetched from where. Pure.

    hf.co/owner/repo[:LEVEL or file][@revision]         a repository of the hub; huggingface.co/ and hf:// as well
    https://host/path/file.gguf                         a file
    [host/][namespace/]model[:tag][@sha256:digest]      a model of a registry, as Ollama names it

Every address has one canonical form, `display`, and parsing that gives the same address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, quote, unquote, urlsplit

from service.domain.errors import Forbidden, InvalidName, InvalidParameter
from service.domain.names import DEFAULT_HOST, DEFAULT_TAG, ModelKey, ModelRef, parse_digest, parse_ref
from service.domain.quants import find_label
from service.domain.secrets import Secret

HUB = "hf.co"
DEFAULT_HUB_URL = "https://huggingface.co"
DEFAULT_REGISTRY_URL = f"https://{DEFAULT_HOST}"
DEFAULT_HOSTS = (
    "huggingface.co", "*.huggingface.co", "hf.co", "*.hf.co",
    DEFAULT_HOST, "*.r2.cloudflarestorage.com",
)  # fmt: skip
"""The hub and Ollama's registry, and where they keep their files."""

CHECKPOINT = "safetensors"
"""The choice that means a repository's checkpoint and none of its GGUF files."""

MAX_ADDRESS = 1000
_HUB_NAMES = frozenset({HUB, "huggingface.co", "www.huggingface.co"})
_REPO_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_CHOICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_TAG_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_PIECE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_LEVEL_AT_END = re.compile(r"[-._](?:UD-)?(?P<level>[A-Za-z0-9_]+)$")


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """What a child may do on the network. Handed over with its task, never through its environment.

    `hosts` are patterns of names (`hf.co`, `*.hf.co`) that are reached over HTTPS at public addresses only, or whole
    origins (`http://127.0.0.1:8900`) that the operator trusts as they are. `hub` and `registry` are origins.
    """

    hosts: tuple[str, ...] = DEFAULT_HOSTS
    hub: str = DEFAULT_HUB_URL
    registry: str = DEFAULT_REGISTRY_URL
    hub_token: Secret | None = None
    connections: int = 4  # at the same time
    bytes_per_second: int = 0  # 0: no limit
    stall_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of the hub. `choice` is a level or the name of a file; None: the recommended level."""

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


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file elsewhere. `digest` is "sha256:<64 hex>", `git_oid` the SHA-1 of git's own object; None: nobody says."""

    name: str  # its path there
    url: str
    size_bytes: int | None
    digest: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteLevel:
    """What makes one variant. `choice` is what an address says to mean it.

    `converts`: a checkpoint, of which a GGUF file is made here; `size_bytes` is what is fetched.
    """

    level: str
    choice: str
    files: tuple[RemoteFile, ...]
    converts: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all files; those of unknown size count nothing."""
        return sum(file.size_bytes or 0 for file in self.files)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What lies at an address, as of `revision`: a commit of the hub, the digest of a manifest, or nothing."""

    address: str  # as asked for
    revision: str | None
    levels: tuple[RemoteLevel, ...]


# What serving takes beside the weights, roughly: caches and buffers of a small context.
_MEMORY_SHARE = 1.2


def fits(level: RemoteLevel, memory_bytes: int) -> bool:
    """Whether a level can be expected to run in so much memory; 0: nothing is known of it."""
    return memory_bytes <= 0 or level.size_bytes * _MEMORY_SHARE <= memory_bytes


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


# --- what may be reached -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads. `trusted`: the operator has listed this very origin."""

    scheme: str
    host: str
    port: int
    trusted: bool

    @property
    def origin(self) -> str:
        """Scheme, host and port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == (443 if self.scheme == "https" else 80) else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def admit(url: str, hosts: Sequence[str]) -> Place:
    """Where `url` leads, if that may be reached. Raises Forbidden, naming the host alone."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().rstrip(".")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Forbidden("Models are not fetched from what is no address.", param="from") from None
    place = Place(parts.scheme, host, port, trusted=False)
    if not host or parts.username is not None or parts.password is not None:
        raise Forbidden("Models are not fetched from an address without a host, or with a user in it.", param="from")
    if place.origin in {pattern.lower() for pattern in hosts if "://" in pattern}:
        return replace(place, trusted=True)
    if parts.scheme != "https" or port != 443 or not _HOST.fullmatch(host) or is_ip(host) or not _listed(host, hosts):
        raise Forbidden(
            f"Models are not fetched from {shown(place.origin)}: it is not among QUANTRY_PULL_HOSTS; ask the server's "
            "operator to add it.",
            param="from",
        )
    return place


def origin_of(address: Address, access: RemoteAccess) -> str:
    """The origin that is asked first for an address."""
    match address:
        case HubAddress():
            return access.hub
        case FileAddress():
            return address.url
        case RegistryAddress():
            host = address.key.host.lower()
            if host == DEFAULT_HOST:
                return access.registry
            # A registry on this machine speaks HTTP, where the operator has listed it so.
            plain = f"http://{host}"
            return plain if plain in access.hosts else f"https://{host}"


def check_host_pattern(pattern: str) -> str:
    """A setting's entry in canonical form. Raises ValueError for what is neither a name, `*.name` nor an origin."""
    folded = pattern.lower().rstrip("/")
    if "://" not in folded:
        if not _PATTERN.fullmatch(folded) or is_ip(folded) or "." not in folded.removeprefix("*."):
            raise ValueError(
                "a host is a name such as hf.co or *.hf.co, or a whole origin such as http://10.0.0.2:8900"
            )
        return folded
    return check_origin(folded)


def check_origin(url: str) -> str:
    """`http(s)://host[:port]` in canonical form. Raises ValueError."""
    parts: SplitResult = urlsplit(url.lower().rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.fragment:
        raise ValueError("an origin is written like https://models.example.org or http://127.0.0.1:8900")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an origin carries no user and no password")
    return Place(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), True).origin


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also through what it embeds (mapped, 6to4, Teredo, NAT64)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        embedded = [found for found in (ip.sixtofour, *(ip.teredo or ())) if found is not None]
        if any(not is_public(str(found)) for found in embedded):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how networks without IPv4 reach it


def is_ip(host: str) -> bool:
    """Whether a host is an address, in any of the spellings that resolvers take (also 2130706433 and 0x7f.1)."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return all(re.fullmatch(r"0x[0-9a-f]*|\d+", part) for part in host.lower().split("."))
    return True


def shown(text: str) -> str:
    """A stranger's text fit for a message."""
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text[:100])


def _listed(host: str, patterns: Sequence[str]) -> bool:
    return any(
        host.endswith(pattern[1:]) and len(host) >= len(pattern) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
        if "://" not in pattern
    )


# --- reading -----------------------------------------------------------------------------------------------------


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


_FORMS = (
    "Write hf.co/owner/repo:LEVEL for the hub, https://host/file.gguf for a file, or [host/][namespace/]model[:tag] "
    "for a registry."
)


def _hub(rest: str) -> HubAddress:
    path, at, revision = rest.partition("@")
    path, colon, choice = path.partition(":")
    return _hub_address(path.strip("/").split("/"), choice if colon else None, revision if at else None)


def _hub_address(parts: Sequence[str], choice: str | None, revision: str | None) -> HubAddress:
    if len(parts) != 2 or not all(_REPO_PART.fullmatch(part) and ".." not in part for part in parts):
        raise InvalidParameter(f"A repository of the hub is written hf.co/owner/repo. {_FORMS}")
    if choice is not None and not _CHOICE.fullmatch(choice):
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
        case [owner, repo, "resolve" | "blob", revision, *_, file] if file.lower().endswith(".gguf"):
            return _hub_address((owner, repo), file, revision)
    raise InvalidParameter(f"That is no repository and no GGUF file of the hub. {_FORMS}")


def _is_file(choice: str) -> bool:
    return choice.lower().endswith((".gguf", ".safetensors"))


def _name(text: str) -> str:
    try:
        return parse_ref(text).display
    except InvalidName as error:
        raise InvalidName(f"No name can be made of this address; give one. ({error.message})", param="name") from error


def quoted(path: str) -> str:
    """A path of the hub for a URL: every character but the slashes is itself."""
    return quote(path, safe="/")
