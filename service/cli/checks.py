"""What `quantry doctor` concludes from what it found on this machine. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.api.catalogue_shapes import WorkerShape
from service.cli import figures

# llama.cpp's word for a feature of its build, and the processor's word for it.
_BUILD_FEATURES: dict[str, str] = {
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
# What a processor has and a build leaves out, when it costs speed worth a word.
_WORTH_HAVING = ("AVX2", "FMA", "F16C", "AVX512", "AVX512_VNNI")
TOP_RUNG = "full"


class Verdict(StrEnum):
    """How a finding is meant."""

    GOOD = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. A WRONG one has a remedy."""

    topic: str
    verdict: Verdict
    text: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class LlamaBuild:
    """What `python -m service.llama` said, or how it ended."""

    name: str = ""
    system_info: str = ""
    gpu: bool = False
    failure: str | None = None

    @property
    def features(self) -> frozenset[str]:
        """Words of the system info whose value is not 0."""
        found = set()
        for part in self.system_info.split("|"):
            word, equals, value = part.rpartition(":")[2].partition("=")
            if equals and value.strip() not in ("", "0"):
                found.add(word.strip())
        return frozenset(found)


def check_build(build: LlamaBuild, cpu_features: Sequence[str]) -> list[Finding]:
    """Whether the build of llama.cpp suits the processor. Without features of the processor, only whether it loads."""
    if build.failure is not None:
        remedy = "install it again for this machine: make setup, or pip install --force-reinstall llama-cpp-python"
        return [Finding("llama.cpp", Verdict.WRONG, f"cannot be loaded: {build.failure}", remedy)]
    found = [Finding("llama.cpp", Verdict.GOOD, f"{build.name}{', with GPU offload' if build.gpu else ', CPU only'}")]
    if not cpu_features:
        return found
    present = set(cpu_features)
    missing = [word for word, cpu in _BUILD_FEATURES.items() if word in build.features and cpu not in present]
    if missing:
        found.append(
            Finding(
                "instructions", Verdict.WRONG,
                f"the build uses {', '.join(missing)}, which this processor lacks; it will die of SIGILL",
                "build llama-cpp-python on this machine (make setup), or take a wheel built without them",
            )
        )  # fmt: skip
    unused = [word for word in _WORTH_HAVING if _BUILD_FEATURES[word] in present and word not in build.features]
    if unused:
        text = f"the processor has {', '.join(unused)} and the build leaves them out: slower than it could be"
        found.append(Finding("instructions", Verdict.NOTE, text))
    elif not missing:
        found.append(Finding("instructions", Verdict.GOOD, "the build uses what this processor has"))
    found.append(_amx(build, present))
    return found


def check_disk(free_bytes: int, reserve_bytes: int, writable: bool) -> Finding:
    """Whether the home can take another model."""
    if not writable:
        return Finding(
            "disk", Verdict.WRONG, "the home cannot be written", "give it to this user, or set QUANTRY_HOME to another"
        )
    text = f"{figures.size(free_bytes)} free, of which {figures.size(reserve_bytes)} are left free"
    if free_bytes <= reserve_bytes:
        remedy = "free some space, `quantry rm` what is not needed, or lower QUANTRY_DISK_RESERVE_BYTES"
        return Finding("disk", Verdict.WRONG, text, remedy)
    return Finding("disk", Verdict.GOOD, text)


def check_memory(total_bytes: int, available_bytes: int, budget_bytes: int) -> Finding:
    """Whether the memory budget is one this machine can keep."""
    text = (
        f"{figures.size(total_bytes)}, {figures.size(available_bytes)} available; "
        f"models may take {figures.size(budget_bytes)}"
    )
    if budget_bytes > total_bytes:
        remedy = "lower QUANTRY_MEMORY_BUDGET_BYTES: the machine has less than that"
        return Finding("memory", Verdict.WRONG, text, remedy)
    if budget_bytes > available_bytes:
        return Finding("memory", Verdict.NOTE, f"{text}: other programs hold some of it now")
    return Finding("memory", Verdict.GOOD, text)


def check_libraries(versions: Mapping[str, str | None]) -> Finding:
    """Whether everything quantry imports is installed."""
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return Finding(
            "libraries", Verdict.WRONG, f"missing: {', '.join(missing)}", "install quantry again: make setup"
        )
    return Finding("libraries", Verdict.GOOD, ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_workers(workers: Sequence[WorkerShape]) -> list[Finding]:
    """How each model in memory runs: on which rung of the launch ladder, and what went wrong last."""
    if not workers:
        return [Finding("models", Verdict.GOOD, "none is in memory, none has failed")]
    found = []
    for worker in workers:
        text = f"{worker.name} is {worker.state} on rung {worker.rung!r}"
        if worker.last_error:
            text += f"; last error: {worker.last_error}"
        if worker.state in ("quarantined", "failed"):
            remedy = "use another level, or verify the file: quantry verify " + worker.name
            found.append(Finding("models", Verdict.WRONG, text, remedy))
        elif worker.rung != TOP_RUNG:
            text += ": a faster way to run it crashed on this machine, and this one holds"
            found.append(Finding("models", Verdict.NOTE, text))
        else:
            found.append(Finding("models", Verdict.NOTE if worker.last_error else Verdict.GOOD, text))
    return found


def _amx(build: LlamaBuild, present: set[str]) -> Finding:
    advertised = any(feature.startswith("amx") for feature in present)
    used = any(feature.startswith("AMX") for feature in build.features)
    if advertised and used:
        text = "advertised, and in the build; where its kernels crash, the launch ladder goes on without them"
        return Finding("AMX", Verdict.NOTE, text)
    if advertised:
        return Finding("AMX", Verdict.GOOD, "advertised by the processor, left out of the build on purpose")
    if used:
        return Finding("AMX", Verdict.NOTE, "not advertised by the processor, though the build has it")
    return Finding("AMX", Verdict.GOOD, "not advertised, and not in the build")
