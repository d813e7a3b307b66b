"""What a server that pulls may reach, in whatever dress an address comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.addresses import HubAddress, RegistryAddress, parse_address
from service.domain.errors import Forbidden
from service.domain.reach import admit, check_host_pattern, check_origin, is_ip, is_public, origin_of
from service.domain.remote import DEFAULT_HOSTS, RemoteAccess


def test_each_kind_of_address_is_asked_at_its_own_place():
    access = RemoteAccess(hosts=("http://127.0.0.1:90",), hub="https://hub", registry="https://registry")
    assert origin_of(HubAddress("o/r"), access) == "https://hub"
    for written, origin in (
        ("m", "https://registry"),
        ("r.example.org/o/m", "https://r.example.org"),
        ("127.0.0.1:90/o/m", "http://127.0.0.1:90"),
        ("https://h.org/x.gguf", "https://h.org/x.gguf"),
    ):
        assert origin_of(parse_address(written), access) == origin
    assert isinstance(parse_address("m"), RegistryAddress)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/x", "https://hf.co", "https://cas-bridge.xethub.hf.co/x", "https://HF.co./x",
        "https://cdn-lfs.huggingface.co:443/x", "https://registry.ollama.ai/v2/", "https://us.aws.cdn.hf.co/x",
        "https://dd20bb891979d25aebc8bec07b2b3bbc.r2.cloudflarestorage.com/x",
    ],
)  # fmt: skip
def test_listed_names_are_reached_over_https(url):
    assert not admit(url, DEFAULT_HOSTS).trusted


@pytest.mark.parametrize(
    "url",
    [
        "http://hf.co/x", "https://hf.co:444/x", "https://hf.co.evil.org/x", "https://evilhf.co/x", "https://u@hf.co/x",
        "https://127.0.0.1/x", "https://169.254.169.254/x", "https://[::1]/x", "https://2130706433/x",
        "https://0x7f000001/x", "https://0/x", "https://localhost/x", "https:///x", "file:///etc/passwd", "x",
        "https://other.r2.cloudflarestorage.com/x", "https://r2.cloudflarestorage.com/x",
        "https://hf.co%2eevil.org/x", "https://hf.co\\@evil.org/x", "https://[::ffff:127.0.0.1]/x", "https://hf.co:x/",
    ],
)  # fmt: skip
def test_everything_else_is_not_reached(url):
    with pytest.raises(Forbidden) as refused:
        admit(url, DEFAULT_HOSTS)
    assert "etc/passwd" not in refused.value.message


def test_a_whole_origin_is_trusted_as_it_is_and_nothing_beside_it():
    hosts = ("http://127.0.0.1:8900", "https://mirror.lan")
    assert admit("http://127.0.0.1:8900/x", hosts).trusted
    assert admit("https://mirror.lan/x", hosts).trusted
    for url in ("http://127.0.0.1:8901/x", "https://127.0.0.1:8900/x", "http://mirror.lan/x", "https://a.mirror.lan/x"):
        with pytest.raises(Forbidden):
            admit(url, hosts)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::",
        "2002:a00:1::1", "2001:db8::1", "240.0.0.1", "fec0::1", "64:ff9b:1::808:808", "5f00::1",
    ],
)  # fmt: skip
def test_private_addresses_are_known_in_every_dress(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address):
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_what_it_embeds(address):
    assert is_public(f"::ffff:{address}") == is_public(str(address))
    if not is_public(str(address)):
        assert not is_public(f"64:ff9b::{address}")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "0", "[::1]", "::1", "0x7f000001"])
def test_every_spelling_of_an_address_is_known_as_one(host):
    assert is_ip(host)


def test_settings_take_names_patterns_and_origins():
    assert check_host_pattern("*.HF.co") == "*.hf.co"
    assert check_host_pattern("http://127.0.0.1:80/") == "http://127.0.0.1"
    assert check_origin("https://Mirror.lan:8443") == "https://mirror.lan:8443"
    for wrong in ("*", "localhost", "*.co.*", "127.0.0.1", "2130706433", "hf.co/x", "ftp://x", "http://u:p@x", "a b"):
        with pytest.raises(ValueError, match=r"host|origin"):
            check_host_pattern(wrong)
