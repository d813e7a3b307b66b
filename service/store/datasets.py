"""A dataset's way in: its content is checked, its bytes become a blob, and then it gets a name. Server process only.

The datasets that come with quantry are files beside this one, entered at every start. Blocks on disk and database.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from service.domain.datasets import CALIBRATION, EVALUATION, WORDS, Dataset, DatasetKind
from service.domain.errors import InvalidParameter
from service.domain.tasks import parse_task
from service.store.blobs import BlobStore
from service.store.laboratory import Laboratory

TEXTS = Path(__file__).parent / "texts"
BUILT_IN = (
    (CALIBRATION, DatasetKind.TEXT, "calibration.txt"),
    (EVALUATION, DatasetKind.TEXT, "evaluation.txt"),
    (WORDS, DatasetKind.TASK, "words.jsonl"),
)


def store_dataset(
    blobs: BlobStore,
    laboratory: Laboratory,
    name: str,
    kind: DatasetKind,
    data: bytes,
    *,
    built_in: bool = False,
) -> Dataset:
    """Check `data`, keep it as a blob and enter it as the dataset `name`.

    Raises InvalidParameter for content that is none of that kind, DiskFull, and what `Laboratory.add_dataset` raises.
    """
    check(kind, data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with blobs.open_upload(digest, len(data)) as upload:
        upload.write(data)
        upload.finish()
    return laboratory.add_dataset(name, kind, digest, len(data), built_in=built_in)


def enter_built_in(blobs: BlobStore, laboratory: Laboratory) -> None:
    """Enter the datasets that come with quantry; those of an older version are replaced."""
    known = {dataset.name: dataset.digest for dataset in laboratory.datasets() if dataset.built_in}
    for name, kind, file in BUILT_IN:
        data = (TEXTS / file).read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if known.get(name) != digest or not blobs.has(digest):
            store_dataset(blobs, laboratory, name, kind, data, built_in=True)


def check(kind: DatasetKind, data: bytes) -> None:
    """Whether `data` is a dataset of that kind. Raises InvalidParameter saying what and where. Pure."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidParameter(
            f"A dataset is UTF-8, and byte {error.start} is none; convert it and send it again.", param="body"
        ) from None
    if not text.strip():
        raise InvalidParameter("The dataset is empty; send a text.", param="body")
    if "\0" in text:
        raise InvalidParameter("The dataset holds a NUL character, so it is no text; send a text.", param="body")
    if kind is DatasetKind.TASK:
        parse_task(data)
