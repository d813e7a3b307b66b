"""How long a store of 1,000 models with 10 levels each takes to list and to resolve: `python -m benchmarks.catalogue`.

A catalogue of that size is written to a temporary folder without any model files, and asked as the server asks it: by
the store, and through the API in this process. Cold is a server that has just started, warm one that was asked before,
changed one where something was written since: a variant is pinned or unpinned. As in a real store, every file has the
plans of all levels, so that two thirds of the whole list are levels that could be made.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, insert

from service.app import create_app
from service.domain.catalog import FileFacts, LevelPlan, Lineage, ModelShape
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import Recipe
from service.settings import Settings
from service.store.catalog import Catalog
from service.store.database import now, open_database, to_json, write
from service.store.tables import blobs, models, plans, tags, variants

LEVELS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q3_K_S", "Q2_K")
SHAPE = ModelShape("llama", 32, 4096, 32, 8, 128, 128, 14336, 128256, context_length=8192)


def fill(engine: Engine, count: int) -> None:
    """`count` models with every level in LEVELS, all plans for each, and a tag `prod` each; in one transaction."""
    moment = now()
    planned = [LevelPlan(level, 4_000_000_000, 4.5, False, (), (("F32", 65), ("Q4_K", 226))) for level in QUANTIZATIONS]
    plan_columns = [(position, to_json(plan)) for position, plan in enumerate(planned)]
    rows: dict[str, list[dict[str, Any]]] = {"models": [], "blobs": [], "variants": [], "plans": [], "tags": []}
    for number in range(1, count + 1):
        name = f"model-{number:04d}"
        folded = f"registry.ollama.ai/library/{name}"
        key = {"host": "registry.ollama.ai", "namespace": "library", "model": name}
        rows["models"].append({"id": number, "folded": folded, **key, "created_at": moment})
        source = _digest(number, LEVELS[0])
        for place, level in enumerate(LEVELS):
            digest = _digest(number, level)
            facts = FileFacts(level, 8_030_000_000, 4.5, 4_900_000_000, SHAPE, types=(("F32", 65), ("Q4_K", 226)))
            lineage = Lineage("imported")
            if level != LEVELS[0]:
                lineage = Lineage("quantized", source, f"{name}:F16", Recipe(level), "b1", 60.0)
            variant_id = (number - 1) * len(LEVELS) + place + 1
            size = {"size_bytes": 5_000_000_000, "corrupt": False}
            rows["plans"] += [{"digest": digest, "position": i, "plan": plan} for i, plan in plan_columns]
            rows["blobs"].append({"digest": digest, **size, "created_at": moment})
            rows["variants"].append(
                {
                    "id": variant_id,
                    "model_id": number,
                    "flavour": "",
                    "flavour_folded": "",
                    "quantization": level,
                    "digest": digest,
                    "facts": to_json(facts),
                    "lineage": to_json(lineage),
                    "created_at": moment,
                }
            )
        tag = {"model_id": number, "word": "prod", "word_folded": "prod", "variant_id": (number - 1) * len(LEVELS) + 6}
        rows["tags"].append({**tag, "created_at": moment})
    with write(engine) as connection:
        for table in (models, blobs, variants, plans, tags):
            connection.execute(insert(table), rows[table.name])


def measure(home: Path, count: int) -> dict[str, float]:
    """Milliseconds by what was done: the median of several, but for what is cold."""
    settings = Settings(home=home)
    home.mkdir(parents=True, exist_ok=True)
    engine = open_database(settings.database)
    fill(engine, count)
    names = [f"model-{number:04d}:Q4_K_M" for number in range(1, count + 1, max(1, count // 100))]
    found: dict[str, float] = {}
    catalog = Catalog(engine)
    found["variants, cold"] = _milliseconds(catalog.variants)
    found["variants, warm"] = _median(catalog.variants)
    listed = catalog.variants()
    found["aliases, cold"] = _milliseconds(lambda: catalog.aliases_of(listed))
    found["aliases, warm"] = _median(lambda: catalog.aliases_of(listed))
    catalog = Catalog(engine)
    each = [_milliseconds(partial(catalog.resolve, name)) for name in names]
    found["resolve, cold, median"], found["resolve, cold, worst"] = statistics.median(each), max(each)
    each = [_milliseconds(partial(catalog.resolve, name)) for name in names]
    found["resolve, again, median"] = statistics.median(each)
    each = [_milliseconds(partial(catalog.remembered, name)) for name in names]
    found["resolve, remembered, median"] = statistics.median(each)
    engine.dispose()
    found |= asyncio.run(_through_the_api(settings))
    return found


async def _through_the_api(settings: Settings) -> dict[str, float]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    found: dict[str, float] = {}
    catalog = app.state.services.catalog
    changing = catalog.resolve("model-0500:Q4_K_M")
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        await client.get("/health")
        for name, path in {
            "GET /v1/variants": "/v1/variants",
            "GET /v1/variants?model=": "/v1/variants?model=model-0500",
            "GET /v1/variants/{ref}": "/v1/variants/model-0500:Q4_K_M",
            "GET /v1/models": "/v1/models",
            "GET /api/tags": "/api/tags",
        }.items():
            times, changed = [], []
            for _ in range(4):
                times.append(await _asked(client, path))
            for number in range(7):
                catalog.pin(changing, number % 2 == 0)
                changed.append(await _asked(client, path))
            found[f"{name}, cold"], found[f"{name}, warm"] = times[0], statistics.median(times[1:])
            found[f"{name}, changed"] = statistics.median(changed)
    return found


async def _asked(client: httpx.AsyncClient, path: str) -> float:
    began = time.perf_counter()
    answer = await client.get(path)
    milliseconds = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, answer.text
    return milliseconds


def _digest(number: int, level: str) -> str:
    return f"sha256:{hashlib.sha256(f'{number} {level}'.encode()).hexdigest()}"


def _milliseconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _median(work: Callable[[], Any]) -> float:
    return statistics.median(_milliseconds(work) for _ in range(7))


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantry-catalogue-") as folder:
        found = measure(Path(folder) / "home", asked.models)
    if asked.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))
        return
    print(f"{asked.models} models with {len(LEVELS)} levels each, milliseconds")
    for name, value in found.items():
        print(f"{name:32} {value:10.3f}")


if __name__ == "__main__":
    main()
