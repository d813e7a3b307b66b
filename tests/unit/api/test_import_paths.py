"""Which files may be imported by path: any for the machine's own user, only listed folders for holders of keys."""

from __future__ import annotations

import os

import pytest

from service.api.auth import hash_keys
from service.api.import_paths import admitted_path, lies_inside
from service.api.services import ApiOptions
from service.domain.errors import Forbidden

KEY = "a-key-of-at-least-sixteen-characters"


@pytest.mark.parametrize(
    ("path", "folders", "inside"),
    [
        ("/models/a.gguf", ["/models"], True),
        ("/models/deep/er/a.gguf", ["/models"], True),
        ("/models/a.gguf", ["/other", "/models/"], True),
        ("/a.gguf", ["/"], True),
        ("/models/a.gguf", [], False),
        ("/models", ["/models"], False),
        ("/models2/a.gguf", ["/models"], False),
        ("/Models/a.gguf", ["/models"], False),
        ("/", ["/models"], False),
        ("/etc/passwd", ["/models", "/etc/pass"], False),
    ],
)
def test_what_lies_inside_a_folder(path, folders, inside):
    assert lies_inside(path, folders) is inside


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "open" / "sub").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for name in ("open/a.gguf", "open/sub/b.gguf", "secret/c.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "open" / "to-file").symlink_to(tmp_path / "secret" / "c.gguf")
    (tmp_path / "open" / "to-folder").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "to-nothing").symlink_to(tmp_path / "secret" / "none.gguf")
    (tmp_path / "open" / "inside").symlink_to("sub/b.gguf")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "alias").symlink_to("open")
    return tmp_path


@pytest.fixture
def real_folder(folder):
    return os.path.realpath(folder)


KEYS = hash_keys([KEY])
OUTSIDE = [
    "secret/c.gguf",
    "secret/none.gguf",
    "open/to-file",
    "open/to-folder/c.gguf",
    "open/to-folder/none.gguf",
    "open/to-nothing",
    "open/../secret/c.gguf",
    "open/sub/../a.gguf",
    "none/../open/a.gguf",
    "loop",
    "loop/x",
    "open",
    "openly/a.gguf",
    "x" * 5000,
]


@pytest.mark.parametrize("keys", [KEYS, ()])
@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_the_folders_is_opened_and_nothing_is_told_of_it(folder, keys, path):
    options = ApiOptions("0", 512, api_key_hashes=keys, import_folders=(str(folder / "open"),))
    with pytest.raises(Forbidden) as refused:
        admitted_path(f"{folder}/{path}", options)
    assert "QUANTRY_IMPORT_FOLDERS" in refused.value.message
    assert refused.value.param == "path"
    assert str(folder) not in refused.value.message


def test_every_refusal_is_the_same(folder):
    options = ApiOptions("0", 512, import_folders=(str(folder / "open"),))
    messages = set()
    for path in OUTSIDE:
        with pytest.raises(Forbidden) as refused:
            admitted_path(f"{folder}/{path}", options)
        messages.add((refused.value.message, refused.value.param))
    assert len(messages) == 1


@pytest.mark.parametrize("keys", [KEYS, ()])
@pytest.mark.parametrize("listed", ["open", "alias"])
@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("open/a.gguf", "open/a.gguf"),
        ("alias/a.gguf", "open/a.gguf"),
        ("open/inside", "open/sub/b.gguf"),
        ("open//sub/./b.gguf", "open/sub/b.gguf"),
        ("open/not-there.gguf", "open/not-there.gguf"),  # the import itself says so
    ],
)
def test_files_inside_are_imported_from_where_they_really_lie(folder, keys, listed, path, resolved):
    options = ApiOptions("0", 512, api_key_hashes=keys, import_folders=(str(folder / listed),))
    assert admitted_path(f"{folder}/{path}", options) == os.path.realpath(folder / resolved)
    assert admitted_path(f"/{folder}/{path}", options) == os.path.realpath(folder / resolved)


def test_with_keys_and_no_folders_nothing_is_imported_by_path(folder):
    with pytest.raises(Forbidden):
        admitted_path(f"{folder}/open/a.gguf", ApiOptions("0", 512, api_key_hashes=KEYS))


@pytest.mark.parametrize("path", ["open/a.gguf", "secret/c.gguf", "open/../secret/c.gguf"])
def test_without_keys_the_machines_own_user_may_name_any_file(folder, path):
    assert admitted_path(f"{folder}/{path}", ApiOptions("0", 512)) == f"{folder}/{path}"


async def test_a_refused_path_is_a_403_and_makes_no_job(make_api, folder, real_folder):
    api = make_api(api_key_hashes=KEYS, import_folders=(str(folder / "open"),))
    async with api.client(headers={"X-API-Key": KEY}) as client:
        answers = [
            await client.post("/v1/models", json={"name": "x", "path": f"{folder}/{path}"})
            for path in ("secret/c.gguf", "secret/none.gguf", "open/to-file")
        ]
        assert [answer.status_code for answer in answers] == [403] * 3
        assert len({answer.text for answer in answers}) == 1
        assert answers[0].json()["error"]["code"] == "forbidden"
        assert api.queue.list() == []
        inside = await client.post("/v1/models", json={"name": "x", "path": f"{folder}/alias/inside"})
        assert inside.status_code == 202
        assert api.queue.list()[0].spec.path == f"{real_folder}/open/sub/b.gguf"
        missing = await client.post("/v1/models", json={"name": "x", "path": f"{folder}/open/none.gguf"})
        assert (missing.status_code, missing.json()["error"]["param"]) == (400, "path")


async def test_uploads_are_open_to_every_key(make_api):
    api = make_api(api_key_hashes=KEYS)
    variant = api.add("gloss", "F16")
    async with api.client(headers={"X-API-Key": KEY}) as client:
        answer = await client.post("/v1/models", json={"name": "y", "digest": variant.digest})
    assert answer.status_code == 202
