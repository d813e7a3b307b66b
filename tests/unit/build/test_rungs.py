"""Which flags a machine gets, and when a wheel may be used again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llama_build.probe import AMX_FLAGS, VECTOR_FAMILIES, Probe, Verdict
from llama_build.rungs import Mode, ladder, wheel_key

GOOD = Probe(
    system="linux",
    machine="x86_64",
    libc="glibc-2.36",
    compiler="g++ 12.2.0",
    native_target="0123456789abcdef",
    amx=Verdict.absent,
    amx_flags=AMX_FLAGS,
    vectors=dict.fromkeys(VECTOR_FAMILIES, Verdict.works),
    openmp=True,
)


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (GOOD, ["native", "generic", "baseline"]),
        (replace(GOOD, amx=Verdict.works), ["native", "native-without-amx", "generic", "baseline"]),
        (replace(GOOD, amx=Verdict.broken), ["native-without-amx", "generic", "baseline"]),
        (replace(GOOD, amx=Verdict.broken, amx_flags=()), ["generic", "baseline"]),
        (replace(GOOD, vectors=GOOD.vectors | {"avx512": Verdict.broken}), ["generic", "baseline"]),
        (replace(GOOD, vectors=GOOD.vectors | {"avx512": Verdict.absent}), ["native", "generic", "baseline"]),
        (replace(GOOD, machine="aarch64", vectors={}, amx_flags=()), ["native", "generic"]),
    ],
)
def test_the_fastest_rung_that_the_probe_allows_comes_first(seen: Probe, names: list[str]) -> None:
    assert [rung.name for rung in ladder(Mode.native, seen)] == names


def test_a_machine_whose_amx_faults_is_compiled_without_it_and_keeps_the_rest() -> None:
    rung = ladder(Mode.native, replace(GOOD, amx=Verdict.broken))[0]
    defines = rung.cmake_defines()
    assert defines["GGML_NATIVE"] == "ON"
    assert defines["CMAKE_C_FLAGS"] == defines["CMAKE_CXX_FLAGS"] == "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    assert "AMX" in rung.reason


def test_only_flags_that_the_compiler_accepts_are_used() -> None:
    seen = replace(GOOD, amx=Verdict.broken, amx_flags=("-mno-amx-tile",))
    assert ladder(Mode.native, seen)[0].cmake_defines()["CMAKE_C_FLAGS"] == "-mno-amx-tile"


def test_a_rung_chosen_because_of_the_machine_says_which_instructions_failed() -> None:
    seen = replace(GOOD, vectors=GOOD.vectors | {"avx512_vnni": Verdict.broken})
    assert "avx512_vnni" in ladder(Mode.native, seen)[0].reason


@pytest.mark.parametrize("mode", [Mode.portable, Mode.cuda])
def test_wheels_for_other_machines_carry_every_cpu_library_and_nothing_native(mode: Mode) -> None:
    (rung,) = ladder(mode, replace(GOOD, amx=Verdict.broken))
    defines = rung.cmake_defines()
    assert defines["GGML_NATIVE"] == "OFF"
    assert defines["GGML_BACKEND_DL"] == defines["GGML_CPU_ALL_VARIANTS"] == "ON"
    assert "CMAKE_C_FLAGS" not in defines
    assert rung.loads_backends
    assert (defines.get("GGML_CUDA") == "ON") is (mode is Mode.cuda)


def test_every_rung_is_a_release_build_without_the_parts_nobody_opens() -> None:
    seen = replace(GOOD, amx=Verdict.works)
    for rung in [rung for mode in Mode for rung in ladder(mode, seen)]:
        defines = rung.cmake_defines()
        assert defines["CMAKE_BUILD_TYPE"] == "Release"
        assert defines["LLAVA_BUILD"] == defines["LLAMA_BUILD_SERVER"] == "OFF"


def key(seen: Probe = GOOD, version: str = "0.3.36", environ: dict[str, str] | None = None, rung: int = 0) -> str:
    return wheel_key(version, ladder(Mode.native, seen)[rung], seen, environ or {})


@pytest.mark.parametrize(
    "other",
    [
        key(version="0.3.37"),
        key(rung=1),
        key(replace(GOOD, compiler="g++ 13.1.0")),
        key(replace(GOOD, libc="glibc-2.41")),
        key(replace(GOOD, machine="aarch64", vectors={})),
        key(replace(GOOD, native_target="another CPU")),
        key(environ={"CMAKE_ARGS": "-DGGML_BLAS=ON"}),
        key(environ={"CFLAGS": "-O2"}),
    ],
)
def test_a_wheel_is_not_used_where_it_would_have_been_built_differently(other: str) -> None:
    assert other != key()


def test_a_wheel_is_used_again_where_nothing_that_matters_changed() -> None:
    assert key(environ={"PATH": "/somewhere/else"}) == key()
    # A generic wheel does not depend on the CPU that it was built on.
    assert key(replace(GOOD, native_target="another CPU"), rung=1) == key(rung=1)
    assert key().startswith("llama_cpp_python-0.3.36-native-x86_64-")
