"""The scripts that build the images, run outside of Docker: what they leave behind is a working installation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from caching import cache_root

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("LICENSE", "README.md", "constraints.txt", "pyproject.toml", "demo", "docker", "scripts", "service")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_of_the_image_make_an_installation_that_decodes(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, app / name)
    venv = tmp_path / "venv"
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    # A native wheel is in the cache already; the portable one of the images takes a quarter of an hour.
    for step in (
        ["wheel.sh", "native", venv, cache_root()],
        ["install.sh", venv],
        ["smoke.sh", venv],
        ["models.sh", "1", tmp_path / "models", cache_root()],
    ):
        command = [app / "docker" / "steps" / str(step[0]), *map(str, step[1:])]
        done = subprocess.run(command, cwd=app, env=environ, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{step[0]}: {done.stderr[-2000:]}"
    assert len(list((tmp_path / "models").glob("*.gguf"))) == 1
    assert not (venv / "bin" / "pip").exists()
    assert (
        b"quantry"
        in subprocess.run([venv / "bin" / "quantry", "--help"], capture_output=True, timeout=60, check=True).stdout
    )
