"""Addresses of models elsewhere, and what may be fetched from where. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from service.domain.secrets import Secret


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """What a child may do on the network. Handed over with its task, never through its environment.

    `hosts` are patterns of names (`hf.co`, `*.hf.co`) that are reached over HTTPS at public addresses only, or whole
    origins (`http://127.0.0.1:8900`) that the operator trusts as they are. `hub` and `registry` are origins.
    """

    hosts: tuple[str, ...]
    hub: str
    registry: str
    hub_token: Secret | None = None
    connections: int = 4  # at the same time
    bytes_per_second: int = 0  # 0: no limit
    stall_seconds: float = 30.0
