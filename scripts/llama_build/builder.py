"""Puts the steps in order: look in the cache, build, check, climb down a rung when the check says so, keep.

Each rung has a folder `wheels/<key>/` holding `build.json` and, when it passed, the wheel. A rung that failed its
check keeps its record without a wheel, so the next call goes on to the rung below at once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from caching import CacheError, cache_root, lock, publish, say, staging
from llama_build.check import BUILT_IN, Checked, Outcome, decode, install
from llama_build.probe import Probe, Verdict, probe
from llama_build.rungs import Mode, Rung, ladder, wheel_key
from llama_build.wheel import build, cores, pinned_source

RECORD = "build.json"
AMX_VARIANTS = ("sapphirerapids",)
"""CPU libraries of a portable wheel that use AMX; named as llama.cpp names them."""


@dataclass(frozen=True)
class Kept:
    """What the cache holds for one rung: `wheel` is None when that rung failed its check here."""

    wheel: Path | None
    record: dict[str, object]


def kept(folder: Path) -> Kept | None:
    """What is kept in `folder`, or None when nothing (or nothing whole) is there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("outcome") != Outcome.passed:
        return Kept(None, record)
    wheel = folder / str(record.get("wheel", ""))
    return Kept(wheel, record) if wheel.is_file() and wheel.stat().st_size == record.get("size_bytes") else None


def describe(seen: Probe) -> str:
    """One line about the probe for the person who waits."""
    working = [name for name, verdict in seen.vectors.items() if verdict is Verdict.works]
    amx = {"works": "AMX works", "broken": "AMX is advertised and broken", "absent": "no AMX"}[seen.amx]
    openmp = "OpenMP" if seen.openmp else "no OpenMP (llama.cpp uses its own threads)"
    return f"{seen.machine}, {seen.compiler}: {' '.join(working) or 'no vector probe'}; {amx}; {openmp}"


def find_or_build(mode: Mode, *, rebuild: bool = False) -> Path:
    """The path of a wheel that works here; raises CacheError when there is none to be had."""
    if mode is Mode.cuda and shutil.which("nvcc") is None:
        raise CacheError("--cuda needs nvcc; install the CUDA toolkit, or build without --cuda")
    version, _ = pinned_source()
    with tempfile.TemporaryDirectory(prefix="quantry-probe-") as scratch:
        seen = probe(Path(scratch))
    say(describe(seen))
    wheels = cache_root() / "wheels"
    environ = dict(os.environ)
    failures = []
    for rung in ladder(mode, seen):
        key = wheel_key(version, rung, seen, environ)
        with lock(wheels / f".{key}.lock"):
            found = None if rebuild else kept(wheels / key)
            if found is None:
                found = _build_and_check(rung, seen, wheels, key)
        if found.wheel is not None:
            return found.wheel
        failures.append(f"{rung.name}: {found.record.get('detail')}")
        say(f"the {rung.name} build does not work here ({found.record.get('detail')}); one rung safer")
    raise CacheError("no build of llama.cpp works on this machine: " + "; ".join(failures))


def _build_and_check(rung: Rung, seen: Probe, wheels: Path, key: str) -> Kept:
    say(
        f"building llama.cpp ({rung.name}{'; ' + rung.reason if rung.reason else ''}) on {cores()} cores, once: minutes"
    )
    with staging(wheels / f".{key}.staging") as folder:
        started = time.monotonic()
        work = folder / "work"
        work.mkdir()
        log = wheels / f"{key}.log"
        built = build(rung, work, log)
        built_seconds = time.monotonic() - started
        say(f"built in {built_seconds:.0f} s; checking that it decodes")
        checked, skipped = _check(built, work, rung)
        result = folder / "result"
        result.mkdir()
        record: dict[str, object] = {
            "rung": rung.name,
            "reason": rung.reason,
            "defines": rung.cmake_defines(),
            "probe": seen.as_dict(),
            "outcome": checked.outcome,
            "detail": checked.detail,
            "figures": checked.figures,
            "skipped_variants": skipped,
            "build_seconds": round(built_seconds, 1),
            "total_seconds": round(time.monotonic() - started, 1),
        }
        if checked.outcome is Outcome.passed:
            record |= {"wheel": built.name, "size_bytes": built.stat().st_size}
            os.replace(built, result / built.name)
        (result / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        publish(result, wheels / key)
    return Kept(wheels / key / built.name if checked.outcome is Outcome.passed else None, record)


def _check(wheel: Path, work: Path, rung: Rung) -> tuple[Checked, tuple[str, ...]]:
    """Decodes with the wheel; a portable one may leave its AMX library out, as a worker on this machine would."""
    site = work / "site"
    install(wheel, site)
    scratch = work / "models"
    scratch.mkdir()
    skipped: tuple[str, ...] = ()
    checked = decode(site, scratch)
    if checked.outcome is Outcome.died and rung.loads_backends:
        say(f"{checked.detail}; trying again without {', '.join(AMX_VARIANTS)}")
        skipped = AMX_VARIANTS
        checked = decode(site, scratch, skipped)
    if checked.outcome is Outcome.passed and rung.loads_backends is (checked.figures.get("cpu_backend") == BUILT_IN):
        raise CacheError(f"the build ignored its flags ({rung.name}); its log is in the wheels folder of the cache")
    return checked, skipped
