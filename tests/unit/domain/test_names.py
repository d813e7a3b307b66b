"""Promises of the name grammar: what people type is read, canonical forms are stable, tricks are refused."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidName
from service.domain.names import (
    DEFAULT_HOST,
    DEFAULT_NAMESPACE,
    check_not_reserved,
    closest,
    parse_digest,
    parse_ref,
    split_tag,
)
from service.domain.quants import ALIASES, QUANTIZATIONS

WORD = string.ascii_letters + string.digits + "_"


def part(extra: str, most: int = 80) -> st.SearchStrategy[str]:
    return st.builds(
        lambda first, rest: first + rest,
        st.sampled_from(WORD),
        st.text(alphabet=WORD + extra, max_size=min(most, 30) - 1),
    )


MODELS = part(".-")
NAMESPACES = part("-")
HOSTS = part(".-").filter(lambda host: host.lower() != DEFAULT_HOST)
TAGS = part(".-")
LABELS = st.sampled_from(sorted({*QUANTIZATIONS, *ALIASES}))


@pytest.mark.parametrize(
    ("text", "host", "namespace", "model", "tag", "flavour", "label"),
    [
        ("smollm2", DEFAULT_HOST, "library", "smollm2", None, "", None),
        ("smollm2:latest", DEFAULT_HOST, "library", "smollm2", "latest", "", None),
        ("smollm2:Latest", DEFAULT_HOST, "library", "smollm2", "Latest", "", None),
        ("smollm2:q4_K_M", DEFAULT_HOST, "library", "smollm2", "q4_K_M", "", "Q4_K_M"),
        ("smollm2:Q4_K", DEFAULT_HOST, "library", "smollm2", "Q4_K", "", "Q4_K_M"),
        ("smollm2:q3_k", DEFAULT_HOST, "library", "smollm2", "q3_k", "", "Q3_K_M"),
        ("smollm2:135m-instruct-q4_K_M", DEFAULT_HOST, "library", "smollm2", "135m-instruct-q4_K_M", "135m-instruct",
         "Q4_K_M"),
        ("smollm2:135m-instruct", DEFAULT_HOST, "library", "smollm2", "135m-instruct", "135m-instruct", None),
        ("llama2:7b-chat-q8_0", DEFAULT_HOST, "library", "llama2", "7b-chat-q8_0", "7b-chat", "Q8_0"),
        ("llama3.2:1b-fp16", DEFAULT_HOST, "library", "llama3.2", "1b-fp16", "1b-fp16", None),
        ("llama3.2:1b-f16", DEFAULT_HOST, "library", "llama3.2", "1b-f16", "1b", "F16"),
        ("owner/model", DEFAULT_HOST, "owner", "model", None, "", None),
        ("owner/model:prod", DEFAULT_HOST, "owner", "model", "prod", "prod", None),
        ("hf.co/owner/model:IQ4_XS", "hf.co", "owner", "model", "IQ4_XS", "", "IQ4_XS"),
        ("localhost:5000/owner/model", "localhost:5000", "owner", "model", None, "", None),
        ("localhost:5000/owner/model:q6_k", "localhost:5000", "owner", "model", "q6_k", "", "Q6_K"),
        ("https://registry.ollama.ai/library/gloss:F16", DEFAULT_HOST, "library", "gloss", "F16", "", "F16"),
        ("Mixtral:8x7b-mxfp4", DEFAULT_HOST, "library", "Mixtral", "8x7b-mxfp4", "8x7b", "MXFP4_MOE"),
        ("m:q4_k_m-fixed", DEFAULT_HOST, "library", "m", "q4_k_m-fixed", "q4_k_m-fixed", None),
    ],
)  # fmt: skip
def test_names_as_people_type_them(
    text: str, host: str, namespace: str, model: str, tag: str | None, flavour: str, label: str | None
) -> None:
    ref = parse_ref(text)
    assert (ref.key.host, ref.key.namespace, ref.key.model) == (host, namespace, model)
    assert (ref.tag, ref.flavour, ref.label) == (tag, flavour, label)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("smollm2", "smollm2"),
        ("library/smollm2:q4_k", "smollm2:Q4_K_M"),
        ("registry.ollama.ai/library/smollm2:135m-q4_0", "smollm2:135m-Q4_0"),
        ("REGISTRY.ollama.AI/Library/SmolLM2:prod", "SmolLM2:prod"),
        ("me/smollm2:f16", "me/smollm2:F16"),
        ("hf.co/library/m", "hf.co/library/m"),
    ],
)
def test_the_canonical_form_is_the_shortest(text: str, shown: str) -> None:
    assert parse_ref(text).display == shown


def test_auto_wants_what_is_recommended_and_can_be_no_name() -> None:
    assert parse_ref("gloss:Auto").wants_recommended
    assert not any(parse_ref(name).wants_recommended for name in ("gloss", "auto", "gloss:latest", "gloss:auto-q4_k"))
    check_not_reserved("automatic")
    with pytest.raises(InvalidName, match="reserved"):
        check_not_reserved("AUTO")


def test_a_bare_name_and_latest_want_the_default() -> None:
    assert parse_ref("m").wants_default
    assert parse_ref("m:LATEST").wants_default
    assert not parse_ref("m:prod").wants_default
    assert not parse_ref("m:Q8_0").wants_default


TRICKS = (
    "", ":", "/", "//", "m:", ":tag", "/m", "m/", "a//m", "a/b/c/d", ".", "..", "../m", "../../etc/passwd", "a/../m",
    "m:..", "m:../x", "m:.x", "-m", ".m", "a/-m", "m:-x", "m\0", "m\n", "m:x\n", "\nm", " m", "m ", "m x", "m:x y",
    "m\\x", "C:\\m", "C:/m/x/y/z", "m%2e%2e", "m:x%00", "m?x", "m#x", "m&x", "m;x", "m|x", "m$x", "m`x`", "m*", "m~",
    "na.me/m", "a/m@sha256:" + "0" * 64, "m@x", "m\u00f6del", "m:\uff514", "m\u202e", "m\u200b", "\ufb00",
    "\u212a", "http://", "://m:x/",
    "m" * 81, "m:" + "t" * 81, "n" * 81 + "/m", "h" * 351 + "/n/m", "file:///etc/passwd/x/y",
)  # fmt: skip


@pytest.mark.parametrize("text", TRICKS, ids=range(len(TRICKS)))
def test_tricks_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        parse_ref(text)
    assert caught.value.message.endswith(".")
    assert len(text) < 6 or text not in caught.value.message


@given(st.text(max_size=120))
def test_whatever_is_accepted_is_safe_in_paths_urls_and_logs(text: str) -> None:
    try:
        ref = parse_ref(text)
    except InvalidName:
        return
    parts = [ref.key.host, ref.key.namespace, ref.key.model, *([] if ref.tag is None else [ref.tag])]
    for piece in parts:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", piece, re.ASCII)
        assert piece not in (".", "..")
    assert ":" not in ref.key.model + ref.key.namespace + (ref.tag or "")


@given(HOSTS | st.none(), NAMESPACES, MODELS, TAGS | LABELS | st.none())
def test_canonical_forms_are_read_back_as_themselves(
    host: str | None, namespace: str, model: str, tag: str | None
) -> None:
    path = f"{namespace}/{model}" if host is None else f"{host}/{namespace}/{model}"
    ref = parse_ref(path if tag is None else f"{path}:{tag}")
    again = parse_ref(ref.display)
    assert again.display == ref.display
    assert again.key.folded == ref.key.folded
    assert (again.flavour, again.label) == (ref.flavour, ref.label)
    if namespace.lower() != DEFAULT_NAMESPACE:
        assert again.key == ref.key


@given(NAMESPACES, MODELS, TAGS | LABELS)
def test_case_makes_no_other_model_and_no_other_label(namespace: str, model: str, tag: str) -> None:
    text = f"{namespace}/{model}:{tag}"
    one, other = parse_ref(text.upper()), parse_ref(text.lower())
    assert one.key.folded == other.key.folded
    assert one.label == other.label
    assert one.flavour.lower() == other.flavour.lower()


@given(part(".-"), LABELS)
def test_a_flavour_ends_at_the_dash_before_the_label(flavour: str, label: str) -> None:
    found = split_tag(f"{flavour}-{label.lower()}")
    assert found == (flavour, ALIASES.get(label, label))


def test_digests_are_sha256_in_lower_case() -> None:
    good = "sha256:" + "0123456789abcdef" * 4
    assert parse_digest(good) == good
    for bad in (good.upper(), good[:-1], good + "0", good + "\n", "sha256-" + good[7:], good[7:], "md5:" + "0" * 32,
                "sha256:../" + "0" * 61, "sha256:" + "\u0660" * 64, "", "sha256:"):  # fmt: skip
        with pytest.raises(InvalidName):
            parse_digest(bad)


def test_the_closest_names_are_offered() -> None:
    known = ["smollm2:Q4_K_M", "smollm2:Q8_0", "gloss:F16"]
    assert closest("smolm2:q4_k_m", known)[0] == "smollm2:Q4_K_M"
    assert closest("zzzzzz", known) == []
    assert len(closest("smollm2", [f"smollm{index}" for index in range(20)])) <= 5
