"""What the demo shows: its two models, where their files are, the levels it makes, the questions it asks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import service
from service.cli.failures import CommandFailed

GLOSS_FILE = "gloss-5m-f16.gguf"
WORDS_FILE = "words.json"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

LEVELS = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M",
    "Q6_K", "Q8_0",
)  # fmt: skip
COMPARED = ("F16", "Q4_K_M", "Q2_K")

# Words that Q2_K was seen to get wrong where F16 and Q4_K_M are right. Kernels differ a little between machines, so
# the demo shows the first one for which that holds on this one.
WORDS = ("horse", "wind", "boat", "kitchen", "winter")

SMOLLM2_QUESTION = "What is the capital of France? Answer in one sentence."


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Where the demo's files are; `smollm2` None: not on this machine."""

    gloss: Path
    words: Path
    smollm2: Path | None


def question(word: str) -> str:
    """What gloss was trained to answer."""
    return f'What does "{word}" mean?'


def expected_answers(path: Path) -> dict[str, str]:
    """What gloss was trained to answer, by word; empty when the file is not there."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(word): str(answer) for word, answer in found.items()}


def find_files(environ: Mapping[str, str] = os.environ) -> DemoFiles:
    """Look in QUANTRY_DEMO_MODELS, beside the package, and where scripts/fetch_smollm2.py puts SmolLM2."""
    folder = Path(environ["QUANTRY_DEMO_MODELS"]) if environ.get("QUANTRY_DEMO_MODELS") else _beside_package()
    gloss = folder / GLOSS_FILE
    if not gloss.is_file():
        raise CommandFailed(
            "no_demo_model",
            f"The demo's model {GLOSS_FILE} is not in {folder}.",
            remedy="run the demo from a clone of the repository, or set QUANTRY_DEMO_MODELS to its folder demo/",
        )
    return DemoFiles(gloss, folder / WORDS_FILE, _smollm2(folder, environ))


def _beside_package() -> Path:
    return Path(service.__file__).resolve().parent.parent / "demo"


def _smollm2(folder: Path, environ: Mapping[str, str]) -> Path | None:
    if environ.get("QUANTRY_SMOLLM2"):
        named = Path(environ["QUANTRY_SMOLLM2"])
        return named if named.is_file() else None
    candidates = [folder / SMOLLM2_FILE, *sorted((_cache(environ) / "models").glob(f"*/{SMOLLM2_FILE}"))]
    return next((path for path in candidates if path.is_file()), None)


def _cache(environ: Mapping[str, str]) -> Path:
    """As scripts/caching.py has it."""
    if environ.get("QUANTRY_WHEEL_CACHE"):
        return Path(environ["QUANTRY_WHEEL_CACHE"]).expanduser()
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "quantry"
