"""The level of a model in a registry: its tag's, else its config's, where that can be read."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from service.domain.addresses import RegistryAddress, parse_address
from service.domain.remote import RemoteAccess
from service.remote import registry
from service.remote.patience import Patience

URL = "http://127.0.0.1:9"
MODEL = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "1" * 64, "size": 9}


class Registry:
    """Answers with one manifest, and one config for whatever blob is asked for."""

    def __init__(self, manifest, config):
        self.access = RemoteAccess(hosts=(URL,), registry=URL)
        self._manifest, self._config = json.dumps(manifest).encode(), config
        self.asked = 0

    @contextmanager
    def get(self, url, headers=None, *, may_leave=True):
        self.asked += "/blobs/" in url
        body = self._config if "/blobs/" in url else self._manifest
        yield SimpleNamespace(status=200, content=lambda limit_bytes: body, headers={})


def level(config, tag="latest", **layer):
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    network = Registry({"layers": [MODEL], "config": {"digest": digest, "size": len(config), **layer}}, config)
    address = parse_address(f"ns/model:{tag}")
    assert isinstance(address, RegistryAddress)
    return registry.look_up(address, network, Patience(tries=1)).levels[0].level, network.asked


def test_a_level_that_the_tag_does_not_say_is_read_from_the_config():
    assert level(b'{"model_format": "gguf", "file_type": "Q4_K_M"}') == ("Q4_K_M", 1)
    assert level(b'{"file_type": "Q4_K_M"}', tag="7b-q8_0") == ("Q8_0", 0)


@pytest.mark.parametrize(
    "config", [b"", b"{}", b'{"file_type": 2}', b'{"file_type": "unknown"}', b"[" * 5000, b"\xff", b"null"]
)
def test_a_config_that_says_nothing_leaves_the_level_to_the_file(config):
    assert level(config)[0] == "UNKNOWN"


@pytest.mark.parametrize(
    "layer", [{"size": 1 << 40}, {"size": "1"}, {"digest": "sha256:0"}, {"digest": MODEL["digest"]}]
)
def test_a_config_that_is_large_or_not_what_the_manifest_says_is_not_believed(layer):
    assert level(b'{"file_type": "Q4_K_M"}', **layer)[0] == "UNKNOWN"


def test_a_manifest_whose_config_is_none_is_read_all_the_same():
    network = Registry({"layers": [MODEL], "config": "?"}, b"")
    assert registry.look_up(parse_address("ns/model"), network, Patience(tries=1)).levels[0].level == "UNKNOWN"
