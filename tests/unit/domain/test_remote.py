"""Addresses: one meaning and one spelling each; and what a server that pulls may reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import Forbidden, InvalidName, InvalidParameter, QuantryError
from service.domain.names import parse_ref
from service.domain.remote import (
    DEFAULT_HOSTS,
    FileAddress,
    HubAddress,
    RegistryAddress,
    RemoteAccess,
    admit,
    check_host_pattern,
    check_origin,
    is_ip,
    is_public,
    origin_of,
    parse_address,
    pinned_address,
)

COMMIT = "a" * 40
DIGEST = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("written", "display", "name"),
    [
        ("hf.co/owner/repo", "hf.co/owner/repo", "hf.co/owner/repo"),
        ("HF.co/owner/repo:q4_k", "hf.co/owner/repo:Q4_K_M", "hf.co/owner/repo"),
        ("hf.co/owner/repo:latest", "hf.co/owner/repo", "hf.co/owner/repo"),
        ("hf.co/owner/repo@main", "hf.co/owner/repo", "hf.co/owner/repo"),
        ("huggingface.co/owner/repo:Q8_0@v1.0", "hf.co/owner/repo:Q8_0@v1.0", "hf.co/owner/repo"),
        ("hf://owner/repo@refs/pr/3", "hf.co/owner/repo@refs/pr/3", "hf.co/owner/repo"),
        ("hf.co/owner/repo:UD-Q4_K_XL", "hf.co/owner/repo:UD-Q4_K_XL", "hf.co/owner/repo:UD-Q4_K_XL"),
        ("hf.co/owner/repo:m-Q4_0.gguf", "hf.co/owner/repo:m-Q4_0.gguf", "hf.co/owner/repo"),
        ("hf.co/owner/repo:safetensors", "hf.co/owner/repo:safetensors", "hf.co/owner/repo"),
        ("https://huggingface.co/owner/repo", "hf.co/owner/repo", "hf.co/owner/repo"),
        ("https://huggingface.co/owner/repo/tree/v2", "hf.co/owner/repo@v2", "hf.co/owner/repo"),
        (
            "https://huggingface.co/owner/repo/resolve/main/sub/m-Q4_0.gguf",
            "hf.co/owner/repo:m-Q4_0.gguf",
            "hf.co/owner/repo",
        ),
        ("https://h.example.org/a/m-Q4_0.gguf", "https://h.example.org/a/m-Q4_0.gguf", "m"),
        ("HTTPS://H.example.org:8443/words.gguf", "https://h.example.org:8443/words.gguf", "words"),
        ("http://[::1]:90/m-BF16-00001-of-00002.gguf", "http://[::1]:90/m-BF16-00001-of-00002.gguf", "m"),
        ("llama3.2", "llama3.2:latest", "llama3.2"),
        ("Someone/llama3.2:1B", "Someone/llama3.2:1B", "Someone/llama3.2:1B"),
        ("llama3.2:1b-instruct-q4_K_M", "llama3.2:1b-instruct-q4_K_M", "llama3.2:1b-instruct"),
        ("registry.ollama.ai/library/llama3.2:1b", "llama3.2:1b", "llama3.2:1b"),
        ("models.example.org/team/m:q8_0", "models.example.org/team/m:q8_0", "models.example.org/team/m"),
        (f"m:1b@{DIGEST}", f"m:1b@{DIGEST}", "m:1b"),
    ],
)
def test_an_address_has_one_canonical_form_and_a_name_to_go_with_it(written, display, name):
    address = parse_address(written)
    assert (address.display, address.name) == (display, name)
    assert parse_address(display) == address
    parse_ref(name)


@pytest.mark.parametrize(
    "written",
    [
        "", " ", "hf.co/owner", "hf.co/owner/repo/file.gguf", "hf.co/../repo", "hf.co/o/..", "hf.co/o/r:", "hf.co/o/r@",
        "hf.co/o/r:a/b", "hf.co/o/r@../x", "hf.co/o/r@a//b", "hf.co/o/r\n", "hf.co/ö/r", "hf.co/o/r?x=1",
        "https://h/x.bin", "https://h/x.gguf?token=1", "https://h/x.gguf#1", "https://u:p@h/x.gguf", "https:///x.gguf",
        "https://h/a/../x.gguf", "https://h/%2e%2e/x.gguf", "https://h:99999/x.gguf", "ftp://h/x.gguf",
        "file:///x.gguf", "a/b/c/d", "m@sha256:1", "https://huggingface.co/o", "https://huggingface.co/datasets/o/r",
        "x" * 1001,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(written):
    with pytest.raises(InvalidParameter):
        parse_address(written)


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_refused(text):
    try:
        address = parse_address(text)
    except InvalidParameter:
        return
    assert parse_address(address.display) == address


@given(st.from_regex(r"(hf\.co/|https://h/)?[A-Za-z0-9._:@/%-]{1,60}(\.gguf)?", fullmatch=True))
def test_what_looks_like_an_address_comes_back_the_same(text):
    try:
        address = parse_address(text)
    except QuantryError:
        return
    assert parse_address(address.display) == address
    try:
        parse_ref(address.name)
    except InvalidName:
        return  # a name has to be given


def test_a_pinned_address_means_the_same_bytes_for_ever():
    assert pinned_address("hf.co/o/r:Q8_0@main", COMMIT) == f"hf.co/o/r:Q8_0@{COMMIT}"
    assert pinned_address("m:1b", DIGEST) == f"m:1b@{DIGEST}"
    assert pinned_address("https://h.org/x.gguf", None) == "https://h.org/x.gguf"


def test_a_piece_of_a_split_file_stands_for_all_of_them():
    address = parse_address("https://h.org/a/m-Q4_0-00002-of-00003.gguf")
    assert isinstance(address, FileAddress)
    assert address.urls == tuple(f"https://h.org/a/m-Q4_0-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    wrong = parse_address("https://h.org/m-00009-of-00003.gguf")
    assert isinstance(wrong, FileAddress)
    with pytest.raises(InvalidParameter):
        _ = wrong.urls


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


# --- what may be reached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/x", "https://hf.co", "https://cas-bridge.xethub.hf.co/x", "https://HF.co./x",
        "https://cdn-lfs.huggingface.co:443/x", "https://registry.ollama.ai/v2/",
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
        "2002:a00:1::1", "2001:db8::1", "240.0.0.1",
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
