"""Starts one side on a free port, waits until it answers, warms it up, and ends it. See README.md for the flags.

A side runs alone: it is started for one measurement and ended after it. A server that is stopped by a signal instead
would keep its memory and wake up to timeouts; one that is left idle may still spin or ping.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Ask, Target, ask_once
from benchmarks.models import Measurable
from benchmarks.peers import Peers, python_peer
from benchmarks.processes import StartFailed, answers, free_port, running, wait_until
from benchmarks.workloads import EXAMPLES_SERVER, LLAMA_CPP_SERVER, LLAMA_SERVER, QUANTRY

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300.0
_HOST = "127.0.0.1"

VARIANTS = {
    # Each slot has its part of the cache; no copies of idle slots to RAM, which cost time and help nobody here.
    "split": ("--no-kv-unified", "--cache-ram", "0"),
    # One pool, chunks of old prompts shifted into place, prompts of idle slots kept in RAM, any likeness counts.
    "unified": ("--kv-unified", "--cache-reuse", "32", "--slot-prompt-similarity", "0.05"),
    "one-thread": ("--no-kv-unified", "--cache-ram", "0", "-t", "1", "-tb", "1"),
    "drafts": ("--no-kv-unified", "--cache-ram", "0", "--spec-default"),
}
"""llama-server's sets of flags, on top of those that all have."""


@dataclass(frozen=True)
class Bench:
    """What all measurements of a run have in common. `model` is None while it is being prepared."""

    home: Path
    logs: Path
    threads: int
    peers: Peers | None
    model: Measurable | None = None


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    target: Target


@contextmanager
def serving(
    bench: Bench, side: str, variant: str, *, context: int, parallel: int, fields: dict[str, Any]
) -> Iterator[Running]:
    """A warm server of `side` with `context` tokens for each of `parallel` requests. Raises StartFailed, CacheError."""
    assert bench.model is not None
    starters = {QUANTRY: _quantry, LLAMA_SERVER: _llama_server, EXAMPLES_SERVER: _examples, LLAMA_CPP_SERVER: _locked}
    with starters[side](bench, variant, context, parallel) as (process, port, own):
        name = bench.model.name if side == QUANTRY else "measured"
        target = Target(_HOST, port, name, bench.model.has_chat_template, own | fields)
        asyncio.run(_warm_up(Target(_HOST, port, name, bench.model.has_chat_template, own)))
        yield Running(process, target)


@contextmanager
def quantry(bench: Bench, *, context: int, parallel: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A quantry server on the run's home; its process and URL."""
    description = bench.home / "server.json"
    description.unlink(missing_ok=True)
    environment = _environment() | {
        "PYTHONPATH": str(ROOT),
        "QUANTRY_HOME": str(bench.home),
        "QUANTRY_PORT": "0",
        "QUANTRY_PARALLEL": str(parallel),
        "QUANTRY_CONTEXT_LENGTH": str(context),
        "QUANTRY_THREADS": str(bench.threads),
        "QUANTRY_LOG_LEVEL": "warning",
        "QUANTRY_IMPORT_WAIT_SECONDS": "300",
        "QUANTRY_KEEP_ALIVE_SECONDS": "86400",
    }
    log = bench.logs / "quantry.log"
    with running([sys.executable, "-P", "-m", "service", "serve"], environment, log) as process:

        def ready() -> bool:
            try:
                told = json.loads(description.read_text())
            except (OSError, ValueError):
                return False
            return told["pid"] == process.pid and answers(f"{told['url']}/ready")

        wait_until(ready, process, log, START_SECONDS)
        yield process, str(json.loads(description.read_text())["url"])


_Started = Iterator[tuple[subprocess.Popen[bytes], int, dict[str, Any]]]


@contextmanager
def _quantry(bench: Bench, variant: str, context: int, parallel: int) -> _Started:
    with quantry(bench, context=context, parallel=parallel) as (process, url):
        yield process, int(url.rsplit(":", 1)[1]), {}


@contextmanager
def _llama_server(bench: Bench, variant: str, context: int, parallel: int) -> _Started:
    assert bench.peers is not None
    assert bench.model is not None
    port = free_port()
    command = [str(bench.peers.program("llama-server")), "-m", str(bench.model.path)]
    command += ["--host", _HOST, "--port", str(port), "--no-ui", "-lv", "2", "-t", str(bench.threads)]
    command += ["-np", str(parallel), "-c", str(context * parallel), "-fa", "on", *VARIANTS[variant]]
    log = bench.logs / "llama-server.log"
    with running(command, _environment(), log) as process:
        wait_until(lambda: answers(f"http://{_HOST}:{port}/health"), process, log, START_SECONDS)
        yield process, port, {}


@contextmanager
def _examples(bench: Bench, variant: str, context: int, parallel: int) -> _Started:
    assert bench.peers is not None
    assert bench.model is not None
    peer = python_peer(EXAMPLES_SERVER, bench.peers)
    port = free_port()
    config = {
        "server": {"host": _HOST, "port": port},
        "model": {
            "path": str(bench.model.path),
            "alias": "measured",
            "n_ctx": context * parallel,
            "n_seq_max": parallel,
            "n_batch": 512,
            "n_ubatch": 512,
            "threads": bench.threads,
            "threads_batch": bench.threads,
            "kv_unified": True,
            "flash_attn": True,
            "store_logits": False,
            "use_mmap": True,
        },
    }
    file = bench.logs / "examples-server.json"
    file.write_text(json.dumps(config, indent=1))
    script = bench.peers.source / "examples" / "server" / "server.py"
    log = bench.logs / "examples-server.log"
    with running([str(peer.python), str(script), "-C", str(file)], _environment() | peer.environment, log) as process:
        wait_until(lambda: answers(f"http://{_HOST}:{port}/healthz"), process, log, START_SECONDS)
        # It has no ignore_eos: the end token is made unlikely instead.
        bias = {} if bench.model.eos_token is None else {"logit_bias": {str(bench.model.eos_token): -100}}
        yield process, port, bias


@contextmanager
def _locked(bench: Bench, variant: str, context: int, parallel: int) -> _Started:
    assert bench.peers is not None
    assert bench.model is not None
    peer = python_peer(LLAMA_CPP_SERVER, bench.peers)
    port = free_port()
    command = [str(peer.python), "-m", "llama_cpp.server", "--model", str(bench.model.path)]
    command += ["--model_alias", "measured", "--host", _HOST, "--port", str(port), "--n_ctx", str(context)]
    command += ["--n_threads", str(bench.threads), "--n_threads_batch", str(bench.threads), "--flash_attn", "true"]
    # A second request would end the first one otherwise; logits of prompt tokens are of no use.
    command += ["--interrupt_requests", "false", "--logits_all", "false", "--verbose", "false"]
    log = bench.logs / "llama_cpp.server.log"
    with running(command, _environment() | peer.environment, log) as process:
        wait_until(lambda: answers(f"http://{_HOST}:{port}/v1/models"), process, log, START_SECONDS)
        yield process, port, {}


async def _warm_up(target: Target) -> None:
    """The load where it is lazy, the first touch of every buffer, and a batch of two."""
    first = await ask_once(target, Ask("Name ten colours, and ten animals of each of them. " * 8, 8), START_SECONDS)
    both = await asyncio.gather(*(ask_once(target, Ask(f"Count to {n}0.", 8), START_SECONDS) for n in (2, 3)))
    errors = [answer.error for answer in (first, *both) if answer.error]
    if errors:
        raise StartFailed(f"it does not answer: {errors[0]}")


def _environment() -> dict[str, str]:
    # The caller's own QUANTRY_ variables would change one side; LLAMA_ARG_ the other.
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QUANTRY_", "LLAMA_ARG_", "PYTHON", "VIRTUAL_ENV"))
    }
