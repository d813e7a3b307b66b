"""What /openapi.json says of Ollama's routes beside their bodies: the shape of errors and of streams."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service.api.shapes import Shape

# No schema: OpenAPI 3.1 has no words for the lines of a stream.
LINES: dict[str, Any] = {"application/x-ndjson": {}}


class OllamaError(Shape):
    """Every answer that is no success; in a stream, its last line."""

    error: str = Field(description="What went wrong and what to do about it.")
    code: str = Field(description="Stable; the list is in docs/api.md.")
