"""Every knob of the server: its environment variable, unit, default, limits and one sentence about it.

Runs in the server process and in the command line, before anything else. A bad value, or a QUANTRY_ variable that
does not exist, refuses to start with a message that names the variable. No room reads settings: app.py hands each
of them a small options object.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.domain.errors import InvalidParameter
from service.domain.names import closest
from service.domain.reach import check_host_pattern, check_origin
from service.domain.remote import DEFAULT_HOSTS, DEFAULT_HUB_URL, DEFAULT_REGISTRY_URL

PREFIX = "QUANTRY_"
# Read by the command line, the demo, scripts, tests and docker-compose.yml, not by the server.
FOREIGN_NAMES = frozenset(
    {
        "QUANTRY_URL",
        "QUANTRY_API_KEY",
        "QUANTRY_DEMO",
        "QUANTRY_DEMO_MODELS",
        "QUANTRY_SMOLLM2",
        "QUANTRY_WHEEL_CACHE",
        "QUANTRY_BIND",
        "QUANTRY_MEMORY",
        "QUANTRY_MODELS",
    }
)
FOREIGN_PREFIXES = ("QUANTRY_TEST_", "QUANTRY_BENCH_")
MINIMUM_KEY_LENGTH = 16

_HOST = re.compile(r"[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\]")

MIB = 1 << 20
GIB = 1 << 30

CommaList = Annotated[tuple[str, ...], NoDecode]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode]
CacheWord = Literal["auto", "f16", "q8_0", "q4_0"]


class Settings(BaseSettings):
    """The settings of one server. Sizes are bytes, durations seconds, lengths tokens."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # --- where it listens and who may call it
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        max_length=253,
        description="Address to bind; any other than loopback needs api_keys.",
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port to bind; 0 takes a free one.")
    api_keys: SecretList = Field(
        (),
        description=f"Comma list of keys of at least {MINIMUM_KEY_LENGTH} characters; empty: no key is asked for.",
    )
    allowed_hosts: CommaList = Field(
        (),
        description="Comma list of names a Host header may carry beside loopback ones; empty, with keys: any.",
    )

    import_folders: CommaList = Field(
        (),
        description="Comma list of folders whose files may be imported by path; empty: none with keys, any without.",
    )

    # --- where it keeps things
    home: Path = Field(Path("~/.quantry"), description="Folder of the database and the blobs.")
    database_url: str | None = Field(
        None, max_length=2048, description="SQLAlchemy URL of the catalogue; None: a SQLite file in home."
    )
    disk_reserve_bytes: int = Field(
        GIB, ge=0, le=1 << 50, description="Bytes of disk that uploads and jobs leave free."
    )
    store_quota_bytes: int = Field(
        0, ge=0, le=1 << 60, description="Most bytes that blobs and transfers may take together; 0: no quota."
    )
    scrub_days: float = Field(
        30.0, ge=0, le=3650, description="Age in days from which a blob's bytes are read and compared again; 0: never."
    )
    blob_grace_seconds: float = Field(
        3600.0, ge=0, le=30 * 86400, description="Age in seconds from which a blob that nothing refers to is deleted."
    )
    partial_age_seconds: float = Field(
        7 * 86400.0,
        ge=60,
        le=365 * 86400,
        description="Age in seconds from which an upload or a download that nobody goes on with is deleted.",
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field("json", description="Shape of log lines.")

    # --- inference
    context_length: int = Field(
        4096, ge=64, le=1 << 20, description="Tokens of context for each request; a model trained for fewer gets fewer."
    )
    parallel: int = Field(4, ge=1, le=256, description="Requests that one worker runs at the same time.")
    batch_tokens: int = Field(512, ge=16, le=16384, description="Most tokens in one llama.cpp batch.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a worker; None: the usable cores.")
    max_token_gap_seconds: float = Field(
        0.25, ge=0.01, le=60, description="Longest that prompts may hold up the next token of a stream, in seconds."
    )
    prefix_cache: Literal["on", "off"] = Field(
        "on", description="Keep what was computed, for requests that begin alike."
    )
    speculation: Literal["on", "off"] = Field(
        "on", description="Guess tokens ahead where that saves time; texts stay the same."
    )
    cache_type_k: CacheWord = Field("f16", description="Type of the cached keys; auto: the best that fits.")
    cache_type_v: CacheWord = Field(
        "f16", description="Type of the cached values; other than f16 it needs flash attention."
    )
    flash_attention: Literal["auto", "off"] = Field(
        "auto", description="Attention without a matrix of scores; auto: wherever llama.cpp has it."
    )
    gpu_layers: int = Field(-1, ge=-1, le=4096, description="Layers offloaded to a GPU; -1: all, 0: none.")
    memory_budget_bytes: int | None = Field(
        None,
        ge=64 * MIB,
        le=1 << 50,
        description="Bytes all workers may take; None: 80 % of what the machine or cgroup has.",
    )
    keep_alive_seconds: float = Field(
        300.0, ge=0, le=30 * 86400, description="Seconds an idle worker stays loaded; 0 unloads at once."
    )
    max_loaded_models: int = Field(8, ge=1, le=256, description="Most variants loaded at the same time.")
    max_queued_requests: int = Field(
        256, ge=1, le=100_000, description="Most requests waiting; more are refused with 429."
    )
    queue_timeout_seconds: float = Field(
        300.0, ge=1, le=86400, description="Longest wait for memory that busy models hold, in seconds."
    )
    load_timeout_seconds: float = Field(
        600.0, ge=1, le=86400, description="Longest try at loading a variant, in seconds."
    )
    worker_hang_seconds: float = Field(
        10.0, ge=1, le=3600, description="Seconds without an answer to a ping after which a worker is killed."
    )
    drain_seconds: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running streams get to end at shutdown."
    )

    # --- jobs
    job_concurrency: int = Field(1, ge=1, le=64, description="Jobs that run at the same time.")
    job_threads: int | None = Field(None, ge=1, le=1024, description="Threads of a job; None: the usable cores.")
    max_queued_jobs: int = Field(100, ge=1, le=10_000, description="Most jobs waiting; more are refused with 429.")
    laboratory_bytes: int = Field(
        20 * GIB,
        ge=0,
        le=1 << 50,
        description="Most bytes of log-probabilities, checkpoints and sensitivities that are kept for later jobs.",
    )
    on_demand: Literal["on", "off"] = Field(
        "off", description="Make a level that a request names and that is not there, of a stored source."
    )
    on_demand_wait_seconds: float = Field(
        300.0, ge=0, le=86400, description="Longest that a request waits for a level that is made for it, in seconds."
    )
    import_wait_seconds: float = Field(
        10.0, ge=0, le=300, description="Seconds an import is waited for before the answer becomes 202 with a job."
    )

    # --- pulls
    pull_hosts: CommaList = Field(
        DEFAULT_HOSTS,
        description="Comma list of hosts that models are fetched from: names, *.names, or whole origins.",
    )
    hub_url: str = Field(DEFAULT_HUB_URL, max_length=300, description="Origin of the hub that hf.co stands for.")
    hub_token: SecretStr | None = Field(None, description="Token for the hub's gated and private repositories.")
    registry_url: str = Field(
        DEFAULT_REGISTRY_URL, max_length=300, description="Origin of the registry of names without a host."
    )
    pull_concurrency: int = Field(2, ge=1, le=16, description="Pulls that run at the same time, beside other jobs.")
    pull_connections: int = Field(4, ge=1, le=16, description="Connections that one pull fetches over.")
    pull_bytes_per_second: int = Field(
        0, ge=0, le=1 << 40, description="Most bytes a second that all pulls bring together; 0: no limit."
    )
    pull_stall_seconds: float = Field(
        30.0, ge=1, le=3600, description="Seconds that a connection of a pull may bring nothing before it is replaced."
    )

    # --- limits of HTTP
    max_body_bytes: int = Field(2 * MIB, ge=1024, le=256 * MIB, description="Largest JSON body, in bytes.")
    max_upload_bytes: int = Field(256 * GIB, ge=1024, le=1 << 50, description="Largest uploaded blob, in bytes.")
    body_read_timeout_seconds: float = Field(
        30.0, ge=0.1, le=3600, description="Seconds a JSON body may take to arrive, and an upload may stand still."
    )
    stream_stall_seconds: float = Field(
        30.0, ge=0.1, le=3600, description="Seconds a client may leave its stream unread before it is cut off."
    )
    stored_responses: int = Field(
        1000, ge=0, le=1_000_000, description="Most responses of /v1/responses that are kept in memory; 0: none."
    )
    stored_responses_bytes: int = Field(
        64 * MIB, ge=0, le=1 << 40, description="Most bytes of them, each with the conversation before it."
    )
    stored_responses_seconds: float = Field(
        86400.0, ge=0, le=365 * 86400, description="Seconds after which a response that is kept is forgotten."
    )

    @field_validator("api_keys", "allowed_hosts", "import_folders", "pull_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _long_enough(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if len(text) < MINIMUM_KEY_LENGTH or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError(
                    f"a key needs at least {MINIMUM_KEY_LENGTH} printable ASCII characters without spaces; "
                    "make one with: openssl rand -hex 24"
                )
        return keys

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        folded = tuple(host.lower() for host in hosts)
        for host in folded:
            if not _HOST.fullmatch(host):
                raise ValueError("an allowed host is a name or an address without scheme, port or *")
        return folded

    @field_validator("pull_hosts")
    @classmethod
    def _host_patterns(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_host_pattern(host) for host in hosts)

    @field_validator("hub_url", "registry_url")
    @classmethod
    def _origins(cls, url: str) -> str:
        return check_origin(url)

    @field_validator("hub_token")
    @classmethod
    def _visible(cls, token: SecretStr | None) -> SecretStr | None:
        text = "" if token is None else token.get_secret_value()
        if not text.isascii() or not all("!" <= letter <= "~" for letter in text):
            raise ValueError("a token has visible ASCII characters only")
        return token

    @field_validator("import_folders")
    @classmethod
    def _absolute_folders(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        expanded = tuple(os.path.expanduser(folder) for folder in folders)
        for folder in expanded:
            # A relative one would mean another folder wherever the server is started.
            if not os.path.isabs(folder) or "\0" in folder:
                raise ValueError("a folder is given by its absolute path, or from ~/")
        return expanded

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines and no key is set; "
                "set QUANTRY_API_KEYS, or bind 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _quantized_values(self) -> Self:
        if self.flash_attention == "off" and self.cache_type_v not in ("auto", "f16"):
            raise ValueError(
                f"values in {self.cache_type_v} need flash attention; set QUANTRY_FLASH_ATTENTION=auto, or "
                "QUANTRY_CACHE_TYPE_V=f16"
            )
        return self

    @property
    def database(self) -> str:
        """The database URL, with its default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'quantry.db'}"

    @property
    def blob_folder(self) -> Path:
        """Where the blobs lie."""
        return self.home / "blobs"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, `overrides` (those that are not None) on top.

    Raises InvalidParameter with one line for each bad value.
    """
    unknown = _unknown_variables(os.environ)
    if unknown:
        raise InvalidParameter("\n".join(unknown))
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidParameter("\n".join(_lines(error))) from None


def is_loopback(host: str) -> bool:
    """True for `localhost` and for loopback addresses: nothing outside this machine reaches them."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    # A misspelt variable that is quietly ignored can leave a server open that its owner thinks is locked.
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    lines = []
    for name in sorted(environ):
        folded = name.upper()
        foreign = folded in FOREIGN_NAMES or folded.startswith(FOREIGN_PREFIXES)
        if folded.startswith(PREFIX) and folded not in known and not foreign:
            near = closest(folded, known, limit=1)
            hint = f"did you mean {near[0]}?" if near else "`quantry serve --help` lists the settings."
            lines.append(f"{name} is no setting; {hint}")
    return lines


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        field = str(problem["loc"][0]) if problem["loc"] else ""
        if field in Settings.model_fields:
            what = Settings.model_fields[field].description
            lines.append(f"{PREFIX}{field.upper()}: {message[0].lower()}{message[1:]}. ({what})")
        elif field:
            lines.append(f"{field} is no setting.")
        else:
            lines.append(f"{message[0].upper()}{message[1:]}.")
    return lines
