"""What stands in the paths of routes: names, models, digests, with their words for the document.

Apart from `shapes`, which the command uses too: it need not wait for FastAPI.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from service.api.shapes import DIGEST_PATTERN, MODEL_PATTERN, NAME_PATTERN

Ref = Annotated[
    str,
    Path(
        description="A name as people type it: `[host/][namespace/]model[:tag]`, slashes as they are or encoded.",
        json_schema_extra={"pattern": NAME_PATTERN},
    ),
]
ModelRef = Annotated[
    str,
    Path(
        description="A model, without a tag: `[host/][namespace/]model`, slashes as they are or encoded.",
        json_schema_extra={"pattern": MODEL_PATTERN},
    ),
]
Digest = Annotated[
    str,
    Path(description="`sha256:` and 64 lower-case hexadecimal digits.", json_schema_extra={"pattern": DIGEST_PATTERN}),
]
