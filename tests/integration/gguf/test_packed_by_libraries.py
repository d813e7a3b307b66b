"""Packed tensors as the libraries themselves store them read as the floats that the libraries read back.

packed_by_libraries.npz was made with pack_with_libraries.py on a machine where these libraries install; it says which
versions they had.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import open_tensors
from service.gguf.packed import unpacked
from tests.checkpoints import write_safetensors

FIXTURE = Path(__file__).with_name("packed_by_libraries.npz")


def about() -> dict[str, Any]:
    with np.load(FIXTURE) as arrays:
        value: dict[str, Any] = json.loads(arrays["about"].tobytes())
        return value


def parts(case: str) -> Iterator[tuple[str, Any]]:
    with np.load(FIXTURE) as arrays:
        for name in arrays.files:
            if name.startswith(f"{case}/"):
                yield name.removeprefix(f"{case}/"), arrays[name]


def test_the_fixture_says_what_made_it() -> None:
    assert set(about()["versions"]) == {"torch", "bitsandbytes", "gptqmodel", "autoawq", "compressed-tensors"}


@pytest.mark.parametrize("case", about()["configs"])
def test_what_a_library_packed_reads_as_the_library_reads_it(case: str, tmp_path: Path) -> None:
    tensors = dict(parts(case))
    meant = tensors.pop("meant")
    write_safetensors(tmp_path / "model.safetensors", {f"layer.{ending}": part for ending, part in tensors.items()})
    config = {"quantization_config": about()["configs"][case]}
    found, description = unpacked(open_tensors(Files.of_folder(tmp_path)), config)
    assert description is not None
    assert list(found) == ["layer.weight"]
    made = found["layer.weight"]
    assert made.shape == meant.shape
    read = np.concatenate([made.read(0, 5), made.read(5, made.rows)])
    # GPTQ and AWQ come out the same to the bit; bitsandbytes multiplies in another order: half precision's last bit.
    exact = case.startswith(("gptq", "awq"))
    np.testing.assert_allclose(read.astype(np.float16), meant, rtol=0 if exact else 1.1e-3, atol=0)
