"""Kills the child of a pull at every named point of its work, alone or with its server, and has it done again.

    python -m tests.chaos.pull_points FOLDER --seeds 3 [--most-runs 6] [--only "pull:"]

A file, a checkpoint that is converted, an adapter; from a hub in a process of its own. After each kill nothing half is
in the store, and the next run ends well without asking again for a byte that had been noted as there. Prints one JSON
object: points, kills, runs that ended before their point came, bytes that were not fetched again, seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import logging
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from service.domain.catalog import AdapterFacts, FileFacts, Lineage, ModelShape
from service.domain.jobs import AdapterSpec, Job, JobError, JobSpec, JobStatus, MadeFile, PullSpec, Step, StoredFile
from service.domain.names import parse_ref
from service.domain.remote import RemoteAccess
from service.frames import FrameReader
from service.jobs import adapting, pulling
from service.jobs.assignments import assign
from service.jobs.assignments.bench import Bench
from service.jobs.messages import AdapterMade, AdapterTask, Done, Message, Progress, PullTask, Task, Transfer
from service.jobs.outbox import Outbox
from service.jobs.transfers import Transfers, is_gone_on_with
from service.remote import connections, transfer
from service.remote.guard import Answer, Network
from service.remote.partial import Partial, forget
from tests import checkpoints, tiny_models
from tests.chaos.fail_points import FailPoints, killing
from tests.chaos.kill_points import fresh, in_child
from tests.chaos.store_work import PLANS, Opened, digest_of, made
from tests.remote_hub import FakeHub

Act = Callable[[str, int], None]
_BASE = "base:F16"


@dataclass(frozen=True)
class Work:
    """A job that fetches. `files` are what the hub has, by their paths there."""

    name: str
    repo: str
    files: dict[str, bytes]
    spec: Callable[[Opened], JobSpec]

    @property
    def names(self) -> dict[str, str]:
        """What each file is called in the transfer's folder: where its bytes are noted."""
        return {_local_name(name, data): f"/{name}" for name, data in self.files.items()}


def _local_name(name: str, data: bytes) -> str:
    if name.endswith((".gguf", ".safetensors")):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()


def works(folder: Path, seed: int) -> list[Work]:
    """Three jobs, the same for the same seed."""
    pick = random.Random(seed)
    tiny_models.write_llama(folder / "m.gguf", seed=seed)
    checkpoint = checkpoints.write(folder / f"checkpoint-{seed}", "llama", seed=seed)
    parts = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}

    def adapter(opened: Opened) -> JobSpec:
        base = opened.stores.catalog.resolve(_BASE)
        return AdapterSpec("voice", StoredFile(base.name, base.digest), source="hf.co/me/voice")

    return [
        Work(
            "pull",
            "o/r",
            {"m-F16.gguf": (folder / "m.gguf").read_bytes()},
            lambda _: PullSpec("fetched", "hf.co/o/r"),
        ),
        Work("pull of a checkpoint", "o/c", parts, lambda _: PullSpec("converted", "hf.co/o/c")),
        Work("adapter", "me/voice", {"voice.gguf": b"GGUF" + pick.randbytes(700_000)}, adapter),
    ]


# --- the hub ---------------------------------------------------------------------------------------------------------


class Hub:
    """A hub in a process of its own: this one forks, and is to have no threads."""

    def __init__(self) -> None:
        self._mine, its = socket.socketpair()
        self._child = os.fork()
        if self._child == 0:
            self._mine.close()
            _serve(its)
            os._exit(0)
        its.close()
        self._lines = self._mine.makefile("rw")
        self.url = str(json.loads(self._lines.readline()))

    def offer(self, work: Work) -> None:
        """Have the files of a work, and no others."""
        self._ask({"repo": work.repo, "files": {name: data.hex() for name, data in work.files.items()}})

    def requests(self) -> list[tuple[str, str, int]]:
        """What was asked for since the last time: path, range, bytes sent."""
        return [tuple(seen) for seen in self._ask({})]

    def close(self) -> None:
        self._mine.close()
        self._lines.close()
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)

    def _ask(self, question: Any) -> Any:
        print(json.dumps(question), file=self._lines, flush=True)
        return json.loads(self._lines.readline())


def _serve(its: socket.socket) -> None:
    with FakeHub() as hub, its.makefile("rw") as lines:
        print(json.dumps(hub.url), file=lines, flush=True)
        while line := lines.readline():
            asked = json.loads(line)
            answer: Any = None
            if asked:
                hub.repos.clear()
                hub.add(asked["repo"], {name: bytes.fromhex(data) for name, data in asked["files"].items()})
                hub.requests.clear()
            else:
                seen, hub.requests[:] = list(hub.requests), []
                answer = [(one.path, one.headers.get("range", ""), one.sent) for one in seen]
            print(json.dumps(answer), file=lines, flush=True)


# --- the child -------------------------------------------------------------------------------------------------------


class Telling(Outbox):
    """An outbox whose messages are points as well."""

    def __init__(self, descriptor: int, points: FailPoints) -> None:
        super().__init__(descriptor)
        self._points = points

    def send(self, message: Message) -> None:
        self._points.reach(f"tell {type(message).__name__}")
        super().send(message)


def child(home: Path, work: Work, task: Task, acts: Act, writer: int) -> FailPoints:
    """What `service.jobs.steps` does with the task, watched; llama.cpp is left out, and pieces are small."""
    points = FailPoints(home, acts)
    points.operation = work.name
    _watch_network(points)
    connections._LEAST_PIECE_BYTES = 64 * 1024
    transfer._SAVE_EVERY_SECONDS = 0.0
    pulling.examine = _examined  # type: ignore[assignment]
    adapting._check_and_try = _tried  # type: ignore[assignment]
    points.watch()
    outbox = Telling(writer, points)
    if isinstance(task, PullTask):
        pulling.pull(msgspec.structs.replace(task, niceness=0), outbox)
    else:
        assert isinstance(task, AdapterTask)
        adapting.read_header = lambda _path: None  # type: ignore[assignment, return-value]
        adapting.take_in(msgspec.structs.replace(task, niceness=0), outbox)
    outbox.send(Done())
    points.stop()
    return points


def _watch_network(points: FailPoints) -> None:
    send, chunks = Network._send, Answer.chunks

    def sending(self: Network, *arguments: Any) -> Any:
        points.reach("request")
        answer = send(self, *arguments)
        points.reach("answer")
        return answer

    def coming(self: Answer) -> Any:
        for chunk in chunks(self):
            points.reach("bytes come")
            yield chunk

    Network._send, Answer.chunks = sending, coming  # type: ignore[method-assign]


def _examined(
    path: Path, digest: str, size_bytes: int, _name: str, step: int, outbox: Outbox, *, convert_to: str | None
) -> MadeFile:
    assert convert_to is None
    outbox.progress(step, 0.5)
    return MadeFile(str(path), digest, size_bytes, FileFacts("F16", 1000, 8.0, 10, ModelShape("llama")), PLANS, 0.5)


def _tried(task: AdapterTask, _base: object, step: int, outbox: Outbox) -> None:
    target = Path(task.target)
    digest = adapting._copy(Path(task.source), target, step, outbox)
    outbox.send(AdapterMade(step + 2, str(target), digest, target.stat().st_size, AdapterFacts("llama", 1, 1.0, 2, 9)))


# --- the server ------------------------------------------------------------------------------------------------------


def run_next(opened: Opened, work: Work, access: RemoteAccess, acts: Act, *, survives: bool) -> int:
    """Claim the job and do what the runner does with it, if the server `survives` its child; that one's exit status."""
    job = opened.queue.claim()
    assert job is not None
    bench = Bench(opened.stores, job_id=job.id, done=job.result, access=access)
    transfers = Transfers(opened.queue, opened.stores.partials)
    transfers.begin(job.id, job.spec)
    assignment = assign(job.spec, bench)
    task = assignment.task
    assert task is not None

    def body(writer: int) -> None:
        child(opened.home, work, task, acts, writer)

    status, said = in_child(body)
    if not survives and status != 0:
        return status
    reader: FrameReader[Message] = FrameReader(Message)
    stream, is_done = io.BytesIO(said), False
    while (message := reader.read_blocking(stream)) is not None:
        match message:
            case Transfer():
                transfers.found(job.id, message.folder)
            case Done():
                is_done = True
            case Progress():
                assert 0.0 <= message.fraction <= 1.0
            case outcome:
                assignment.accept(outcome)  # type: ignore[arg-type]
    end(opened, job, assignment, transfers, is_done=is_done)
    return status


def end(opened: Opened, job: Job, assignment: Any, transfers: Transfers, *, is_done: bool) -> None:
    """As the runner ends a job."""
    assignment.settle()
    for temp in opened.stores.blobs.incoming.glob(f"{job.id}-*"):
        temp.unlink(missing_ok=True)
    status = JobStatus.SUCCEEDED if is_done else JobStatus.FAILED
    error = None if is_done else JobError("job_child_died", "it died")
    asyncio.run(transfers.end(job.id, keep=is_gone_on_with(status, error, assignment.result())))
    opened.queue.finish(job.id, status, steps=(), result=assignment.result(), error=error)


def begin(folder: Path, work: Work) -> Opened:
    """A store with a base for adapters, and the job queued."""
    opened = Opened.open(fresh(folder))
    content = b"the base"
    file = made(opened.stores.blobs.incoming / "base", content, "F16")
    opened.stores.blobs.commit(Path(file.path), file.digest, file.size_bytes)
    opened.stores.catalog.add_variant(parse_ref(_BASE), file, Lineage(origin="imported"))
    opened.queue.enqueue(work.spec(opened), (Step("fetch"),))
    return opened


# --- one run ---------------------------------------------------------------------------------------------------------


def passed_points(folder: Path, work: Work, access: RemoteAccess) -> Counter[str]:
    """How often each point is passed when nothing is killed."""
    opened = begin(folder, work)
    log = folder / "points.json"
    counts: Counter[str] = Counter()

    def act(name: str, times: int) -> None:
        counts[name] = times
        if name.endswith("tell Done"):
            log.write_text(json.dumps(counts))

    status = run_next(opened, work, access, act, survives=True)
    assert status == 0, "it does not end well without a kill"
    check_end(opened, work)
    opened.close()
    return Counter(json.loads(log.read_text()))


def run_killed(
    folder: Path, work: Work, hub: Hub, access: RemoteAccess, name: str, count: int, *, survives: bool
) -> int | None:
    """One kill, and the run after it; the bytes that need not come again. None: it ended before it came to the point.

    Raises AssertionError with what does not hold.
    """
    opened = begin(folder, work)
    hub.requests()
    status = run_next(opened, work, access, killing(name, count), survives=survives)
    if status == 0:
        opened.close()
        return None
    assert status == -signal.SIGKILL, f"ended with {status}"
    noted = noted_ranges(opened.home)
    if not survives:
        opened.close()
        opened = Opened.open(opened.home)
        assert list(opened.stores.blobs.incoming.iterdir()) == [], "I4: a temp file outlived the start"
        assert opened.queue.recover() == 1
    check_store(opened)
    hub.requests()
    is_there = bool(result_of(opened, work))
    if survives:
        opened.queue.enqueue(work.spec(opened), (Step("fetch"),))
    if not (work.name == "adapter" and is_there):
        status = run_next(opened, work, access, lambda _name, _times: None, survives=True)
        assert status == 0, "the run after the kill does not end well"
    check_not_again(hub.requests(), noted, work.names)
    check_end(opened, work)
    opened.close()
    return sum(stop - start for ranges in noted.values() for start, stop in ranges)


def noted_ranges(home: Path) -> dict[str, list[tuple[int, int]]]:
    """What a transfer's folder says is there, by the names of its files."""
    found = {}
    for path in (home / "partial").glob("*/*.ranges"):
        state = json.loads(path.read_bytes())
        found[path.name.removesuffix(".ranges")] = [(start, stop) for start, stop in state["done"]]
    return found


def check_not_again(
    requests: list[tuple[str, str, int]], noted: dict[str, list[tuple[int, int]]], names: dict[str, str]
) -> None:
    """Nothing that had been noted as there was asked for."""
    for local, ranges in noted.items():
        for path, asked, _sent in requests:
            if not path.endswith(names[local]):
                continue
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
            assert match is not None, f"{path} was asked for whole"
            first, last = int(match[1]), int(match[2])
            again = [(start, stop) for start, stop in ranges if start <= last and first < stop]
            assert not again, f"{path}: bytes {first} to {last} came again, and {again} were there"


def result_of(opened: Opened, work: Work) -> dict[str, str]:
    """What the work has brought into the catalogue: names and digests."""
    catalog = opened.stores.catalog
    if work.name == "adapter":
        return {one.name: one.digest for one in catalog.adapters.all()}
    return {one.name: one.digest for one in catalog.variants() if one.name != _BASE}


def check_store(opened: Opened) -> None:
    """Whatever is in the catalogue is whole."""
    stores = opened.stores
    for digest in stores.catalog.referenced_digests():
        assert stores.blobs.verify(digest), f"I1: {digest}"
    for path in stores.blobs.root.glob("sha256-*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.removeprefix("sha256-"), "half a blob"


def check_end(opened: Opened, work: Work) -> None:
    """It is there, whole, and nothing else is left."""
    check_store(opened)
    ((_, digest),) = result_of(opened, work).items()
    if work.name != "pull of a checkpoint":
        (content,) = work.files.values()
        assert digest == digest_of(content)
    assert list(opened.stores.blobs.incoming.iterdir()) == [], "a temp file is left"
    assert list(opened.stores.partials.root.iterdir()) == [], "a transfer is left"
    assert opened.queue.counts()[JobStatus.RUNNING] == 0, "I3"


def forget_ranges() -> None:
    """Files that nothing is remembered of."""
    Partial.recall = lambda self, *_arguments, **_options: forget(self.path)  # type: ignore[method-assign]


def note_early() -> None:
    """Bytes that are noted as there before they are."""
    save = Partial.save

    def early(self: Partial, what: str, size: int | None, validator: str | None) -> None:
        save(self, what, size, validator)
        path = self.path.with_name(f"{self.path.name}.ranges")
        path.write_text(json.dumps({**json.loads(path.read_text()), "done": [(0, size or 0)]}))

    Partial.save = early  # type: ignore[method-assign]


SABOTAGE = {"forget-ranges": forget_ranges, "note-early": note_early}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--most-runs", type=int, default=1_000_000, help="of each of the works, in each seed")
    parser.add_argument("--only", default="", help="works whose names begin so")
    parser.add_argument("--sabotage", choices=SABOTAGE, help="spoil the fetching: the kills must find it out")
    options = parser.parse_args()
    if options.sabotage is not None:
        SABOTAGE[options.sabotage]()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began = time.monotonic()
    names: Counter[str] = Counter()
    late, saved, broken = 0, 0, []
    hub = Hub()
    access = RemoteAccess(hosts=(hub.url,), hub=hub.url, registry=hub.url, connections=3, stall_seconds=5.0)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        pick = random.Random(seed)
        for work in works(options.folder, seed):
            if not work.name.startswith(options.only):
                continue
            hub.offer(work)
            passed = passed_points(options.folder, work, access)
            order = sorted(passed)
            pick.shuffle(order)
            for name in order[: options.most_runs]:
                count, survives = pick.randint(1, passed[name]), pick.random() < 0.5
                try:
                    # Threads pass points as often as they happen to: the first time always comes.
                    kept = run_killed(options.folder, work, hub, access, name, count, survives=survives)
                    if kept is None:
                        late += 1
                        kept = run_killed(options.folder, work, hub, access, name, 1, survives=survives)
                    assert kept is not None, "the point did not come again"
                    saved += kept
                except Exception as problem:
                    broken.append([seed, name, count, survives, f"{type(problem).__name__}: {problem}"[:1500]])
                names[name] += 1
    hub.close()
    seconds = round(time.monotonic() - began, 1)
    kills = sum(names.values())
    said = {"points": len(names), "kills": kills, "late": late, "bytes_kept": saved, "seconds": seconds}
    print(json.dumps({**said, "broken": broken, "names": names}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
