"""A hub, a registry and a file server in one, on this machine, that misbehave as they are told.

    with FakeHub() as hub:
        hub.add("o/r", {"model-F16.gguf": data})
        hub.faults["model-F16.gguf"] = [Fault.DROP, Fault.DROP]     # one for each request of the file, then it is good
        hub.always["model-F16.gguf"] = Fault.SHORT

Every request is kept (`requests`), with the bytes that were sent for it (`sent`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class Fault(Enum):
    """What a request of a file meets."""

    NONE = auto()
    DROP = auto()  # half of what was asked for, then the connection breaks
    SHORT = auto()  # a body shorter than it says, each time
    ENDLESS = auto()  # no length, and no end
    WRONG = auto()  # as many bytes, others
    STALL = auto()  # some bytes, then silence
    TRICKLE = auto()  # a byte now and then
    PRIVATE = auto()  # sends on to a private address
    ELSEWHERE = auto()  # sends on to `hub.elsewhere`
    LOOP = auto()  # sends on to itself
    BUSY = auto()  # 429 with Retry-After
    ERROR = auto()  # 503
    NO_RANGES = auto()  # the whole file, whatever was asked for
    UNKNOWN_LENGTH = auto()  # the whole file until the connection ends
    OTHER_RANGE = auto()  # another range than asked for
    GZIP = auto()  # a compressed body
    BAD_ETAG = auto()  # ../../x
    GATED = auto()  # 403
    GONE = auto()  # 404
    HTML = auto()  # a page, with status 200


@dataclass
class Seen:
    """A request."""

    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class FakeHub:
    """See above. `slow_seconds` is slept before each 64 KiB of a file."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # by path, of the file server
    manifests: dict[str, bytes] = field(default_factory=dict)  # "ns/model:tag" -> manifest
    blobs: dict[str, bytes] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)  # file -> the digest that is listed for it
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = ""
    elsewhere: str = ""
    realm: str = ""  # of a registry that asks for a token
    slow_seconds: float = 0.0
    retry_after: str = "0"
    etag: str | None = '"one"'
    requests: list[Seen] = field(default_factory=list)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def settings(self) -> dict[str, str]:
        """Of a server that pulls from here."""
        return {"QUANTRY_PULL_HOSTS": self.url, "QUANTRY_HUB_URL": self.url, "QUANTRY_REGISTRY_URL": self.url}

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        self.repos[repo] = files

    def add_model(self, name: str, data: bytes, media_type: str = "application/vnd.ollama.image.model") -> str:
        """A model of the registry under `ns/model:tag`; its blob's digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        layers = [
            {"mediaType": media_type, "digest": self.lies.get(name, digest), "size": len(data)},
            {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 3},
        ]
        manifest = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
        self.manifests[name] = manifest
        self.manifests[f"{name.partition(':')[0]}:sha256:{hashlib.sha256(manifest).hexdigest()}"] = manifest
        return digest

    def sent(self, name: str = "") -> int:
        """Bytes that were sent for files whose path ends so."""
        return sum(seen.sent for seen in self.requests if seen.path.endswith(name))

    def asked(self, name: str) -> list[Seen]:
        return [seen for seen in self.requests if seen.path.endswith(name)]

    def next_fault(self, name: str) -> Fault:
        with self._lock:
            waiting = self.faults.get(name)
            if waiting:
                return waiting.pop(0)
            return self.always.get(name, Fault.NONE)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        seen = Seen(path, {name.lower(): value for name, value in self.headers.items()})
        self.hub.requests.append(seen)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._repository(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[0-9a-f]{40}/(.+)", path):
            self._file(seen, match[2], self.hub.repos.get(match[1], {}).get(match[2]))
        elif match := re.fullmatch(r"/v2/([^/]+/[^/]+)/manifests/(.+)", path):
            self._manifest(f"{match[1]}:{match[2]}")
        elif match := re.fullmatch(r"/v2/([^/]+/[^/]+)/blobs/(.+)", path):
            is_public = not self.hub.realm or self.headers.get("Authorization") == "Bearer for-everybody"
            self._file(seen, match[2], self.hub.blobs.get(match[2])) if is_public else self._empty(401, {})
        elif path == "/token":
            self._json({"token": "for-everybody"})
        else:
            self._file(seen, path.rpartition("/")[2], self.hub.files.get(path))

    def _repository(self, repo: str, revision: str) -> None:
        fault = self.hub.next_fault(repo)
        if fault is Fault.BUSY:
            return self._empty(429, {"Retry-After": self.hub.retry_after})
        if fault is Fault.GZIP:
            return self._bytes(gzip.compress(b"0" * 10_000_000), {"Content-Encoding": "gzip"})
        if fault is Fault.ENDLESS:
            return self._endless(Seen("", {}))
        if repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._empty(401, {})
        if repo not in self.hub.repos or revision not in ("main", self.hub.commits.get(repo, COMMIT)):
            return self._empty(404, {})
        siblings = []
        for name, data in self.hub.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data)}
            if name.endswith((".gguf", ".safetensors")):
                digest = self.hub.lies.get(name, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            entry["blobId"] = hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
            siblings.append(entry)
        return self._json({"id": repo, "sha": self.hub.commits.get(repo, COMMIT), "siblings": siblings, "gated": False})

    def _manifest(self, name: str) -> None:
        if self.hub.realm and self.headers.get("Authorization") != "Bearer for-everybody":
            challenge = f'Bearer realm="{self.hub.realm}",service="s",scope="repository:x:pull"'
            return self._empty(401, {"WWW-Authenticate": challenge})
        manifest = self.hub.manifests.get(name)
        return self._empty(404, {}) if manifest is None else self._bytes(manifest, {})

    def _file(self, seen: Seen, name: str, data: bytes | None) -> None:
        fault = self.hub.next_fault(name.rpartition("/")[2])
        if data is None or fault is Fault.GONE:
            return self._empty(404, {})
        match fault:
            case Fault.PRIVATE:
                return self._empty(302, {"Location": "http://169.254.169.254/latest/meta-data"})
            case Fault.ELSEWHERE:
                return self._empty(302, {"Location": f"{self.hub.elsewhere}{self.path}"})
            case Fault.LOOP:
                return self._empty(302, {"Location": self.path})
            case Fault.BUSY:
                return self._empty(429, {"Retry-After": self.hub.retry_after})
            case Fault.ERROR:
                return self._empty(503, {})
            case Fault.GATED:
                return self._empty(403, {})
            case Fault.GZIP:
                return self._bytes(gzip.compress(data), {"Content-Encoding": "gzip"})
            case Fault.ENDLESS:
                return self._endless(seen)
            case Fault.HTML:
                return self._bytes(b"<!doctype html><html>log in</html>", {"Content-Type": "text/html"})
        if fault is Fault.WRONG:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return self._ranged(seen, data, fault)

    def _ranged(self, seen: Seen, data: bytes, fault: Fault) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", ""))
        etag = "../../x" if fault is Fault.BAD_ETAG else self.hub.etag
        changed = "if-range" in seen.headers and seen.headers["if-range"] != etag
        start, stop = 0, len(data)
        if wanted and not changed and fault not in (Fault.NO_RANGES, Fault.UNKNOWN_LENGTH):
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            if start >= len(data):
                return self._empty(416, {"Content-Range": f"bytes */{len(data)}"})
            if fault is Fault.OTHER_RANGE:
                start = max(0, start - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        if etag is not None:
            self.send_header("ETag", etag)
        if fault is Fault.UNKNOWN_LENGTH:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        body = data[start:stop]
        if fault in (Fault.DROP, Fault.SHORT, Fault.STALL):
            body = body[: len(body) // 2]
        if fault is Fault.TRICKLE:
            for byte in body:
                self._write(seen, bytes([byte]))
                if self.hub.closing.wait(0.05):
                    break
        else:
            for at in range(0, len(body), 65536):
                if self.hub.slow_seconds:
                    time.sleep(self.hub.slow_seconds)
                self._write(seen, body[at : at + 65536])
        if fault is Fault.STALL:
            self.hub.closing.wait(20)
        if fault in (Fault.DROP, Fault.SHORT, Fault.STALL, Fault.TRICKLE):
            self.close_connection = True
        return None

    def _endless(self, seen: Seen) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while not self.hub.closing.is_set():
            self._write(seen, b"GGUF" * 16384)

    def _write(self, seen: Seen, chunk: bytes) -> None:
        self.wfile.write(chunk)
        self.wfile.flush()
        seen.sent += len(chunk)

    def _json(self, value: Any) -> None:
        self._bytes(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _bytes(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
