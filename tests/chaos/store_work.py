"""A server's day in one process: what its store and its queue do, in the order of a seed, and what must hold.

The work is a list of operations, each a list of changes that are acknowledged one by one. A change is one transaction
of the catalogue: whoever looks after a crash finds the state before or after it. Files are what a child would leave.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from service.domain.catalog import Adapter, AdapterFacts, FileFacts, LevelPlan, Lineage, ModelShape, Variant
from service.domain.desired import Desired
from service.domain.errors import Conflict, DigestMismatch, NotFound
from service.domain.generation import AdapterUse
from service.domain.importance import ImportanceFacts, ImportanceMatrix
from service.domain.jobs import (
    AdapterSpec,
    Adoption,
    BundleSpec,
    ImportSpec,
    Job,
    JobError,
    JobSpec,
    JobStatus,
    MadeFile,
    QuantizeSpec,
    Step,
    StoredFile,
)
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.jobs.adopting import adopt
from service.jobs.assignments import assign
from service.jobs.assignments.bench import Bench
from service.jobs.assignments.imports import discard_refused_upload
from service.jobs.files import copy_and_sync, hash_and_sync, keep_readable
from service.jobs.limits import lift_memory_limit
from service.jobs.messages import (
    AdapterMade,
    AdapterTask,
    BundlePart,
    BundleTask,
    Calibrated,
    ImportTask,
    LaboratoryTask,
    LevelStep,
    Made,
    Outcome,
    PartKind,
)
from service.jobs.outbox import Outbox
from service.jobs.queue import JobQueue
from service.store import care
from service.store.blobs import BlobStore
from service.store.bundles import packing
from service.store.bundles.gathering import gather
from service.store.catalog import Catalog
from service.store.database import open_database, read
from service.store.derived import DerivedFiles
from service.store.desired import DesiredLevels
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.stores import Stores

LEVELS = ("Q8_0", "Q4_0")
LORA = AdapterFacts("llama", 4, 8.0, 2, 64)
IMPORTANCE = ImportanceFacts(1, 512, ("text",), ())
BOXED = "boxed"  # the model of the bundle
TAGGED = (f"{BOXED}:Q8_0", "pirate")  # the variant of it with a tag, which has a preset
PRESET = Preset("Arr.", parameters={"top_k": 3}, adapters=(AdapterUse("tone", 0.5),))
PLANS = tuple(LevelPlan(label, 10, 8.5, needs_imatrix=False) for label in LEVELS)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Opened:
    """The store of one home, and what belongs to it."""

    home: Path
    engine: Engine
    stores: Stores
    queue: JobQueue
    desired: DesiredLevels

    @classmethod
    def open(cls, home: Path) -> Opened:
        home.mkdir(exist_ok=True)
        engine = open_database(f"sqlite:///{home / 'catalog.db'}")
        blobs = BlobStore(home / "blobs", reserve_bytes=0)
        blobs.start()
        partials = Partials(home / "partial", 86400.0)
        partials.start()
        catalog = Catalog(engine)
        care.start(catalog, blobs)
        stores = Stores(catalog, blobs, Laboratory(engine), DerivedFiles(home / "derived", 1 << 20), partials)
        queue = JobQueue(engine, max_queued=10)
        return cls(home, engine, stores, queue, DesiredLevels(engine))

    def sweep(self, wanted: frozenset[str]) -> None:
        """As the server does every ten minutes."""
        keep = self.queue.active_digests() | wanted
        self.stores.catalog.forget_unused(keep, 0)
        self.stores.blobs.sweep(keep | self.stores.catalog.referenced_digests(), 0)

    def close(self) -> None:
        self.engine.dispose()


@dataclass
class State:
    """What the catalogue is to hold."""

    variants: dict[str, str] = field(default_factory=dict)  # canonical name -> digest
    tags: dict[str, str] = field(default_factory=dict)  # name with a free word -> canonical name
    uploads: frozenset[str] = frozenset()
    corrupt: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    wishes: tuple[str, ...] = ()
    adapters: frozenset[tuple[str, str]] = frozenset()  # model and name, digest
    matrices: frozenset[str] = frozenset()
    presets: frozenset[tuple[str, str | None]] = frozenset()  # name with a free word, what it says first

    def with_(self, **changes: object) -> State:
        return State(**{**self.__dict__, **changes})  # type: ignore[arg-type]


Change = Callable[[State], State]
Acknowledge = Callable[[], None]


@dataclass(frozen=True)
class Operation:
    """Something a server does. `run` acknowledges each of `changes` once it is done; it may be run again.

    `at_once` is how many changes there may be between two acknowledgements.
    """

    name: str
    changes: tuple[Change, ...]
    run: Callable[[Opened, Acknowledge], None]
    at_once: int = 1


def same(state: State) -> State:
    return state


def add_variant(name: str, digest: str, *, used: bool = False) -> Change:
    def change(state: State) -> State:
        uploads = state.uploads - {digest} if used else state.uploads
        return state.with_(variants={**state.variants, name: digest}, uploads=uploads)

    return change


def remove_variants(*names: str) -> Change:
    def change(state: State) -> State:
        variants = {name: digest for name, digest in state.variants.items() if name not in names}
        tags = {tag: name for tag, name in state.tags.items() if name not in names}
        left = {name.partition(":")[0] for name in variants}
        adapters = frozenset(adapter for adapter in state.adapters if adapter[0].partition("/")[0] in left)
        presets = frozenset(preset for preset in state.presets if preset[0] in tags)
        corrupt = state.corrupt & set(variants.values())
        return state.with_(variants=variants, tags=tags, corrupt=corrupt, adapters=adapters, presets=presets)

    return change


def add_upload(digest: str) -> Change:
    return lambda state: state.with_(uploads=state.uploads | {digest})


def add_adapter(model: str, name: str, digest: str) -> Change:
    return lambda state: state.with_(adapters=state.adapters | {(f"{model}/{name}", digest)})


def add_matrix(digest: str) -> Change:
    return lambda state: state.with_(matrices=state.matrices | {digest})


def add_tag(tag: str, target: str) -> Change:
    return lambda state: state.with_(tags={**state.tags, tag: target})


def add_preset(name: str, system: str) -> Change:
    return lambda state: state.with_(presets=state.presets | {(name, system)})


# --- jobs, with a stand-in for the child -------------------------------------------------------------------------


def made(path: Path, content: bytes, quantization: str) -> MadeFile:
    """Write a file as a child does: in chunks, without a buffer, synced and hashed."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), 1 << 18):
            file.write(content[start : start + (1 << 18)])
    digest = hash_and_sync(path)
    facts = FileFacts(quantization, 1000, 8.0, 10, ModelShape("llama"), quantized_tensors=quantization != "F16")
    return MadeFile(str(path), digest, len(content), facts, PLANS, 0.5)


def run_job(opened: Opened, spec: JobSpec, contents: dict[str, bytes], landed: Acknowledge) -> None:
    """Enqueue, claim, do what a child would, take it in, end it."""
    opened.queue.enqueue(spec, (Step("work"),))
    job = opened.queue.claim()
    while job is not None:
        carry_out(opened, job, contents, landed)
        job = opened.queue.claim()


def job_of(spec: JobSpec, contents: dict[str, bytes] | None = None) -> Callable[[Opened, Acknowledge], None]:
    """A job as an operation: what it makes is acknowledged as it lands, and at last its end."""

    def run(opened: Opened, ack: Acknowledge) -> None:
        run_job(opened, spec, contents or {}, ack)
        ack()

    return run


def carry_out(opened: Opened, job: Job, contents: dict[str, bytes], landed: Acknowledge) -> None:
    bench = Bench(opened.stores, job_id=job.id, done=job.result)
    assignment = assign(job.spec, bench)
    task = assignment.task
    if isinstance(task, ImportTask):
        content = Path(task.source).read_bytes()
        if task.adopt is not Adoption.COPY:
            path, digest, _ = adopt(Path(task.source), Path(task.target), task.adopt, Silent())
            lift_memory_limit()
            file = _facts_of(content, str(path))
            assert file.digest == digest
        else:
            file = made(Path(task.target), content, "F16") if task.digest is None else _facts_of(content, task.source)
        opened.queue.update_progress(job.id, 0.5, assignment.steps, 1.0)
        assignment.accept(Made(len(assignment.steps) - 1, file, "llama.cpp 1"))
        landed()
    elif isinstance(task, LaboratoryTask):
        for number, step in enumerate(task.steps):
            assert isinstance(step, LevelStep)
            file = made(Path(step.target), contents[step.recipe.quantization], step.recipe.quantization)
            assignment.accept(Made(number, file, "llama.cpp 1", recipe=step.recipe))
            landed()
            opened.queue.update_progress(job.id, 0.5, assignment.steps, 1.0, result=assignment.result())
    elif isinstance(task, AdapterTask):
        content = Path(task.source).read_bytes()
        copied(Path(task.source), Path(task.target), len(content))
        assignment.accept(AdapterMade(len(assignment.steps) - 1, task.target, digest_of(content), len(content), LORA))
        landed()
    elif isinstance(task, BundleTask):
        for number, part in enumerate(task.parts):
            assignment.accept(unpacked(task, part, number))
            for _ in range(len(TAGGED) if part.name in TAGGED else 1):
                landed()
    assignment.conclude()
    if isinstance(task, BundleTask):
        landed()  # what its names add
    for temp in opened.stores.blobs.incoming.glob(f"{job.id}-*"):
        temp.unlink(missing_ok=True)
    opened.queue.finish(job.id, JobStatus.SUCCEEDED, steps=assignment.steps, result=assignment.result())


class Silent(Outbox):
    """A child's line to a server that does not listen."""

    def __init__(self) -> None:
        """It needs no pipe."""

    def progress(self, step: int, fraction: float, detail: str | None = None) -> None:
        """Say nothing."""


def copied(source: Path, target: Path, size: int, offset: int = 0) -> str:
    """As a child copies what comes in."""
    descriptor = os.open(source, os.O_RDONLY)
    try:
        digest = copy_and_sync(descriptor, target, size, lambda _done: None, offset=offset)
    finally:
        os.close(descriptor)
    assert digest is not None
    return digest


def unpacked(task: BundleTask, part: BundlePart, number: int) -> Outcome:
    """As a bundle's child leaves a part, but for looking at what it is."""
    if not part.stored:
        assert copied(Path(task.source), Path(part.target), part.size_bytes, part.offset) == part.digest
        keep_readable(Path(part.target), part.keep)
    path = part.stored or part.target
    match part.kind:
        case PartKind.MODEL:
            label = part.name.partition(":")[2]
            facts = FileFacts(label, 1000, 8.0, 10, ModelShape("llama"), quantized_tensors=label != "F16")
            return Made(number, MadeFile(path, part.digest, part.size_bytes, facts, PLANS, 0.5), "llama.cpp 1")
        case PartKind.ADAPTER:
            assert all(Path(base).stat().st_size for base in part.bases)
            return AdapterMade(number, path, part.digest, part.size_bytes, LORA)
        case PartKind.IMPORTANCE:
            return Calibrated(number, path, part.digest, part.size_bytes, IMPORTANCE)


def _facts_of(content: bytes, source: str) -> MadeFile:
    facts = FileFacts("F16", 1000, 8.0, 10, ModelShape("llama"))
    return MadeFile(source, digest_of(content), len(content), facts, PLANS, 0.5)


# --- the day -----------------------------------------------------------------------------------------------------


class Day:
    """All that happens, by the seed. `operations` in their order; `contents` are the bytes that come in."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = random.Random(seed)
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._upload = self._content() + b"u"
        self._wanted = frozenset({digest_of(self._upload)})
        self._adopted: dict[Path, bytes] = {}
        threads = [self._models(), self._uploads(), self._refused(), self._transfer(), self._other()]
        threads += [self._bundles(), self._adoptions()]
        self.operations: list[Operation] = []
        while threads:
            thread = self._random.choice(threads)
            try:
                self.operations.append(next(thread))
            except StopIteration:
                threads.remove(thread)

    def states(self) -> list[State]:
        """After every change, the first before all."""
        found = [State()]
        for operation in self.operations:
            for change in operation.changes:
                found.append(change(found[-1]))
        return found

    def allowed(self, states: list[State], acknowledged: int) -> list[State]:
        """Those of `states` that the store may be in when so many changes were acknowledged."""
        begun = 0
        for operation in self.operations:
            begun += len(operation.changes)
            if begun > acknowledged:
                return states[acknowledged : min(begun, acknowledged + operation.at_once) + 1]
        return states[acknowledged:]

    def check_files(self) -> None:
        """What was adopted is its owner's, and as it was."""
        for path, content in self._adopted.items():
            assert path.read_bytes() == content, "a file that was adopted has changed"

    def _content(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 77, 4096, 300_000)))

    def _file(self, name: str) -> tuple[Path, bytes]:
        path, content = self._folder / name, self._content()
        path.write_bytes(content)
        return path, content

    def _models(self) -> Iterator[Operation]:
        path, source = self._file("source.gguf")
        levels = {label: self._content() for label in LEVELS}
        spec = QuantizeSpec("gloss:F16", digest_of(source), LEVELS)
        yield importing("gloss", path, source)
        yield Operation(
            "quantize",
            (*(add_variant(f"gloss:{label}", digest_of(levels[label])) for label in LEVELS), same),
            job_of(spec, levels),
        )
        words = ["gloss:F16", "gloss:Q8_0", "gloss:Q4_0"]
        self._random.shuffle(words)
        for target in words[:2]:
            yield tagging("gloss:latest", target)
        yield pinning("gloss:F16", True)
        yield copying("gloss:Q8_0", "people/gloss:Q8_0")
        damaged = self._random.choice(LEVELS)
        yield condemning(digest_of(levels[damaged]), f"gloss:{damaged}")
        yield mending(digest_of(levels[damaged]), levels[damaged])
        yield pinning("gloss:F16", False)
        yield deleting("gloss:latest", ())
        victim = self._random.choice(LEVELS)
        yield deleting(f"gloss:{victim}", (f"gloss:{victim}",))
        yield sweeping(self._wanted)
        rest = next(label for label in LEVELS if label != victim)
        yield deleting("gloss", ("gloss:F16", f"gloss:{rest}"))
        yield sweeping(self._wanted)

    def _uploads(self) -> Iterator[Operation]:
        content, unused = self._upload, self._content() + b"v"
        yield uploading(content)
        yield Operation(
            "import of an upload",
            (add_variant("other:F16", digest_of(content), used=False), same),
            job_of(ImportSpec("other", digest=digest_of(content))),
        )
        yield uploading(unused)
        yield uploading_other_bytes(self._content())

    def _refused(self) -> Iterator[Operation]:
        content = self._content() + b"no model"
        yield uploading(content)
        yield refusing(content)
        yield failing(self._folder / "gone.gguf")

    def _transfer(self) -> Iterator[Operation]:
        yield transferring(self._content() + b"transferred")

    def _other(self) -> Iterator[Operation]:
        path, content = self._file("second.gguf")
        yield importing("second", path, content)
        yield wishing("second", ("Q8_0",))
        yield wishing("second", ("Q8_0", "Q4_K_M"))
        yield adopting_again("second", path, content)

    def _bundles(self) -> Iterator[Operation]:
        contents = {label: self._content() + label.encode() for label in ("F16", "Q8_0", "tone", "imatrix")}
        digests = {label: digest_of(content) for label, content in contents.items()}
        path = self._folder / "boxed.tar"
        write_bundle(path, contents)
        names = [f"{BOXED}:F16", TAGGED[0]]
        brought: list[Change] = [add_variant(name, digests[name.partition(":")[2]]) for name in names]
        tag = f"{BOXED}:{TAGGED[1]}"
        assert PRESET.system is not None
        changes = (
            *brought,
            add_tag(tag, TAGGED[0]),
            add_matrix(digests["imatrix"]),
            add_adapter(BOXED, "tone", digests["tone"]),
            add_preset(tag, PRESET.system),
            same,
        )
        yield Operation("bundle in", changes, job_of(BundleSpec(path=str(path))), at_once=2)
        yield Operation("bundle out", (same,), bundling_out)
        adapter, content = self._file("voice.gguf")
        spec = AdapterSpec("voice", StoredFile(names[0], digests["F16"]), path=str(adapter))
        yield Operation("adapter", (add_adapter(BOXED, "voice", digest_of(content)), same), job_of(spec))
        yield deleting_adapter(BOXED, "voice", digest_of(content))
        yield Operation("bundle again", (same,), job_of(BundleSpec(path=str(path))))
        yield deleting(tag, ())
        yield deleting(BOXED, tuple(names))
        yield sweeping(self._wanted)

    def _adoptions(self) -> Iterator[Operation]:
        for adoption in (Adoption.LINK, Adoption.REFERENCE):
            name = f"by-{adoption}"
            path, content = self._file(f"{name}.gguf")
            content += name.encode()  # of no other file
            path.write_bytes(content)
            self._adopted[path] = content
            spec = ImportSpec(name, path=str(path.resolve()), adopt=adoption)
            change = add_variant(f"{name}:F16", digest_of(content))
            yield Operation(f"adopt with {adoption}", (change, same), job_of(spec))
        yield deleting("by-link", ("by-link:F16",))
        yield sweeping(self._wanted)


def write_bundle(path: Path, contents: dict[str, bytes]) -> None:
    """A model with all that goes with one, as an export writes it."""
    key, at = parse_ref(BOXED).key, "2026-01-01T00:00:00.000000Z"
    files = {label: (digest_of(content), len(content)) for label, content in contents.items()}
    variants = [
        Variant(
            number,
            key,
            "",
            label,
            *files[label],
            FileFacts(label, 1000, 8.0, 10, ModelShape("llama")),
            Lineage("imported"),
            at,
            tags=(TAGGED[1],) if number else (),
        )
        for number, label in enumerate(("F16", "Q8_0"))
    ]
    packed = packing.pack(
        packing.Contents(
            variants,
            presets={TAGGED[1]: PRESET},
            adapters=[Adapter(key, "tone", *files["tone"], LORA, at)],
            matrices=[ImportanceMatrix(*files["imatrix"], BOXED, None, None, IMPORTANCE, at)],
        )
    )
    by_digest = {digest_of(content): content for content in contents.values()}
    with path.open("wb") as file:
        for part in packed.parts:
            file.write(part if isinstance(part, bytes) else by_digest[part.digest])


def bundling_out(opened: Opened, ack: Acknowledge) -> None:
    """Every file of a bundle is read as a download reads it."""
    stores = opened.stores
    variants = stores.catalog.variants(BOXED)
    contents = gather(stores.catalog, stores.laboratory, parse_ref(BOXED), variants, whole=True)
    for part in packing.pack(contents).parts:
        if isinstance(part, bytes):
            continue
        descriptor = os.open(stores.blobs.path(part.digest), os.O_RDONLY)
        try:
            assert digest_of(os.pread(descriptor, part.size_bytes, 0)) == part.digest
        finally:
            os.close(descriptor)
    ack()


def deleting_adapter(model: str, name: str, digest: str) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        with suppress(NotFound):  # done before the crash
            opened.stores.catalog.adapters.delete(parse_ref(model).key, name)
        ack()

    gone = frozenset({(f"{model}/{name}", digest)})
    # The blob has a row of its own until the next sweep.
    change: Change = lambda s: s.with_(adapters=s.adapters - gone, uploads=s.uploads | {digest})  # noqa: E731
    return Operation("delete adapter", (change,), run)


def importing(name: str, path: Path, content: bytes) -> Operation:
    spec = ImportSpec(name, path=str(path))
    change = add_variant(f"{name}:F16", digest_of(content))
    return Operation("import", (change, same), job_of(spec))


def adopting_again(name: str, path: Path, content: bytes) -> Operation:
    """The same file under the same name: nothing changes."""
    spec = ImportSpec(name, path=str(path))
    return Operation("import again", (same, same), job_of(spec))


def tagging(tag: str, target: str) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        catalog = opened.stores.catalog
        catalog.copy(catalog.resolve(target), parse_ref(tag))
        ack()

    return Operation("tag", (lambda state: state.with_(tags={**state.tags, tag: target}),), run)


def copying(source: str, target: str) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        catalog = opened.stores.catalog
        catalog.copy(catalog.resolve(source), parse_ref(target))
        ack()

    return Operation("copy", (lambda s: s.with_(variants={**s.variants, target: s.variants[source]}),), run)


def pinning(name: str, pinned: bool) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        catalog = opened.stores.catalog
        catalog.pin(catalog.resolve(name), pinned)
        ack()

    change = lambda s: s.with_(pinned=s.pinned | {name} if pinned else s.pinned - {name})  # noqa: E731
    return Operation("pin", (change,), run)


def wishing(model: str, levels: tuple[str, ...]) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        opened.desired.put(parse_ref(model).key, Desired(levels))
        ack()

    return Operation("wish", (lambda state: state.with_(wishes=levels),), run)


def deleting(name: str, gone: tuple[str, ...]) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        with suppress(NotFound, Conflict):  # done before the crash
            opened.stores.catalog.delete(parse_ref(name))
        ack()

    def change(state: State) -> State:
        if gone:
            return remove_variants(*gone)(state)
        tags = {tag: target for tag, target in state.tags.items() if tag != name}
        return state.with_(tags=tags, presets=frozenset(preset for preset in state.presets if preset[0] in tags))

    return Operation("delete", (change,), run)


def sweeping(wanted: frozenset[str]) -> Operation:
    """Uploads that nothing is made of lose their row, whatever the age, and every file without one goes.

    `wanted` stands for those that are too young for that.
    """

    def run(opened: Opened, ack: Acknowledge) -> None:
        opened.sweep(wanted)
        ack()

    return Operation("sweep", (lambda state: state.with_(uploads=state.uploads & wanted),), run)


def uploading(content: bytes) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        with opened.stores.blobs.open_upload(digest_of(content), len(content)) as upload:
            upload.write(content[: len(content) // 2])
            upload.write(content[len(content) // 2 :])
            upload.finish()
        opened.stores.catalog.add_blob(digest_of(content), len(content))
        ack()

    return Operation("upload", (add_upload(digest_of(content)),), run)


def uploading_other_bytes(content: bytes) -> Operation:
    def run(opened: Opened, ack: Acknowledge) -> None:
        with suppress(DigestMismatch), opened.stores.blobs.open_upload(digest_of(content + b"!")) as upload:
            upload.write(content)
            upload.finish()
        ack()

    return Operation("upload of other bytes", (same,), run)


def refusing(content: bytes) -> Operation:
    """An import finds that the upload is no model."""
    spec = ImportSpec("refused", digest=digest_of(content))

    def run(opened: Opened, ack: Acknowledge) -> None:
        opened.queue.enqueue(spec, (Step("check"),))
        while (job := opened.queue.claim()) is not None:
            discard_refused_upload(spec, opened.stores)
            opened.queue.finish(job.id, JobStatus.FAILED, steps=(), error=JobError("invalid_model", "no model"))
        ack()

    return Operation("refuse", (lambda s: s.with_(uploads=s.uploads - {digest_of(content)}),), run)


def failing(path: Path) -> Operation:
    """An import fails with a copy half made."""

    def run(opened: Opened, ack: Acknowledge) -> None:
        opened.queue.enqueue(ImportSpec("failing", path=str(path)), (Step("copy"),))
        while (job := opened.queue.claim()) is not None:
            temp = opened.stores.blobs.incoming / f"{job.id}-import"
            with temp.open("wb", buffering=0) as file:
                file.write(b"half")
            temp.unlink()
            opened.queue.finish(job.id, JobStatus.FAILED, steps=(), error=JobError("invalid_model", "half"))
        ack()

    return Operation("fail", (same,), run)


def transferring(content: bytes) -> Operation:
    """A download in pieces that survives restarts: written where it can be gone on with, then committed."""

    def run(opened: Opened, ack: Acknowledge) -> None:
        blobs, partials = opened.stores.blobs, opened.stores.partials
        folder = partials.folder("pull", digest_of(content))
        part = folder / "file"
        have = part.stat().st_size if part.exists() else 0
        assert content.startswith(part.read_bytes() if have else b"")
        with part.open("ab", buffering=0) as file:
            middle = max(have, len(content) // 2)
            for piece in (content[have:middle], content[middle:]):
                file.write(piece)
            os.fsync(file.fileno())
        temp = blobs.incoming / "pulled"
        os.rename(part, temp)
        blobs.commit(temp, digest_of(content), len(content))
        opened.stores.catalog.add_blob(digest_of(content), len(content))
        partials.discard(folder)
        ack()

    return Operation("transfer", (add_upload(digest_of(content)),), run)


def condemning(digest: str, name: str) -> Operation:
    """The blob's bytes rot, and someone looks."""

    def run(opened: Opened, ack: Acknowledge) -> None:
        path = opened.stores.blobs.where(digest)
        if path is not None:
            with suppress(FileNotFoundError):
                os.chmod(path, 0o600)
                path.write_bytes(b"rotten")
        care.verify(opened.stores.catalog, opened.stores.blobs, digest)
        ack()

    return Operation("condemn", (lambda s: s.with_(corrupt=s.corrupt | {digest}),), run)


def mending(digest: str, content: bytes) -> Operation:
    """The right bytes come in."""

    def run(opened: Opened, ack: Acknowledge) -> None:
        blobs, catalog = opened.stores.blobs, opened.stores.catalog
        with blobs.open_upload(digest, len(content), replace=True) as upload:
            upload.write(content)
            upload.finish()
        care.mended(catalog, blobs, digest)
        ack()

    return Operation("mend", (lambda s: s.with_(corrupt=s.corrupt - {digest}),), run)


# --- what must hold ----------------------------------------------------------------------------------------------


def check(opened: Opened, allowed: list[State]) -> State:
    """The invariants in a store that was just opened: I1 to I6; which of the states it is in."""
    recovered = opened.queue.recover()
    assert recovered <= 1
    assert opened.queue.counts()[JobStatus.RUNNING] == 0, "I3"
    stores = opened.stores
    assert list(stores.blobs.incoming.iterdir()) == [], "I4: a temp file outlived the start"
    with read(opened.engine) as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok", "I6"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == [], "I6"
    listed = stores.catalog.variants()
    found = {variant.name: variant.digest for variant in listed}
    tags = {f"{variant.model.display}:{word}": variant.name for variant in listed for word in variant.tags}
    corrupt = frozenset(blob.digest for blob in stores.catalog.blobs() if blob.corrupt)
    pinned = frozenset(variant.name for variant in listed if variant.pinned)
    wish = opened.desired.get(parse_ref("second").key) if "second:F16" in found else None
    owned = {(f"{adapter.model.display}/{adapter.name}", adapter.digest) for adapter in stores.catalog.adapters.all()}
    matrices = frozenset(matrix.digest for matrix in stores.laboratory.importance_matrices())
    added = frozenset(
        (f"{folded.rpartition('/')[2]}:{word}", preset.system)
        for (folded, word), preset in stores.catalog.presets.all().items()
    )
    used = {*found.values(), *(digest for _, digest in owned), *matrices}
    for digest in used - set(found.values()):
        assert stores.blobs.verify(digest), "I1: an adapter or an importance matrix"
    uploads = stores.catalog.referenced_digests() - used
    for variant in listed:
        assert stores.catalog.resolve(variant.name).digest == variant.digest, "I1"
        if variant.digest not in corrupt:
            whole = stores.blobs.has(variant.digest) and stores.blobs.verify(variant.digest)
            rotten_and_unnoticed = any(variant.digest in state.corrupt for state in allowed)
            assert whole or rotten_and_unnoticed, f"I1: {variant.name}"
    for digest in uploads:
        assert stores.blobs.verify(digest), "I2: an upload"
    wishes = wish[0].levels if wish else ()
    now = State(found, tags, uploads, corrupt, pinned, wishes, frozenset(owned), matrices, added)
    for state in allowed:
        # An upload that something was made of has a row as long as its variant.
        wanted = state.with_(uploads=state.uploads - used)
        if now == wanted:
            break
    else:
        raise AssertionError(f"I2: {now}\nis none of {allowed}")
    keep = opened.queue.active_digests()
    stores.blobs.sweep(keep | stores.catalog.referenced_digests(), 0)
    left = {f"sha256:{path.name[7:]}" for path in stores.blobs.root.glob("sha256-*")}
    assert left <= keep | stores.catalog.referenced_digests(), "I5"
    return state
