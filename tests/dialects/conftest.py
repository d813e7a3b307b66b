"""A server with models for tools and thinking, for all dialects that have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from tests.server import GLOSS, Server, stocked

# What the template of Qwen3 does, in short: tools, calls, results, and thinking that can be switched off.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>.<|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)


def write_thinker(path: Path) -> None:
    """gloss with that template: it thinks nonsense, and is kept short by the budget."""
    reader = gguf.GGUFReader(GLOSS)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            contents = TEMPLATE if name == "tokenizer.chat_template" else value.contents()
            writer.add_key_value(name, contents, value.types[0], value.types[-1] if len(value.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tools_server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path, smollm2: Path) -> Iterator[Server]:
    """`gloss`, which knows no tools; `thinker`, gloss with a template of Qwen3's kind; `smollm2`, a real chat model."""
    folder = tmp_path_factory.mktemp("tools-server")
    write_thinker(folder / "thinker.gguf")
    server = Server(stocked(folder / "home", gloss_home), {"QUANTRY_CONTEXT_LENGTH": "1024"}).start()
    server.json("POST", "/v1/models", 201, {"name": "thinker", "path": str(folder / "thinker.gguf")})
    server.json("POST", "/v1/models", 201, {"name": "smollm2:Q4_1", "path": str(smollm2)})
    yield server
    server.close()
