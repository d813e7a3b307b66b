"""Addresses: one meaning and one spelling each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.addresses import FileAddress, parse_address, pinned_address
from service.domain.errors import InvalidName, InvalidParameter, QuantryError
from service.domain.names import parse_ref

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
            "hf.co/owner/repo:sub/m-Q4_0.gguf",
            "hf.co/owner/repo",
        ),
        ("hf.co/owner/repo:sub/m-Q4_0.gguf", "hf.co/owner/repo:sub/m-Q4_0.gguf", "hf.co/owner/repo"),
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
        "hf.co/o/r:a/b", "hf.co/o/r:../b.gguf", "hf.co/o/r:a/../b.gguf", "hf.co/o/r:a//b.gguf",
        "hf.co/o/r@../x", "hf.co/o/r@a//b", "hf.co/o/r\n", "hf.co/ö/r", "hf.co/o/r?x=1",
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
