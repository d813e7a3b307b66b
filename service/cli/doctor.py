"""`quantry doctor` and `version`: this machine, the build of llama.cpp, the home, the settings, the server.

llama.cpp is asked in a child process: a build that does not suit the processor dies there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import typer
from pydantic import SecretStr
from rich.text import Text

import service
from service import __version__, machine
from service.api.catalogue_shapes import WorkerListing
from service.children import child_environment, signal_name
from service.cli import checks, tables
from service.cli.checks import Finding, LlamaBuild, Verdict
from service.cli.failures import CommandFailed, ExitCode
from service.cli.options import command
from service.cli.session import Session
from service.domain.errors import InvalidParameter
from service.settings import PREFIX, Settings, load_settings

_PANEL = "This machine"
_LLAMA_SECONDS = 60.0
_STYLES = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "bold red"}
_LIBRARIES = (
    "alembic", "fastapi", "httpx", "jinja2", "llama-cpp-python", "msgspec", "numpy", "prometheus-client", "psutil",
    "pydantic", "pydantic-settings", "rich", "sqlalchemy", "starlette", "structlog", "typer", "uvicorn",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "doctor", _PANEL)(doctor)
    command(app, "version", _PANEL)(version)


def doctor(session: Session) -> None:
    """Check this machine, the llama.cpp build, the home, the settings, the server; exit code 1 if one is wrong."""
    findings = [_processor(), *checks.check_build(ask_llama(), machine.cpu_features()), *_software()]
    settings: Settings | None = None
    try:
        settings = load_settings()
    except InvalidParameter as error:
        findings.append(Finding("settings", Verdict.WRONG, error.message, "set these variables right, or unset them"))
    else:
        findings += _home(settings)
    findings += _server(session)
    wrong = any(finding.verdict is Verdict.WRONG for finding in findings)
    if session.as_json:
        session.document(
            {
                "healthy": not wrong,
                "findings": [
                    {"topic": one.topic, "verdict": one.verdict.value, "text": one.text, "remedy": one.remedy}
                    for one in findings
                ],
                "settings": {name: text for name, text, _ in in_force(settings)} if settings else None,
            }
        )
    else:
        _print(session, findings, settings)
    if wrong:
        raise typer.Exit(ExitCode.FAILED)


def version(session: Session) -> None:
    """Print the version of quantry, of llama-cpp-python and of Python."""
    llama, python = machine.binding_version(), platform.python_version()
    if session.as_json:
        session.document({"quantry": __version__, "llama_cpp_python": llama, "python": python})
    session.say(f"quantry {__version__} (llama-cpp-python {llama}, Python {python})")


def ask_llama(argv: tuple[str, ...] = (sys.executable, "-m", "service.llama")) -> LlamaBuild:
    """What the build of llama.cpp says of itself, or how it ended when it was asked."""
    package_root = str(Path(service.__file__).resolve().parent.parent)
    environment = child_environment(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, environment.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=_LLAMA_SECONDS, env=environment, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return LlamaBuild(failure=f"{type(error).__name__} while it was asked for its version")
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        signalled = signal_name(done.returncode)
        return LlamaBuild(
            failure=f"its process died of {signalled}" if signalled else (lines or ["no reason given"])[-1]
        )
    try:
        said = json.loads(done.stdout)
        return LlamaBuild(str(said["name"]), str(said["system_info"]), bool(said["supports_gpu_offload"]))
    except (ValueError, KeyError, TypeError):
        return LlamaBuild(failure="it answered something that is not JSON")


def in_force(settings: Settings) -> list[tuple[str, str, bool]]:
    """Every setting: its name, its value as text, and whether it differs from the default. Secrets are not shown."""
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        default = field.default.expanduser() if isinstance(field.default, Path) else field.default
        rows.append((name, _shown(value), value != default))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown(part) for part in value) or "-"
    if isinstance(value, SecretStr):
        return "******"
    return "-" if value is None else str(value)


def _processor() -> Finding:
    features = " ".join(machine.cpu_features()) or "features not reported"
    text = f"{machine.cpu_model()}, {machine.usable_cores()} cores: {features}"
    return Finding("processor", Verdict.GOOD, text)


def _software() -> list[Finding]:
    versions: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    python = f"quantry {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return [Finding("software", Verdict.GOOD, python), checks.check_libraries(versions)]


def _home(settings: Settings) -> list[Finding]:
    there = next(folder for folder in (settings.home, *settings.home.parents) if folder.is_dir())
    writable = os.access(there, os.W_OK | os.X_OK)
    disk = checks.check_disk(psutil.disk_usage(str(there)).free, settings.disk_reserve_bytes, writable)
    total = machine.memory_bytes()
    budget = settings.memory_budget_bytes or machine.default_memory_budget_bytes()
    home = f"{settings.home}{'' if there == settings.home else ' (made at the first start)'}"
    available = min(total, int(psutil.virtual_memory().available))
    return [Finding("home", Verdict.GOOD, home), disk, checks.check_memory(total, available, budget)]


def _server(session: Session) -> list[Finding]:
    try:
        with session.client() as client:
            listing = client.get(WorkerListing, "/v1/workers")
    except CommandFailed as failure:
        problem = failure.problem
        if problem.exit_code is ExitCode.UNREACHABLE:
            text = f"none answers at {session.url}, so how models run there is not known"
            return [Finding("server", Verdict.NOTE, text)]
        return [Finding("server", Verdict.WRONG, problem.message, problem.remedy)]
    state = "is shutting down" if listing.draining else "answers"
    text = f"{state} at {session.url}, {listing.queue_depth} requests wait"
    return [Finding("server", Verdict.GOOD, text), *checks.check_workers(listing.data)]


def _print(session: Session, findings: list[Finding], settings: Settings | None) -> None:
    rows: list[tuple[str, str | Text]] = []
    for finding in findings:
        mark = Text(f"{finding.verdict.value:<6}", style=_STYLES[finding.verdict])
        rows.append((finding.topic, mark.append(finding.text, style="default")))
        if finding.remedy:
            rows.append(("", Text.assemble(("      try: ", "bold"), finding.remedy)))
    session.table(tables.facts(rows))
    if settings is not None:
        session.say()
        session.say(f"Settings of a server started from here (+ differs from the default; set with {PREFIX}...):")
        session.table(
            tables.facts([(f"{'+' if changed else ' '} {name}", text) for name, text, changed in in_force(settings)])
        )
