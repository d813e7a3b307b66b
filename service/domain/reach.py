"""What may be reached from here: which hosts, which origins, which IP addresses. Pure.

The list of hosts is the operator's (`RemoteAccess.hosts`); what a name leads to is checked where it is connected to
(`remote/guard.py`), by `is_public`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from service.domain.addresses import Address, FileAddress, HubAddress, RegistryAddress
from service.domain.errors import Forbidden
from service.domain.names import DEFAULT_HOST
from service.domain.remote import RemoteAccess

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is routed on the open internet
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how networks without IPv4 reach it


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
        if ip not in _UNICAST or any(not is_public(str(found)) for found in embedded):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


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
