"""The project's own files agree with each other: pins, import rules, images, the compose file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import lock
from caching import pins

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_every_dependency_has_an_exact_version_in_the_constraints() -> None:
    pinned = dict(line.split("==") for line in CONSTRAINTS.splitlines() if not line.startswith("#"))
    for requirement in lock.requirements(PYPROJECT["project"]):
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
        assert lock.normalized(name) in pinned, f"{name}: run `make lock`"


def test_the_exact_pin_of_the_binding_is_the_same_everywhere() -> None:
    version = pins("llama-cpp-python")["version"]
    assert f"llama-cpp-python=={version}" in PYPROJECT["project"]["dependencies"]
    assert f"\nllama-cpp-python=={version}\n" in CONSTRAINTS


def test_the_lock_file_is_written_in_one_order() -> None:
    text = lock.render({"b": "2", "a": "1"})
    assert text.endswith("a==1\nb==2\n")
    assert text.startswith("#")


def contract(identifier: str) -> dict[str, Any]:
    (found,) = [one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["id"] == identifier]
    return found


def rooms() -> set[str]:
    return {room for layer in contract("rooms")["layers"] for room in re.split(r" [|:] ", layer)}


def test_every_module_of_the_package_has_its_place_in_the_layers() -> None:
    found = {
        path.stem
        for path in (ROOT / "service").iterdir()
        if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file()
    }
    assert found <= rooms()


def test_every_room_but_one_is_forbidden_to_open_the_binding() -> None:
    assert {f"service.{room}" for room in rooms() - {"llama"}} == set(contract("one-door")["source_modules"])


def stage(name: str) -> list[str]:
    """The instructions of one stage of the Dockerfile, without its FROM line."""
    (body,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return [line for line in body.splitlines() if line and not line.startswith("#")]


def test_both_images_are_made_by_the_same_steps() -> None:
    swaps = {"wheel.sh portable": "wheel.sh cuda", "sh build": "sh build python", "sh run": "sh run python"}
    for cpu, cuda in (("build-cpu", "build-cuda"), ("cpu", "cuda")):
        expected = "\n".join(stage(cpu)).replace("build-cpu", "build-cuda")
        for old, new in swaps.items():
            expected = expected.replace(old, new)
        assert "\n".join(stage(cuda)) == expected


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_an_image_runs_without_root_and_without_a_key(image: str) -> None:
    lines = stage(image)
    assert "USER 10001:10001" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert "API_KEY" not in "\n".join(line for line in lines if "ENV" in line or "=" in line)


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_an_image_imports_by_path_from_the_mount_and_the_demos_folders_alone(image: str) -> None:
    (listed,) = re.findall(r"QUANTRY_IMPORT_FOLDERS=(\S+)", "\n".join(stage(image)))
    built = "\n".join(stage(f"build-{image}"))
    assert "WORKDIR /opt/quantry/app\n" in built
    assert "COPY demo demo\n" in built  # gloss
    (smollm2,) = re.findall(r'models\.sh "\$\{DEMO_MODELS\}" (\S+)', built)
    assert listed.split(",") == ["/models", "/opt/quantry/app/demo", smollm2]


@pytest.mark.parametrize("name", ["quantry", "quantry-gpu"])
def test_the_folder_to_import_from_is_mounted_read_only(name: str) -> None:
    assert "${QUANTRY_MODELS:-models}:/models:ro" in COMPOSE["services"][name]["volumes"]
    assert "models" in COMPOSE["volumes"]


@pytest.mark.parametrize("name", ["quantry", "quantry-gpu"])
def test_a_service_has_no_privileges_and_bounded_resources(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"]
    assert service["pids_limit"] > 0
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["ports"] == ["${QUANTRY_BIND:-127.0.0.1:8080}:8080"]


def test_a_key_must_be_given() -> None:
    assert COMPOSE["services"]["quantry"]["environment"]["QUANTRY_API_KEYS"].startswith("${QUANTRY_API_KEYS:?")


def test_only_the_gpu_service_asks_for_a_gpu() -> None:
    assert "deploy" not in COMPOSE["services"]["quantry"]
    gpu = COMPOSE["services"]["quantry-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
