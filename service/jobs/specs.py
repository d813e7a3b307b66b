"""What follows from a job's spec alone: its kind, the key of equal requests, the blobs it needs. Pure.

Runs in the server process.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from service.domain.jobs import (
    SPECS,
    AdapterSpec,
    BudgetSpec,
    BundleSpec,
    CalibrateSpec,
    EvaluateSpec,
    ImportSpec,
    JobKind,
    JobSpec,
    PullSpec,
    QuantizeSpec,
    RebuildSpec,
    VerifySpec,
)
from service.domain.names import parse_ref
from service.store.database import to_json

_KINDS = {kind_of_spec: kind for kind, kind_of_spec in SPECS.items()}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def kind_of(spec: JobSpec) -> JobKind:
    """The kind of a job with this spec."""
    return _KINDS[type(spec)]


def spec_key(spec: JobSpec) -> str:
    """Equal for requests that do the same work: the order of the levels and the number of threads do not matter."""
    return hashlib.sha256(to_json((kind_of(spec), _folded(spec))).encode()).hexdigest()


def source_of(spec: JobSpec) -> str | None:
    """The address that a pull, or an adapter, is fetched from."""
    return spec.source if isinstance(spec, PullSpec | AdapterSpec) else None


def digests_of(spec: JobSpec) -> frozenset[str]:
    """Every blob that the spec names: sources, texts, importance matrices."""
    return frozenset(_DIGEST.findall(to_json(spec)))


def _folded(spec: JobSpec) -> JobSpec:
    match spec:
        case ImportSpec():
            return replace(spec, name=_folded_name(spec.name))
        case QuantizeSpec():
            levels = tuple(sorted(set(spec.levels)))
            flavour = None if spec.flavour is None else spec.flavour.lower()
            return replace(spec, source_name=spec.source_name.lower(), levels=levels, flavour=flavour, threads=None)
        case BudgetSpec():
            name, flavour = spec.source_name.lower(), spec.flavour.lower()
            return replace(spec, source_name=name, flavour=flavour, threads=None)
        case CalibrateSpec():
            include = tuple(sorted(set(spec.include)))
            return replace(spec, source_name=spec.source_name.lower(), include=include, threads=None)
        case EvaluateSpec() | RebuildSpec():
            return replace(spec, threads=None)
        case PullSpec():
            return replace(spec, name=_folded_name(spec.name))
        case AdapterSpec():
            return replace(spec, name=spec.name.lower())
        case BundleSpec():
            return replace(spec, name=None if spec.name is None else spec.name.lower())
        case VerifySpec():
            models = tuple(sorted({name.lower() for name in spec.models}))
            return replace(spec, models=models, digests=tuple(sorted(set(spec.digests))))


def _folded_name(name: str) -> str:
    ref = parse_ref(name)
    return f"{ref.key.folded}:{(ref.canonical_tag or '').lower()}"
