"""Numbers for people: sizes in binary units (as the reference tables of quantization use), durations, rates. Pure."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(size_bytes: int) -> str:
    """`3.60 MiB`: three figures and a unit."""
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{size_bytes} B"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def bits(bits_per_weight: float) -> str:
    """`4.50`."""
    return f"{bits_per_weight:.2f}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int) -> str:
    """Parameters as people name models: `5.77M`, `135M`, `7.24B`."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)


def perplexity(added: float | None) -> str:
    """`+0.0535`; `lossless` for None."""
    return "lossless" if added is None else f"{added:+.4f}"


def percent(fraction: float) -> str:
    """`42 %`."""
    return f"{fraction * 100:.0f} %"


def moment(rfc3339: str | None) -> str:
    """`2025-11-22 06:01:28`, UTC, without the fraction; `-` for None."""
    return "-" if rfc3339 is None else rfc3339[:19].replace("T", " ")
