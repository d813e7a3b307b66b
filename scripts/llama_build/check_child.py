"""Child of `check`: runs a few decodes with the wheel under test and prints its figures as one line of JSON.

Started as `python -S check_child.py SITE MODEL SCRATCH [VARIANT_TO_SKIP ...]`. It may die by a signal: that is what
it is for. Exit 3: a level's logits have little to do with the source's.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

LEVELS = ("Q4_0", "Q8_0", "Q4_K_M", "Q6_K")
"""Types with AMX, repacked and plain kernels between them."""
PROMPT_TOKENS = 48
GENERATED_TOKENS = 6
LEAST_SIMILARITY = 0.9
WRONG_NUMBERS = 3


def load_backends(llama_cpp: Any, folder: Path, skip: list[str]) -> str:
    """Loads the backends of a portable wheel, the best CPU library last; returns its name, or "built in".

    The calls go through libllama's own handle: opening libggml.so by its path would map a second copy of it, with a
    registry of its own that libllama never sees.
    """
    library = llama_cpp.llama_cpp._lib
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count() > 0:
        return "built in"
    library.ggml_backend_load.argtypes = [ctypes.c_char_p]
    library.ggml_backend_load.restype = ctypes.c_void_p
    scores = {}
    for path in sorted(folder.glob("libggml-cpu-*.so")):
        name = path.stem.removeprefix("libggml-cpu-")
        if name not in skip:
            score = ctypes.CDLL(str(path)).ggml_backend_score
            score.restype = ctypes.c_int
            scores[name] = score()
    best = max(scores, key=lambda name: scores[name])
    for path in [*folder.glob("libggml-cuda.so"), folder / f"libggml-cpu-{best}.so"]:
        library.ggml_backend_load(str(path).encode())
    return best


def last_logits(llama_cpp: Any, path: Path) -> tuple[list[float], float]:
    """Decodes a prompt in one batch and a few tokens one by one; returns the last logits and the seconds it took."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise SystemExit("the model could not be loaded")
    context_params = llama_cpp.llama_context_default_params()
    context_params.n_ctx = 128
    context_params.n_threads = context_params.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, context_params)
    if not context:
        raise SystemExit("no context could be made")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    started = time.monotonic()
    prompt = [11 + 7 * i % (vocabulary - 11) for i in range(PROMPT_TOKENS)]
    for tokens in [prompt, *([token] for token in prompt[:GENERATED_TOKENS])]:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")
    pointer = llama_cpp.llama_get_logits_ith(context, -1)
    logits = [float(pointer[i]) for i in range(vocabulary)]
    seconds = time.monotonic() - started
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits, seconds


def similarity(a: list[float], b: list[float]) -> float:
    """Pearson correlation; NaN when anything is not finite."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    da, db = [x - mean_a for x in a], [x - mean_b for x in b]
    norm = math.sqrt(sum(x * x for x in da) * sum(x * x for x in db))
    return sum(x * y for x, y in zip(da, db, strict=True)) / norm if norm else math.nan


def main(arguments: list[str]) -> int:
    """Checks the wheel installed in SITE; 0 when every level decodes to something like the source's figures."""
    site, source, scratch, *skip = arguments
    sys.path.insert(0, site)
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    backend = load_backends(llama_cpp, Path(llama_cpp.__file__).parent / "lib", skip)
    llama_cpp.llama_backend_init()

    reference, seconds = last_logits(llama_cpp, Path(source))
    figures: dict[str, object] = {
        "cpu_backend": backend,
        "system_info": llama_cpp.llama_print_system_info().decode(),
        "F16": {"seconds": round(seconds, 3)},
    }
    for level in LEVELS:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{level}")
        params.nthread = 2
        target = Path(scratch) / f"{level}.gguf"
        if llama_cpp.llama_model_quantize(source.encode(), str(target).encode(), ctypes.byref(params)) != 0:
            raise SystemExit(f"quantizing to {level} failed")
        logits, seconds = last_logits(llama_cpp, target)
        likeness = similarity(reference, logits)
        figures[level] = {"seconds": round(seconds, 3), "similarity": round(likeness, 4)}
        if not likeness > LEAST_SIMILARITY:
            print(f"{level}: correlation with F16 is {likeness:.3f}", file=sys.stderr)
            return WRONG_NUMBERS
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
