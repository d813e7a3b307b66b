"""Every quantization level llama.cpp can write, and every tensor type a GGUF file may hold.

Labels are llama-quantize's own. Advice and reference figures are the published ones for one 7B model
(docs/levels.md); they are shown beside what this service measures and never mixed with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from service.domain.errors import UnknownQuantization


class Family(StrEnum):
    """How a level stores its weights."""

    FLOAT = "float"
    LEGACY = "legacy"  # blocks of 32 weights with one scale
    K_QUANT = "k-quant"  # super-blocks of 256 with quantized sub-block scales
    I_QUANT = "i-quant"  # codebooks
    TERNARY = "ternary"
    BINARY = "binary"  # one or two bits a weight with one scale a block
    MICROSCALING = "microscaling"  # blocks of 32 with a shared power-of-two scale


@dataclass(frozen=True, slots=True)
class Reference:
    """Published for one 7B model: file size in GiB and perplexity added to F16 (None: lossless)."""

    size_gib: float
    perplexity_added: float | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """One level. `file_type` is llama.cpp's `llama_ftype`; `bits_per_weight` is nominal: llama-quantize's figure."""

    label: str
    file_type: int
    base_type: str  # ggml type of most tensors
    bits_per_weight: float
    family: Family
    needs_imatrix: bool
    recommended: bool
    advice: str
    reference: Reference | None = None


class GgmlType(NamedTuple):
    """A tensor type: `block_weights` weights take `block_bytes` bytes."""

    name: str
    block_weights: int
    block_bytes: int


# id -> type; the ids are those of ggml.h, and types that left the format are left out.
GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 36),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
    42: GgmlType("Q2_0", 64, 18),
}

UNQUANTIZED_TYPES = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})

_SMALL_NO_ADVICE = "very small, for models that tolerate it: measure before use - needs an importance matrix"

# In order of nominal size, largest first.
# fmt: off
_TABLE: tuple[Quantization, ...] = (
    Quantization("F32", 0, "F32", 32.0, Family.FLOAT, False, False,
                 "absolutely huge, lossless - not recommended", Reference(26.00, None)),
    Quantization("F16", 1, "F16", 16.0, Family.FLOAT, False, False,
                 "extremely large, virtually no quality loss - not recommended", Reference(13.00, 0.0)),
    Quantization("BF16", 32, "BF16", 16.0, Family.FLOAT, False, False,
                 "extremely large, the range of F32 with 8 bits of precision - a source, not for serving"),
    Quantization("Q8_0", 7, "Q8_0", 8.5, Family.LEGACY, False, False,
                 "very large, extremely low quality loss - not recommended", Reference(6.70, 0.0004)),
    Quantization("Q6_K", 18, "Q6_K", 6.5625, Family.K_QUANT, False, False,
                 "very large, extremely low quality loss", Reference(5.15, 0.0044)),
    Quantization("Q5_1", 9, "Q5_1", 6.0, Family.LEGACY, False, False,
                 "medium, low quality loss - legacy, prefer Q5_K_M", Reference(4.70, 0.0415)),
    Quantization("Q5_K_M", 17, "Q5_K", 5.5, Family.K_QUANT, False, True,
                 "large, very low quality loss - recommended", Reference(4.45, 0.0142)),
    Quantization("Q5_K_S", 16, "Q5_K", 5.5, Family.K_QUANT, False, True,
                 "large, low quality loss - recommended", Reference(4.33, 0.0353)),
    Quantization("Q5_0", 8, "Q5_0", 5.5, Family.LEGACY, False, False,
                 "medium, balanced quality - legacy, prefer Q4_K_M", Reference(4.30, 0.0796)),
    Quantization("Q4_1", 3, "Q4_1", 5.0, Family.LEGACY, False, False,
                 "small, substantial quality loss - legacy, prefer Q3_K_L", Reference(3.90, 0.1846)),
    Quantization("Q4_K_M", 15, "Q4_K", 4.5, Family.K_QUANT, False, True,
                 "medium, balanced quality - recommended", Reference(3.80, 0.0535)),
    Quantization("Q4_K_S", 14, "Q4_K", 4.5, Family.K_QUANT, False, False,
                 "small, significant quality loss", Reference(3.56, 0.1149)),
    Quantization("IQ4_NL", 25, "IQ4_NL", 4.5, Family.I_QUANT, False, False,
                 "small, non-linear 4 bits in blocks of 32 - for rows that no k-quant fits"),
    Quantization("Q4_0", 2, "Q4_0", 4.5, Family.LEGACY, False, False,
                 "small, very high quality loss - legacy, prefer Q3_K_M", Reference(3.50, 0.2499)),
    Quantization("IQ4_XS", 30, "IQ4_XS", 4.25, Family.I_QUANT, False, False,
                 "small, non-linear 4 bits - near Q4_K_S at fewer bytes, slower on CPU"),
    Quantization("MXFP4_MOE", 38, "MXFP4", 4.25, Family.MICROSCALING, False, False,
                 "4-bit floats for the experts of a mixture model, Q8_0 for the rest - mixture models only"),
    Quantization("Q3_K_L", 13, "Q3_K", 3.4375, Family.K_QUANT, False, False,
                 "small, substantial quality loss", Reference(3.35, 0.1803)),
    Quantization("Q3_K_M", 12, "Q3_K", 3.4375, Family.K_QUANT, False, False,
                 "very small, very high quality loss", Reference(3.06, 0.2437)),
    Quantization("IQ3_M", 27, "IQ3_S", 3.66, Family.I_QUANT, False, False,
                 "very small, codebook mix - slower on CPU"),
    Quantization("Q3_K_S", 11, "Q3_K", 3.4375, Family.K_QUANT, False, False,
                 "very small, very high quality loss", Reference(2.75, 0.5505)),
    Quantization("IQ3_S", 26, "IQ3_S", 3.4375, Family.I_QUANT, False, False,
                 "very small, codebook - slower on CPU"),
    Quantization("IQ3_XS", 22, "IQ3_S", 3.3, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("IQ3_XXS", 23, "IQ3_XXS", 3.0625, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("IQ2_M", 29, "IQ2_S", 2.7, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("Q2_K", 10, "Q2_K", 2.625, Family.K_QUANT, False, False,
                 "smallest, extreme quality loss - not recommended", Reference(2.67, 0.8698)),
    Quantization("Q2_K_S", 21, "Q2_K", 2.625, Family.K_QUANT, True, False,
                 "smallest, extreme quality loss - needs an importance matrix, not recommended"),
    Quantization("IQ2_S", 28, "IQ2_XS", 2.5, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("IQ2_XS", 20, "IQ2_XS", 2.3125, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("Q2_0", 41, "Q2_0", 2.25, Family.BINARY, False, False,
                 "two bits in blocks of 64 - only for models trained for it"),
    Quantization("IQ2_XXS", 19, "IQ2_XXS", 2.0625, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("TQ2_0", 37, "TQ2_0", 2.0625, Family.TERNARY, False, False,
                 "ternary weights, fast - only for models trained for it"),
    Quantization("IQ1_M", 31, "IQ1_M", 1.75, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("TQ1_0", 36, "TQ1_0", 1.6875, Family.TERNARY, False, False,
                 "ternary weights, packed - only for models trained for it"),
    Quantization("IQ1_S", 24, "IQ1_S", 1.5625, Family.I_QUANT, True, False, _SMALL_NO_ADVICE),
    Quantization("Q1_0", 40, "Q1_0", 1.125, Family.BINARY, False, False,
                 "one bit in blocks of 128 - only for models trained for it"),
)
# fmt: on

QUANTIZATIONS: dict[str, Quantization] = {level.label: level for level in _TABLE}
ALIASES: dict[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
BY_FILE_TYPE: dict[int, Quantization] = {level.file_type: level for level in _TABLE}

# Best first: what a bare name gets when its owner chose nothing. The recommended levels lead; then what loses least.
PREFERENCE: tuple[str, ...] = (
    "Q4_K_M", "Q5_K_M", "Q5_K_S", "Q6_K", "Q4_K_S", "Q8_0", "IQ4_XS", "IQ4_NL", "MXFP4_MOE", "Q5_1", "Q5_0", "Q4_1",
    "Q3_K_L", "Q4_0", "F16", "BF16", "F32", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M",
    "Q2_K", "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "Q2_0", "TQ2_0", "IQ1_M", "TQ1_0", "IQ1_S", "Q1_0",
)  # fmt: skip

_FOLDED = {label.upper(): label for label in QUANTIZATIONS} | ALIASES


def find_label(text: str) -> str | None:
    """The canonical label for `text`, without regard to case and through the aliases; None when it is none."""
    # ASCII alone: upper() makes an S of the long s, and a label is compared in many places.
    return _FOLDED.get(text.upper()) if text.isascii() else None


def parse_label(text: str, *, param: str | None = None) -> str:
    """As `find_label`, but an unknown level raises UnknownQuantization listing all levels."""
    label = find_label(text)
    if label is None:
        raise UnknownQuantization(
            f"Unknown quantization level {text[:40]!r}. Levels: {', '.join(QUANTIZATIONS)}; "
            f"aliases: {', '.join(f'{alias} = {target}' for alias, target in ALIASES.items())}.",
            param=param,
        )
    return label


def preference(label: str) -> int:
    """Rank of a label for a bare name: 0 is best. Unknown labels come last."""
    return PREFERENCE.index(label) if label in PREFERENCE else len(PREFERENCE)
