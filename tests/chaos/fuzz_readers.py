"""Damaged checkpoints, tokenizers, adapters, split and old files and bundles through the readers that take them in.

    python -m tests.chaos.fuzz_readers --folder /dev/shm/readers --count 200 [--only bundle] [--seed 1]

Each mutant is read in a child with limits; nothing but an error of ours may come out, within seconds. Prints one JSON
object with every finding.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import math
import os
import random
import resource
import shutil
import sys
import tarfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.domain.catalog import Adapter, AdapterFacts, FileFacts, Lineage, ModelShape, Variant
from service.domain.errors import InternalError, QuantryError
from service.domain.generation import AdapterUse
from service.domain.importance import ImportanceFacts, ImportanceMatrix
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.gguf.adapters import check_values, read_adapter
from service.gguf.checkpoint_files import Files
from service.gguf.files import facts, read_header
from service.gguf.legacy import upgrade
from service.gguf.peft import convert_adapter
from service.gguf.splits import merge
from service.jobs.intake import make_gguf, what_is
from service.store.bundles.packing import Contents, StoredFile, pack
from service.store.bundles.reading import read_bundle
from tests import adapters, checkpoints, old_files, packing, tiny_models
from tests.chaos.fuzz_gguf import forked

SECONDS = 20.0
BATCH_SECONDS = 300
GROWTH_KIB = 1 << 20
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 2**31, 2**32, 2**63, 2**64, 10**30, 1e308, -0.5, math.nan, math.inf),
    *("", "x", "\0", "A" * 5000, "../../etc/passwd", "\ud800", "\u202e", "(" * 500, "[UNK]", "LlamaForCausalLM"),
    *([], {}, [None], [[]], [0] * 5000, [-1], ["x"], {"x": {"x": {"x": 1}}}, [[0, 10**15]], [8, 0]),
)
Form = Callable[[random.Random, Path], Path]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def damage_value(pick: random.Random, root: Any) -> Any:
    """The same JSON value with one to three members replaced, dropped, doubled or renamed."""
    for _ in range(pick.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        level = [root]
        while level and len(places) < 20_000:
            node = level.pop()
            members = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, member in members:
                places.append((node, key))
                if isinstance(member, dict | list):
                    level.append(member)
        if not places:
            return copy.deepcopy(pick.choice(HOSTILE))
        # Few members are near the root, and they matter most.
        node, key = (
            places[min(pick.randrange(len(places)), pick.randrange(len(places)), pick.randrange(200))]
            if len(places) > 200
            else pick.choice(places)
        )
        match pick.randrange(6):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[str(pick.choice(("", "__proto__", "x" * 300, "..")))] = node.pop(key)
            case 2 if isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            case 3 if isinstance(node[key], int | float) and not isinstance(node[key], bool):
                node[key] = pick.choice((node[key] + 1, node[key] - 1, -node[key], node[key] * 2, node[key] // 2))
            case 4 if pick.random() < 0.1:
                node[key] = nested(500)
            case _:
                node[key] = copy.deepcopy(pick.choice(HOSTILE))
    return root


def damage_bytes(pick: random.Random, raw: bytes, most: int = 1 << 30) -> bytes:
    """Bytes changed, cut, put in or taken out; in the first `most`."""
    data = bytearray(raw)
    for _ in range(pick.choice((1, 1, 2, 8))):
        if not data:
            break
        place = pick.choice((pick.randrange(len(data)), pick.randrange(min(len(data), 64)))) % min(len(data), most)
        match pick.randrange(6):
            case 0:
                data[place] ^= 1 << pick.randrange(8)
            case 1:
                width = pick.choice((1, 2, 4, 8))
                value = pick.choice(
                    (0, 1, 0x7F, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, pick.getrandbits(64))
                )
                data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
            case 2:
                data[place:place] = pick.randbytes(pick.choice((1, 4, 64)))
            case 3:
                del data[place : place + pick.choice((1, 4, 64))]
            case 4:
                del data[place:]
            case 5:
                data[place : place + 4] = bytes([pick.choice((0, 0xFF, 0x80, 0x7F))]) * 4
    return bytes(data)


def damage_file(pick: random.Random, path: Path) -> None:
    """A JSON file by its members, a safetensors file by its header, or any by its bytes."""
    raw = path.read_bytes()
    if path.suffix == ".json" and pick.random() < 0.8:
        path.write_text(json.dumps(damage_value(pick, json.loads(raw)), ensure_ascii=True))
    elif path.suffix == ".safetensors" and pick.random() < 0.8:
        size = int.from_bytes(raw[:8], "little")
        header = json.dumps(damage_value(pick, json.loads(raw[8 : 8 + size]))).encode()
        header += b" " * (-len(header) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    else:
        path.write_bytes(damage_bytes(pick, raw, 100_000))


def ignore(*_: object) -> None:
    """Nobody looks on."""


# --- what is read, and what from ---------------------------------------------------------------------------------


class Readers:
    """Sound sources in `folder`, made once; `names` are the readers, `read` tries a mutant of that number on one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, list[Path]] = {}
        (folder / "tiny").mkdir(parents=True, exist_ok=True)
        self._tiny = tiny_models.write_all(folder / "tiny")
        self.names = ("checkpoint", "packed", "legacy", "split", "peft", "adapter", "bundle")

    def make(self, name: str) -> None:
        """The sound sources of a reader."""
        folder = self._folder / "sources" / name
        folder.mkdir(parents=True, exist_ok=True)
        made: list[Path] = []
        if name == "checkpoint":
            made = [checkpoints.write(folder / family, family) for family in checkpoints.FAMILIES]
            made.append(checkpoints.write(folder / "shards", "llama", shards=2))
        elif name == "packed":
            source = checkpoints.write(folder / "source", "llama")
            for form in packing.FORMATS:
                packing.pack_checkpoint(source, folder / form, folder / f"plain-{form}", form)
                made.append(folder / form)
        elif name == "legacy":
            source = old_files.write_llama(folder / "llama.gguf")
            made = [
                old_files.write_ggjt(source, folder / "ggjt.bin"),
                old_files.write_gguf_v1(source, folder / "v1.gguf"),
            ]
        elif name == "split":
            old_files.write_split(self._tiny["llama"], folder / "pieces")
            made = [folder / "pieces"]
        elif name == "peft":
            made = [adapters.write_peft(folder / "peft", adapters.factors(self._tiny["llama"]))]
        elif name == "adapter":
            tiny_models.write_adapter(folder / "adapter.gguf", self._tiny["llama"])
            made = [folder / "adapter.gguf"]
        else:
            made = [write_bundle(folder / "bundle.tar")]
        self._made[name] = made

    def read(self, name: str, pick: random.Random) -> None:
        """Damage a copy of a source and read it. Raises what the reader raises."""
        source = pick.choice(self._made[name])
        damaged, target = self._folder / "copy", self._folder / "made.gguf"
        shutil.rmtree(damaged, ignore_errors=True)
        target.unlink(missing_ok=True)
        damaged.mkdir()
        if source.is_dir():
            damaged = damaged / source.name
            shutil.copytree(source, damaged)
            files = sorted(path for path in damaged.rglob("*") if path.is_file())
            small = [path for path in files if path.suffix in (".json", ".model")]
            damage_file(pick, pick.choice(small or files) if pick.random() < 0.6 else pick.choice(files))
        else:
            damaged = damaged / source.name
            raw = source.read_bytes()
            content = damage_bundle(pick, source) if name == "bundle" else damage_bytes(pick, raw, 60_000)
            damaged.write_bytes(content)
        base = self._tiny["llama"]
        match name:
            case "checkpoint" | "packed":
                what_is(damaged)
                make_gguf(damaged, target, None, ignore)
            case "legacy":
                what_is(damaged)
                upgrade(damaged, target, ignore)
            case "split":
                what_is(next(iter(sorted(damaged.iterdir()))))
                merge(sorted(damaged.iterdir()), target, ignore)
            case "peft":
                convert_adapter(Files.of_folder(damaged), read_header(base), target, ignore)
                read_adapter(target, read_header(base))
            case "adapter":
                header, _ = read_adapter(damaged, read_header(base))
                check_values(damaged, header, ignore)
            case "bundle":
                read_bundle(str(damaged))
        if target.exists() and name != "peft":
            facts(read_header(target))


def write_bundle(path: Path) -> Path:
    """As an export writes it: two variants with a preset, a matrix and an adapter, small contents."""
    levels = ("F16", "Q8_0")
    contents = {label: os.urandom(size) for label, size in (*zip(levels, (3000, 1700), strict=True), ("lora", 900))}
    digests = {label: f"sha256:{hashlib.sha256(raw).hexdigest()}" for label, raw in contents.items()}
    key = parse_ref("gloss").key
    variants = [
        Variant(
            number,
            key,
            "",
            label,
            digests[label],
            len(contents[label]),
            FileFacts(label, 1000, 8.0, 10, ModelShape("llama")),
            Lineage("imported"),
            "2026-01-01T00:00:00.000000Z",
            tags=("latest",) if label == "F16" else (),
        )
        for number, label in enumerate(levels)
    ]
    created_at, digest, size = variants[0].created_at, digests["lora"], len(contents["lora"])
    packed = pack(
        Contents(
            variants,
            presets={
                "latest": Preset("Be brief.", parameters={"stop": ["x"], "top_k": 3}, adapters=(AdapterUse("lora"),))
            },
            adapters=(Adapter(key, "lora", digest, size, AdapterFacts("llama", 4, 8.0, 2, 64), created_at),),
            matrices=(
                ImportanceMatrix(digest, size, "gloss", None, None, ImportanceFacts(1, 512, (), ()), created_at),
            ),
        )
    )
    by_digest = {digests[label]: raw for label, raw in contents.items()}
    with path.open("wb") as file:
        for part in packed.parts:
            file.write(by_digest[part.digest] if isinstance(part, StoredFile) else part)
    return path


def damage_bundle(pick: random.Random, path: Path) -> bytes:
    """The archive with damaged bytes; or one of its texts damaged, and all digests made right again."""
    raw = path.read_bytes()
    if pick.random() < 0.4:
        return damage_bytes(pick, raw, 30_000)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}  # type: ignore[union-attr]
    texts = [name for name, content in members.items() if content[:1] == b"{"]
    name = pick.choice(texts)
    content = json.dumps(damage_value(pick, json.loads(members[name]))).encode()
    replace_text(members, name, content)
    return archived(pick, members)


def replace_text(members: dict[str, bytes], name: str, content: bytes) -> None:
    """Put `content` in place of a text, and its digest and size into the texts that name it, up to the index."""
    old = members.pop(name)
    before, after = hashlib.sha256(old).hexdigest(), hashlib.sha256(content).hexdigest()
    members[name.replace(before, after)] = content
    if before not in name:
        return
    for other, text in list(members.items()):
        if before.encode() in text and text[:1] == b"{":
            described = text.replace(before.encode(), after.encode())
            described = described.replace(b'"size":%d' % len(old), b'"size":%d' % len(content))
            replace_text(members, other, described)


def archived(pick: random.Random, members: Mapping[str, bytes]) -> bytes:
    """A tar file, now and then with members that should not be there."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=pick.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name if pick.random() > 0.03 else pick.choice(("../x", "/etc/x", "x" * 90, "")))
            info.size = len(content)
            if pick.random() < 0.03:
                info.type = pick.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                info.linkname = "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


# --- runs --------------------------------------------------------------------------------------------------------


def batch(readers: Readers, name: str, seed: int, count: int) -> dict[str, Any]:
    """So many mutants, in a child."""
    counts: Counter[str] = Counter()
    found: list[Any] = []
    slowest = 0.0
    for number in range(count):
        pick = random.Random(f"{name} {seed} {number}")
        began = time.process_time()
        try:
            readers.read(name, pick)
            counts["accepted"] += 1
        except InternalError as problem:
            found.append([name, seed, number, f"InternalError: {problem.message}"])
        except QuantryError as problem:
            counts["refused"] += 1
            if not problem.message.isprintable() or len(problem.message) > 2000:
                found.append([name, seed, number, f"message {problem.message[:200]!r}"])
        except BaseException as problem:
            last = traceback.extract_tb(problem.__traceback__)[-1]
            place = next(
                (f for f in reversed(traceback.extract_tb(problem.__traceback__)) if "/service/" in f.filename), last
            )
            where = f"{place.filename.rpartition('/main/')[2]}:{place.lineno}"
            found.append([name, seed, number, f"{type(problem).__name__}: {problem} at {where}"[:300]])
        seconds = time.process_time() - began
        slowest = max(slowest, seconds)
        if seconds > SECONDS:
            found.append([name, seed, number, f"{seconds:.1f} s"])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"counts": counts, "found": found, "slowest": slowest, "rss": grown}


def run(readers: Readers, name: str, count: int, seed: int, size: int = 50) -> dict[str, Any]:
    """`count` mutants of one reader's sources."""
    readers.make(name)
    began = time.monotonic()
    counts: Counter[str] = Counter()
    found: list[Any] = []
    slowest, rss = 0.0, 0
    _, baseline = forked(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 60)
    for start in range(0, count, size):
        part = seed * 1_000_000 + start
        status, said = forked(lambda: batch(readers, name, part, min(size, count - start)), BATCH_SECONDS)  # noqa: B023
        if status != 0:
            found.append([name, part, None, f"the batch ended with {status}"])
            continue
        counts.update(said["counts"])
        found += said["found"]
        slowest, rss = max(slowest, said["slowest"]), max(rss, said["rss"] - baseline)
    if rss > GROWTH_KIB:
        found.append([name, seed, None, f"{rss >> 10} MiB more memory"])
    return {
        **counts,
        "seconds": round(time.monotonic() - began, 1),
        "slowest": round(slowest, 2),
        "growth_mib": rss >> 10,
        "found": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    readers = Readers(options.folder)
    result = {
        name: run(readers, name, options.count, options.seed) for name in readers.names if options.only in (name, "")
    }
    print(json.dumps(result))
    return 1 if any(said["found"] for said in result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
