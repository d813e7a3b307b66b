"""What a hub says of a repository is held to what was asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from service.domain.addresses import HubAddress
from service.domain.errors import RemoteFailed
from service.domain.remote import RemoteAccess
from service.remote import hub
from service.remote.patience import Patience

COMMIT = "a" * 40


def looked_up(sha, revision):
    found = hub._Repository(sha, [hub._Sibling("m-F16.gguf", 4)])
    network = SimpleNamespace(access=RemoteAccess(), json=lambda url, kind: found)
    return hub.look_up(HubAddress("o/r", None, revision), network, Patience(tries=1))


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_branch_means_the_commit_that_the_hub_names_and_a_commit_itself(revision):
    model, files = looked_up(COMMIT, revision)
    assert model.revision == COMMIT
    assert files[0].url.endswith(f"/o/r/resolve/{COMMIT}/m-F16.gguf")


@pytest.mark.parametrize(("sha", "revision"), [("b" * 40, COMMIT), ("main", None), ("../../x", "v1"), ("", None)])
def test_another_commit_than_was_asked_for_and_what_is_none_are_refused(sha, revision):
    with pytest.raises(RemoteFailed):
        looked_up(sha, revision)


@pytest.mark.parametrize(
    ("config", "is_lossy"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, True),
        ({"quantization_config": None}, False),
        ({"quantization_config": []}, False),
        (None, False),
        ("config", False),
    ],
)
def test_a_checkpoint_that_is_quantized_itself_is_said_to_be_lossy(config, is_lossy):
    files = [hub._Sibling(name, 4) for name in ("config.json", "model.safetensors", "m-Q8_0.gguf")]
    found = hub._Repository(COMMIT, files, config=config)
    network = SimpleNamespace(access=RemoteAccess(), json=lambda url, kind: found)
    model, _ = hub.look_up(HubAddress("o/r", None, None), network, Patience(tries=1))
    assert {level.level: level.lossy_source for level in model.levels} == {"Q8_0": False, "F16": is_lossy}
