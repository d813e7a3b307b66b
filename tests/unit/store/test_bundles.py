"""Archives that somebody sends: those of ours are read as they were written, and no other does harm."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.domain.bundles import believed, believed_card, believed_preset
from service.domain.catalog import Adapter, AdapterFacts, FileFacts, Lineage, ModelShape, RemoteOrigin, Variant
from service.domain.errors import DigestMismatch, InvalidModel, InvalidParameter
from service.domain.evaluation import Card, Estimate, Speed, TextFigures
from service.domain.importance import ImportanceFacts, ImportanceMatrix
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.domain.recipes import Recipe, TypeOverride
from service.store.bundles import tar
from service.store.bundles.oci import (
    ADAPTER_CONFIG_TYPE,
    CONFIG_TYPE,
    MATRIX_CONFIG_TYPE,
    Index,
    Manifest,
    blob_name,
    digest_of,
)
from service.store.bundles.packing import Contents, StoredFile, pack
from service.store.bundles.reading import read_bundle

MODELS = {"F16": b"GGUF in full precision", "Q4_K_M": b"GGUF in four bits"}
FACTS = FileFacts("F16", 1_000_000, 16.0, 2_000_000, ModelShape("llama"))
CARD = Card("a machine", "b1", 1.5, TextFigures("text", "sha256:" + "0" * 64, 512, 2, 512, Estimate(9.5, 0.1), None))
SPEED = Speed(4, 128, 500.0, 32, 50.0, 1 << 20)


def variant(number: int, label: str, tags: tuple[str, ...] = (), flavour: str = "") -> Variant:
    content = MODELS[label]
    lineage = (
        Lineage("imported")
        if label == "F16"
        else Lineage("quantized", "sha256:" + "1" * 64, "gloss:F16", Recipe(label))
    )
    return Variant(
        number, parse_ref("gloss").key, flavour, label, digest_of(content), len(content),
        replace(FACTS, quantization=label), lineage, "2026-01-01T00:00:00.000000Z", tags=tags,
    )  # fmt: skip


VARIANTS = [variant(1, "F16"), variant(2, "Q4_K_M", ("latest", "_odd"))]
WITH = {"lora": b"GGUF of an adapter", "imatrix": b"GGUF of an importance matrix"}
AT = "2026-01-02T00:00:00.000000Z"
LORA, IMATRIX = ((digest_of(content), len(content)) for content in WITH.values())
ADAPTER = Adapter(parse_ref("gloss").key, "Lo.gguf", *LORA, AdapterFacts("llama", 4, 8.0, 2, 64), AT)
MATRIX = ImportanceMatrix(*IMATRIX, "gloss", VARIANTS[0].digest, None, ImportanceFacts(1, 8, (), ()), AT)
PRESET = Preset("Be brief.", "{{ x }}", {"top_k": 3, "stop": ["x"]}, parent="gloss:F16", owned=(1, 2, 7))


def packed(variants: list[Variant] | None = None, preset: Preset = PRESET) -> bytes:
    by_digest = {digest_of(content): content for content in (*MODELS.values(), *WITH.values())}
    shown = VARIANTS if variants is None else variants
    presets = {"latest": preset, "gone": preset}
    contents = Contents(shown, {2: replace(CARD, speed=SPEED)}, {}, presets, [ADAPTER], [MATRIX])
    parts = pack(contents).parts
    return b"".join(by_digest[part.digest] if isinstance(part, StoredFile) else part for part in parts)


BUNDLE = packed()


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    def _read(content: bytes) -> Any:
        path = tmp_path / "bundle.tar"
        path.write_bytes(content)
        return read_bundle(str(path))

    return _read


def archived(members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


# --- ours --------------------------------------------------------------------------------------------------------


def test_a_bundle_of_ours_is_read_back(read: Callable[[bytes], Any]) -> None:
    bundle = read(BUNDLE)
    assert bundle.archive_bytes == len(BUNDLE)
    for file, one in zip(bundle.files, VARIANTS, strict=True):
        assert BUNDLE[file.offset : file.offset + file.size_bytes] == MODELS[one.quantization]
        assert file.tag == one.tag
        about = file.about
        assert (about.model, about.flavour, about.quantization, about.tags) == ("gloss", "", one.quantization, one.tags)
        assert (about.facts, about.lineage) == (one.facts, one.lineage)
    assert bundle.files[1].about.card.speed == SPEED
    assert [(bundled.word, bundled.owned) for bundled in bundle.files[1].about.presets] == [
        ("latest", ("F16", "Q4_K_M"))
    ]
    assert bundle.files[1].about.presets[0].preset == replace(PRESET, owned=())
    (adapter,), (matrix,) = bundle.adapters, bundle.matrices
    assert (adapter.about.name, adapter.about.facts) == (ADAPTER.name, ADAPTER.facts)
    assert matrix.about.source_digest == MATRIX.source_digest
    for file, content in ((adapter, WITH["lora"]), (matrix, WITH["imatrix"])):
        assert BUNDLE[file.offset : file.offset + file.size_bytes] == content
    assert len(bundle.stored) == 4


def test_a_reader_that_knows_no_adapters_or_matrices_finds_the_models(read: Callable[[bytes], Any]) -> None:
    # Those of others, and of quantry before it had these: what is no layer of a model is passed over.
    index = msgspec.json.decode(members_of(BUNDLE)["index.json"], type=Index)
    manifests = [
        msgspec.json.decode(members_of(BUNDLE)[blob_name(one.digest)], type=Manifest) for one in index.manifests or ()
    ]
    models = [manifest for manifest in manifests if any(layer.is_gguf for layer in manifest.layers or ())]
    assert len(manifests) == 5
    assert len(models) == 3  # an entry for each name


def test_the_same_variants_in_any_order_are_the_same_bytes() -> None:
    assert packed(VARIANTS[::-1]) == BUNDLE
    assert packed(preset=replace(PRESET, parameters={"stop": ["x"], "top_k": 3}, owned=(2, 1))) == BUNDLE
    assert pack(Contents(VARIANTS)).digest != pack(Contents(VARIANTS[:1])).digest


def test_two_names_of_one_file_carry_its_bytes_once(read: Callable[[bytes], Any]) -> None:
    content = packed([*VARIANTS, variant(3, "F16", flavour="twin")])
    assert content.count(MODELS["F16"]) == 1
    files = read(content).files
    assert [(file.about.flavour, file.offset) for file in files if file.about.quantization == "F16"] == [
        ("", files[0].offset), ("twin", files[0].offset),
    ]  # fmt: skip


def test_only_names_that_the_layout_allows_become_its_tags() -> None:
    index = json.loads(members_of(BUNDLE)["index.json"])
    names = [
        one["annotations"]["org.opencontainers.image.ref.name"] for one in index["manifests"] if "annotations" in one
    ]
    assert names == ["F16", "Q4_K_M", "latest"]


def test_headers_are_what_tar_reads_however_large_the_file() -> None:
    for size in (0, 1, 8**11 - 1, 8**11, 1 << 50):
        block = tar.write_header("blobs/sha256/" + "a" * 64, size)
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        assert (info.name, info.size, info.mtime, info.isreg()) == ("blobs/sha256/" + "a" * 64, size, 0, True)
        assert tar.read_header(block) == tar.Header(info.name, size, tar.FILE)


# --- others' -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_makers_are_read_in_any_order(read: Callable[[bytes], Any], form: int) -> None:
    members = members_of(BUNDLE)
    shuffled = {f"./{name}": members[name] for name in sorted(members, reverse=True)}
    assert len(read(archived({"README": b"not read", **shuffled}, form)).files) == 2


@pytest.mark.parametrize(
    ("begin", "remedy"),
    [(b"\x1f\x8b\x08", "gunzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh9", "bunzip2"), (b"\xfd7zXZ\0", "unxz")],
)
def test_a_compressed_archive_is_refused_with_the_remedy(
    read: Callable[[bytes], Any], begin: bytes, remedy: str
) -> None:
    with pytest.raises(InvalidModel, match=remedy):
        read(begin + bytes(1000))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"L", b"K"]
)
def test_links_devices_sparse_files_and_long_names_are_refused(read: Callable[[bytes], Any], kind: bytes) -> None:
    member = tarfile.TarInfo("blobs/sha256/" + "a" * 64)
    member.type, member.linkname = kind, "../../etc/passwd"
    with pytest.raises(InvalidModel):
        read(member.tobuf(tarfile.USTAR_FORMAT) + BUNDLE)


@pytest.mark.parametrize(
    "attributes", [{"path": "../../x"}, {"linkpath": "x"}, {"GNU.sparse.major": "1"}, {"size": "-1"}, {"size": "1e3"}]
)
def test_attributes_that_make_a_member_another_are_refused(
    read: Callable[[bytes], Any], attributes: dict[str, str]
) -> None:

    body = b"".join(_record(key, value) for key, value in attributes.items())
    info = tarfile.TarInfo("PaxHeaders/x")
    info.type, info.size = b"x", len(body)
    block = info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(tar.padding(len(body)))
    with pytest.raises(InvalidModel):
        read(block + BUNDLE)


def _record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + 2
    return f"{length}{text}".encode()


def test_a_name_twice_is_refused(read: Callable[[bytes], Any]) -> None:
    with pytest.raises(InvalidModel, match="two members"):
        read(archived({"index.json": b"{}"})[:1024] + BUNDLE)


def test_a_size_beyond_the_end_is_refused(read: Callable[[bytes], Any]) -> None:
    with pytest.raises(InvalidModel, match="middle"):
        read(tar.write_header("blobs/sha256/" + "a" * 64, 1 << 60) + BUNDLE)
    with pytest.raises(InvalidModel):
        read(BUNDLE[: len(BUNDLE) // 2])


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_layout_that_is_not_whole_is_refused(read: Callable[[bytes], Any], name: str) -> None:
    members = members_of(BUNDLE)
    del members[name]
    with pytest.raises(InvalidModel, match=name):
        read(archived(members))


def test_a_blob_that_is_missing_or_other_is_refused(read: Callable[[bytes], Any]) -> None:
    for name, content in members_of(BUNDLE).items():
        if not name.startswith("blobs/") or content.startswith(b"GGUF"):
            continue  # the files' bytes are a job's to check
        members = members_of(BUNDLE)
        members[name] = content[:-2] + b" " + content[-1:]
        with pytest.raises((InvalidModel, DigestMismatch)):
            read(archived(members))
        del members[name]
        with pytest.raises(InvalidModel):
            read(archived(members))


@pytest.mark.parametrize(
    "index",
    [
        b"", b"[]", b"nonsense", b'{"schemaVersion": 2}', b'{"schemaVersion": 2, "manifests": null}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": 5, "size": 1}]}',
        b"[" * 100_000, b'{"schemaVersion": 2, "manifests": ' + b"[" * 100_000,
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "", "digest": "../../etc/passwd", "size": 1}]}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "", "digest": "sha256:' + b"a" * 64 + b'", "size": -1}]}',
    ],
    ids=range(10),
)  # fmt: skip
def test_an_index_of_any_kind_is_refused(read: Callable[[bytes], Any], index: bytes) -> None:
    with pytest.raises(InvalidModel):
        read(archived({**members_of(BUNDLE), "index.json": index}))


def test_a_text_that_many_name_is_read_within_a_bound(read: Callable[[bytes], Any]) -> None:
    members = members_of(BUNDLE)
    config = b'{"config": "' + b"a" * (7 << 20) + b'"}'
    put = {blob_name(digest_of(config)): config}
    listed = []
    for number in range(20):
        layer = {
            "mediaType": "application/vnd.docker.ai.gguf.v3",
            "digest": VARIANTS[0].digest,
            "size": len(MODELS["F16"]),
        }
        described = {"mediaType": "application/json", "digest": digest_of(config), "size": len(config)}
        manifest = json.dumps({"schemaVersion": 2, "config": described, "layers": [layer], "n": number}).encode()
        put[blob_name(digest_of(manifest))] = manifest
        listed.append({"mediaType": "", "digest": digest_of(manifest), "size": len(manifest)})
    index = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    with pytest.raises(InvalidModel, match="larger"):
        read(archived({**members, **put, "index.json": index}))


def test_a_split_model_is_refused(read: Callable[[bytes], Any]) -> None:
    members = members_of(BUNDLE)
    manifest = next(
        msgspec.json.decode(text, type=Manifest) for text in members.values() if b'"config":{"mediaType"' in text
    )
    twice = msgspec.json.encode(msgspec.structs.replace(manifest, layers=(manifest.layers or ()) * 2))
    members[blob_name(digest_of(twice))] = twice
    entry = {"mediaType": "", "digest": digest_of(twice), "size": len(twice)}
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with pytest.raises(InvalidModel, match="split"):
        read(archived(members))


def test_what_is_no_file_is_told_without_a_path(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path, Path("/dev/zero"), Path("x\0y")):
        with pytest.raises(InvalidParameter) as refused:
            read_bundle(str(path))
        assert str(tmp_path) not in refused.value.message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(BUNDLE) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, len(BUNDLE)),
)
@example([(156, 0x78)], len(BUNDLE))
def test_no_mutation_of_a_bundle_raises_anything_but_a_refusal(
    read: Callable[[bytes], Any], changes: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(BUNDLE)
    for at, value in changes:
        content[at] = value
    for candidate in (bytes(content), bytes(content[:length])):
        try:
            bundle = read(candidate)
        except (InvalidModel, DigestMismatch):
            continue
        for file in bundle.files:
            assert 0 <= file.offset <= file.offset + file.size_bytes <= len(candidate)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=512, max_size=512) | st.builds(
    lambda name, size, kind, body: _member(name, size, kind) + body,
    st.sampled_from(["index.json", "oci-layout", "./index.json", "x", "blobs/sha256/" + "a" * 64]),
    st.integers(0, 1 << 70), st.sampled_from([b"0", b"\0", b"x", b"g", b"5", b"2", b"L"]), st.binary(max_size=1024),
), max_size=6))  # fmt: skip
def test_no_archive_raises_anything_but_a_refusal(read: Callable[[bytes], Any], blocks: list[bytes]) -> None:
    with pytest.raises(InvalidModel):
        read(b"".join(blocks))


def _member(name: str, size: int, kind: bytes) -> bytes:
    block = bytearray(tar.write_header(name, min(size, (1 << 87) - 1)))
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


# --- what goes with a model --------------------------------------------------------------------------------------


def changed(kind: str, change: Callable[[dict[str, Any]], None], content: bytes = BUNDLE) -> bytes:
    """The bundle with another config of that kind, and every digest made right again."""
    members = members_of(content)
    index = json.loads(members["index.json"])
    for entry in index["manifests"]:
        manifest = json.loads(members[blob_name(entry["digest"])])
        if manifest["config"]["mediaType"] != kind:
            continue
        config = json.loads(members[blob_name(manifest["config"]["digest"])])
        change(config.get("quantry", {}))
        change(manifest)
        text = json.dumps(config).encode()
        manifest["config"] |= {"digest": digest_of(text), "size": len(text)}
        again = json.dumps(manifest).encode()
        entry |= {"digest": digest_of(again), "size": len(again)}
        members |= {blob_name(digest_of(text)): text, blob_name(digest_of(again)): again}
    members["index.json"] = json.dumps(index).encode()
    return archived(members)


@pytest.mark.parametrize("kind", [ADAPTER_CONFIG_TYPE, MATRIX_CONFIG_TYPE])
def test_an_adapter_or_matrix_that_is_not_one_file_is_refused(read: Callable[[bytes], Any], kind: str) -> None:
    for layers in (lambda found: [], lambda found: found * 2, lambda found: [found[0] | {"mediaType": "text/plain"}]):

        def change(said: dict[str, Any], layers: Callable[[Any], Any] = layers) -> None:
            if "layers" in said:
                said["layers"] = layers(said["layers"])

        with pytest.raises(InvalidModel, match="one file"):
            read(changed(kind, change))
    for field, value in (("size", 1), ("digest", "sha256:" + "f" * 64), ("digest", "../../etc/passwd")):

        def other(said: dict[str, Any], field: str = field, value: Any = value) -> None:
            if "layers" in said:
                said["layers"][0][field] = value

        with pytest.raises(InvalidModel):
            read(changed(kind, other))
    for version in (0, 2, "1", None):
        with pytest.raises(InvalidModel):
            read(changed(kind, lambda said, version=version: said.update(version=version)))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 81, "\u0430dapter", "a\0b", 5, None])
def test_an_adapter_by_a_name_that_is_none_is_refused(read: Callable[[bytes], Any], name: Any) -> None:
    with pytest.raises(InvalidModel):
        read(changed(ADAPTER_CONFIG_TYPE, lambda said: said.update(name=name)))


def test_two_adapters_of_one_name_are_refused(read: Callable[[bytes], Any]) -> None:
    members = members_of(BUNDLE)
    index = json.loads(members["index.json"])
    twin = json.loads(members_of(changed(ADAPTER_CONFIG_TYPE, lambda said: said.update(name="lO.GGUF")))["index.json"])
    members |= members_of(changed(ADAPTER_CONFIG_TYPE, lambda said: said.update(name="lO.GGUF")))
    index["manifests"].append(twin["manifests"][-1])
    members["index.json"] = json.dumps(index).encode()
    with pytest.raises(InvalidModel, match="two adapters"):
        read(archived(members))


@pytest.mark.parametrize(
    "preset",
    [
        {"parameters": {"temperature": 1e9}}, {"parameters": {"top_k": 1.5}}, {"parameters": {"seed": True}},
        {"parameters": {"stop": ["x"] * 17}}, {"parameters": {"stop": [""]}}, {"parameters": {"stop": 5}},
        {"parameters": []}, {"template": "x" * (128 * 1024 + 1)}, {"system": 5}, {"messages": [{"role": "root"}]},
        {"adapters": [{"name": "x"}] * 17}, {"adapters": [{"name": "x", "scale": 1e9}]}, {"system": "x" * (3 << 20)},
    ],
    ids=range(13),
)  # fmt: skip
def test_a_preset_that_create_would_refuse_is_refused(read: Callable[[bytes], Any], preset: dict[str, Any]) -> None:
    def change(said: dict[str, Any]) -> None:
        if "presets" in said:
            said["presets"] = [{"word": "latest", "preset": preset}]

    with pytest.raises(InvalidModel):
        read(changed(CONFIG_TYPE, change))


def test_more_presets_than_names_are_refused(read: Callable[[bytes], Any]) -> None:
    def change(said: dict[str, Any]) -> None:
        if "presets" in said:
            said["presets"] = [{"word": "latest", "preset": {}}] * 101

    with pytest.raises(InvalidModel):
        read(changed(CONFIG_TYPE, change))


def test_a_parameter_that_nobody_knows_is_of_no_effect_and_a_parent_gets_the_new_name() -> None:
    preset = Preset(parameters={"low_vram": True, "top_p": 1}, parent="gloss:F16", owned=(5,))
    found = believed_preset(preset, "gloss", parse_ref("mine/other").key)
    assert found == Preset(parameters={"top_p": 1}, parent="mine/other:F16")


def test_a_bundle_of_before_there_were_adapters_in_it_is_read(read: Callable[[bytes], Any]) -> None:
    members = members_of(changed(CONFIG_TYPE, lambda said: said.pop("presets", None)))
    index = json.loads(members["index.json"])
    index["manifests"] = [entry for entry in index["manifests"] if "annotations" in entry]
    members["index.json"] = json.dumps(index).encode()
    bundle = read(archived(members))
    assert [file.tag for file in bundle.files] == ["F16", "Q4_K_M"]
    assert [file.about.presets for file in bundle.files] == [(), ()]
    assert (bundle.adapters, bundle.matrices) == ((), ())


# --- what is believed --------------------------------------------------------------------------------------------


def test_of_a_lineage_what_a_rebuild_would_check_is_kept() -> None:
    key = parse_ref("mine/other").key
    claimed = Lineage(
        "quantized", "sha256:" + "1" * 64, "gloss:instruct-F16", Recipe("q4_k"), "b1\x1b[2J" + "x" * 900, 2.0, True,
        job_id="job_1", remote=RemoteOrigin("https://10.0.0.1/x"), converted_from="safetensors, BF16",
    )  # fmt: skip
    found = believed(claimed, "gloss", key)
    assert (found.origin, found.source_name, found.lossy_source) == ("imported", "mine/other:instruct-F16", True)
    assert (found.recipe, found.job_id, found.remote) == (Recipe("Q4_K_M"), None, None)
    assert found.llama_build is not None
    assert found.llama_build.isprintable()
    assert len(found.llama_build) <= 200
    assert found.converted_from == "safetensors, BF16"


@pytest.mark.parametrize(
    "recipe",
    [Recipe("Q9_X"), Recipe("Q4_0", overrides=(TypeOverride("(" * 50, "Q8_0"),)), Recipe("Q4_0", output_type="NO")],
)
def test_a_recipe_that_could_be_none_is_dropped(recipe: Recipe) -> None:
    found = believed(Lineage("quantized", "no digest", "no name!", recipe), "gloss", parse_ref("gloss").key)
    assert (found.recipe, found.source_digest, found.source_name) == (None, None, None)


def test_the_speed_of_another_machine_is_not_believed() -> None:
    assert believed_card(replace(CARD, speed=SPEED)) == CARD


def test_a_config_of_a_later_version_is_refused(read: Callable[[bytes], Any]) -> None:
    members = members_of(BUNDLE)
    manifest = next(
        msgspec.json.decode(text, type=Manifest) for text in members.values() if b'"config":{"mediaType"' in text
    )
    config = json.loads(members[blob_name(manifest.config.digest)])
    config["quantry"]["version"] = 2
    text = json.dumps(config).encode()
    described = msgspec.structs.replace(manifest.config, digest=digest_of(text), size=len(text))
    changed = msgspec.json.encode(msgspec.structs.replace(manifest, config=described))
    members |= {blob_name(digest_of(text)): text, blob_name(digest_of(changed)): changed}
    entry = {"mediaType": "", "digest": digest_of(changed), "size": len(changed)}
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with pytest.raises(InvalidModel, match="version"):
        read(archived(members))
