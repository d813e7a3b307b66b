"""The models that are measured: a file for the peers, and the same file under a name in a quantry home.

k-quants are made by quantry itself, over HTTP, in the home that the measured servers then use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.gguf.files import facts, read_header

ROOT = Path(__file__).resolve().parents[1]
GLOSS = ROOT / "demo" / "gloss-5m-f16.gguf"
_JOB_SECONDS = 900.0


@dataclass(frozen=True)
class Measurable:
    """A model ready to be served by every side. `name` is quantry's; `eos_token` None when the file names none."""

    label: str
    name: str
    path: Path
    context_length: int
    has_chat_template: bool
    eos_token: int | None


@dataclass(frozen=True)
class Recipe:
    """Where a model comes from; `level` is what quantry makes of it first."""

    source: str
    level: str | None = None


RECIPES = {
    "smollm2-q4_1": Recipe("smollm2"),
    # Rows of 576 are no multiple of 256: most matrices fall back to other types. It is the big k-quant there is.
    "smollm2-q4_k_m": Recipe("smollm2", "Q4_K_M"),
    "gloss-q4_k_m": Recipe("gloss", "Q4_K_M"),
    "gloss-f16": Recipe("gloss"),
}
"""Names for --model; a path to a GGUF file is taken as well."""


def smollm2() -> Path:
    """`$QUANTRY_SMOLLM2`, else what scripts/fetch_smollm2.py finds or fetches."""
    given = os.environ.get("QUANTRY_SMOLLM2")
    if given:
        return Path(given)
    command = [sys.executable, str(ROOT / "scripts" / "fetch_smollm2.py")]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def prepare(choice: str, url: str, home: Path) -> Measurable:
    """Import (and quantize) the chosen model in the quantry that answers at `url` and keeps its blobs in `home`."""
    recipe = RECIPES.get(choice)
    if recipe is None:
        file = Path(choice)
        if not file.is_file():
            raise SystemExit(f"--model takes {', '.join(RECIPES)} or a GGUF file; {choice} is neither")
        recipe = Recipe(choice)
    source = smollm2() if recipe.source == "smollm2" else GLOSS if recipe.source == "gloss" else Path(recipe.source)
    imported = call(url, "POST", "/v1/models", {"name": "measured", "path": str(source.resolve())})
    if "digest" not in imported:  # 202: a job
        _wait(url, imported)
        imported = next(iter(call(url, "GET", "/v1/variants")["data"]))
    variant = imported
    if recipe.level is not None:
        job = call(
            url,
            "POST",
            "/v1/quantize",
            {"model": imported["name"], "to": [recipe.level], "allow_requantize": True},
        )
        _wait(url, job)
        made = call(url, "GET", "/v1/variants")["data"]
        variant = next(item for item in made if item["name"] != imported["name"])
    path = home / "blobs" / str(variant["digest"]).replace(":", "-")
    header = read_header(path)
    described = facts(header)
    eos = header.metadata.get("tokenizer.ggml.eos_token_id")
    return Measurable(
        choice,
        variant["name"],
        path,
        described.shape.context_length,
        described.has_chat_template,
        int(eos) if isinstance(eos, int) else None,
    )


def call(url: str, method: str, path: str, body: object = None) -> Any:
    """One JSON request to quantry; SystemExit with its words when it refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:500]}") from error


def _wait(url: str, job: dict[str, Any]) -> None:
    deadline = time.monotonic() + _JOB_SECONDS
    while job["status"] in ("queued", "running"):
        if time.monotonic() > deadline:
            raise SystemExit(f"job {job['id']} took more than {_JOB_SECONDS:.0f} s")
        time.sleep(0.2)
        job = call(url, "GET", f"/v1/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise SystemExit(f"job {job['id']} {job['status']}: {job.get('error')}")
