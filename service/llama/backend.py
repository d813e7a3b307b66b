"""Starting llama.cpp in this process, its log, and what build it is."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as native

LogListener = Callable[[int, str], None]
_PREFIX = re.compile(r"^(?:\w+: )*(?:(?:failed to quantize|error loading model): (?:\w+: )*)?")
_PATH = re.compile(r"'?/[^\s':]+'?")
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_LOG_CONTINUATION = 5  # GGML_LOG_LEVEL_CONT: more of the line before

_log_listeners: list[LogListener] = []


def _forward_log(level: int, text: bytes, _user_data: object) -> None:
    for listener in _log_listeners:
        listener(level, text.decode("utf-8", "replace"))


# The callback object must outlive the library's use of it, hence the module-level name.
_log_callback = native.llama_log_callback(_forward_log)
native.llama_log_set(_log_callback, ctypes.c_void_p(0))


@contextmanager
def listening_to_log(listener: LogListener) -> Iterator[None]:
    """Send every piece of llama.cpp's log (level, text; not always whole lines) to `listener` meanwhile."""
    _log_listeners.append(listener)
    try:
        yield
    finally:
        _log_listeners.remove(listener)


class ErrorLines:
    """Collects the error lines of the log, to say why a call failed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._last_level = 0

    def __call__(self, level: int, text: str) -> None:
        """Take a piece of the log."""
        level = self._last_level if level == _LOG_CONTINUATION else level
        self._last_level = level
        if level == _LOG_ERROR and text.strip(" =\n"):
            self.lines.append(text.strip())

    def reason(self) -> str:
        """The error nearest to the cause: the last one that says more than that it failed, without paths."""
        for line in reversed(self.lines):
            told = _PATH.sub("the file", _PREFIX.sub("", line)).rstrip(".")
            if told and not told.startswith("failed to load model"):
                return told[:400]
        return "llama.cpp gave no reason"


_backend_ready = False


def start_backend() -> None:
    """Load the compute backends once per process; builds with loadable backends find theirs beside the library."""
    global _backend_ready
    if _backend_ready:
        return
    # libllama's own handle: a wheel holds copies of libggml under several names, each with a registry of its own, and
    # only the one that libllama is linked to counts.
    library = native._lib
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count() == 0:
        loader = library.ggml_backend_load_all_from_path
        loader.argtypes = [ctypes.c_char_p]
        loader.restype = None
        loader(os.fsencode(Path(native.__file__).parent / "lib"))
    native.llama_backend_init()
    _backend_ready = True


@dataclass(frozen=True, slots=True)
class Build:
    """What the installed library is."""

    binding_version: str
    llama_version: str
    system_info: str
    supports_gpu_offload: bool

    @property
    def name(self) -> str:
        """One line for lineage, e.g. `llama-cpp-python 0.3.36 (llama.cpp b1234)`."""
        return f"llama-cpp-python {self.binding_version} (llama.cpp {self.llama_version})"


def build() -> Build:
    """Describe the library that is loaded here."""
    import llama_cpp

    start_backend()
    return Build(
        binding_version=llama_cpp.__version__,
        llama_version=_text(native.llama_version()),
        system_info=_text(native.llama_print_system_info()).strip(),
        supports_gpu_offload=bool(native.llama_supports_gpu_offload()),
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
