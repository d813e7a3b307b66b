"""One chat, whole and streamed, through each framework that people put between themselves and a server.

Each framework is installed from PyPI into a virtual environment of its own, for their dependencies clash; where it does
not install the test is skipped and says why. `pytest -m clients`: not in the default run, for it downloads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import Server

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."

# Each reads URL and QUESTION, and leaves its answers in `whole` and `streamed`.
LANGCHAIN_OPENAI = """
from langchain_openai import ChatOpenAI
model = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model="gloss:auto", temperature=0)
whole = model.invoke(QUESTION).content
streamed = "".join(chunk.content for chunk in model.stream(QUESTION))
"""
LANGCHAIN_OPENAI_RESPONSES = """
from langchain_openai import ChatOpenAI
model = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model="gloss:F16", temperature=0, use_responses_api=True)
whole = model.invoke(QUESTION).text
streamed = "".join(chunk.text for chunk in model.stream(QUESTION))
"""
LANGCHAIN_OLLAMA = """
from langchain_ollama import ChatOllama
model = ChatOllama(base_url=URL, model="gloss:auto", temperature=0, validate_model_on_init=False)
whole = model.invoke(QUESTION).content
streamed = "".join(chunk.content for chunk in model.stream(QUESTION))
"""
LLAMA_INDEX_OLLAMA = """
from llama_index.core.llms import ChatMessage
from llama_index.llms.ollama import Ollama
model = Ollama(base_url=URL, model="gloss:F16", temperature=0, request_timeout=60)
turns = [ChatMessage(role="user", content=QUESTION)]
whole = model.chat(turns).message.content
streamed = "".join(part.delta for part in model.stream_chat(turns))
"""
LITELLM = """
import litellm
turns = [{"role": "user", "content": QUESTION}]
answers = set()
for model, base in (("openai/gloss:F16", f"{URL}/v1"), ("ollama_chat/gloss:F16", URL), ("anthropic/gloss:F16", URL)):
    asked = dict(model=model, api_base=base, api_key="none", messages=turns, temperature=0, max_tokens=64)
    whole = litellm.completion(**asked).choices[0].message.content
    parts = litellm.completion(**asked, stream=True)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts)
    answers |= {whole, streamed}
assert len(answers) == 1, answers
"""
LLM = """
import os, pathlib
folder = pathlib.Path(os.environ["LLM_USER_PATH"])
folder.mkdir()
listed = {"model_id": "gloss", "model_name": "gloss:F16", "api_base": f"{URL}/v1"}
(folder / "extra-openai-models.yaml").write_text(json.dumps([listed]))
import llm
model = llm.get_model("gloss")
model.key = "none"
whole = model.prompt(QUESTION, temperature=0, stream=False).text()
streamed = "".join(model.prompt(QUESTION, temperature=0))
"""
FLOWS = {
    "langchain-openai": (["langchain-openai~=1.7"], [LANGCHAIN_OPENAI, LANGCHAIN_OPENAI_RESPONSES]),
    "langchain-ollama": (["langchain-ollama~=1.1"], [LANGCHAIN_OLLAMA]),
    "llama-index-llms-ollama": (["llama-index-llms-ollama~=0.11"], [LLAMA_INDEX_OLLAMA]),
    "litellm": (["litellm~=1.80"], [LITELLM]),
    "llm": (["llm~=0.36"], [LLM]),
}
BEGIN = "import json, sys\nURL, QUESTION = sys.argv[1:]\n"
END = "\nprint(json.dumps([whole, streamed]))\n"


def installed(folder: Path, packages: list[str]) -> Path:
    """The Python of a new environment with these packages; skips where they do not install."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=700, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} does not install here: {done.stderr.strip().splitlines()[-1][:300]}")
    return python


@pytest.mark.parametrize("name", FLOWS)
def test_a_chat_through_a_framework_says_what_the_server_says(gloss_server: Server, tmp_path: Path, name: str) -> None:
    packages, scripts = FLOWS[name]
    python = installed(tmp_path / "environment", packages)
    # No settings of whoever runs this, no telemetry, no list of models fetched from elsewhere.
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": "false", "LANGSMITH_TRACING": "false"}
    environ = {**kept, **quiet, "HOME": str(tmp_path), "LLM_USER_PATH": str(tmp_path / "llm")}
    for script in scripts:
        command = [str(python), "-c", BEGIN + script + END, gloss_server.url, 'What does "horse" mean?']
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.splitlines()[-1]) == [HORSE, HORSE]
