"""Which files of the server's own disk a caller may import by path. The server process; reads names, never files.

Without keys the caller is the machine's own user and may name any file. With keys a caller may be anyone who was given
one: only the folders that the operator has listed are open, and nothing is told of what lies elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from service.api.services import ApiOptions
from service.domain.errors import Forbidden


def admitted_path(path: str, options: ApiOptions) -> str:
    """The path to import for the path that was asked for: symlinks resolved where folders bound it.

    Raises Forbidden, with the same words whether the file exists or not. Blocks on the disk for a moment.
    """
    if not options.api_key_hashes and not options.import_folders:
        return path
    resolved = os.path.realpath(path)
    folders = [os.path.realpath(folder) for folder in options.import_folders]
    # A ".." is followed through whatever lies on the way, and would tell which of it exists.
    if ".." in PurePosixPath(path).parts or not lies_inside(resolved, folders):
        raise Forbidden(
            "Files are imported by path only from the folders in QUANTRY_IMPORT_FOLDERS, and this one is in none of "
            "them; add its folder there, or upload the file.",
            param="path",
        )
    # What was checked is what is imported, whatever a link is turned to meanwhile.
    return resolved


def lies_inside(path: str, folders: Sequence[str]) -> bool:
    """Whether an absolute path without symlinks or dots names something below one of such folders."""
    parts = PurePosixPath(path).parts
    return any(
        len(parts) > len(inside) and parts[: len(inside)] == inside
        for inside in (PurePosixPath(folder).parts for folder in folders)
    )
