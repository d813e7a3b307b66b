"""Which templates are taken: Jinja, as model files carry them. Those of Ollama are Go's and are told apart. Pure."""

from __future__ import annotations

import re

from service.domain.errors import NotSupported

# What only Go's templates say: a field of the dot, a variable, or a statement within double braces.
_GO = re.compile(r"\{\{-?\s*(?:\.|\$|/\*|(?:if|else|end|range|with|define|block|template|break|continue)\b)")
_PROMPT_ALONE = re.compile(r"\s*\{\{-?\s*\.Prompt\s*-?\}\}\s*")
_CONTENTS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def jinja(template: str, param: str = "template") -> str:
    """The template as this server uses it. Raises NotSupported for one of Go's, but `{{ .Prompt }}` alone."""
    if _PROMPT_ALONE.fullmatch(template):
        return _CONTENTS
    if _GO.search(template):
        raise NotSupported(
            "Templates are Jinja here, as model files carry them, and this one is written for Go; leave it out to use "
            "the model's own, or send it in Jinja.",
            param=param,
        )
    return template
