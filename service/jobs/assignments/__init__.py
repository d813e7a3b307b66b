"""What one job means to the store, a file for each kind: the child's task, and what becomes of what the child made.

Server process; everything here blocks and is called from a thread. Files come in through the blob store's incoming
folder under names that start with the job's id, are committed as blobs, and then entered in the catalogue in one
transaction: what was reported is there for good, whatever becomes of the job.
"""

from __future__ import annotations

from service.domain.jobs import (
    AdapterSpec,
    BudgetSpec,
    BundleSpec,
    CalibrateSpec,
    EvaluateSpec,
    ImportSpec,
    JobSpec,
    PullSpec,
    QuantizeSpec,
    RebuildSpec,
    VerifySpec,
)
from service.jobs.assignments.adapter import AdapterAssignment
from service.jobs.assignments.bench import Assignment, Bench
from service.jobs.assignments.budget import BudgetAssignment
from service.jobs.assignments.bundle import BundleAssignment
from service.jobs.assignments.calibrate import CalibrateAssignment
from service.jobs.assignments.evaluate import EvaluateAssignment
from service.jobs.assignments.imports import ImportAssignment
from service.jobs.assignments.pull import PullAssignment
from service.jobs.assignments.quantize import QuantizeAssignment
from service.jobs.assignments.rebuild import RebuildAssignment
from service.jobs.assignments.steps_back import StepsBackAssignment
from service.jobs.assignments.verify import VerifyAssignment


def assign(spec: JobSpec, bench: Bench) -> Assignment:
    """The assignment for a job with this spec, against the store as it is now.

    Raises what tells that it cannot be carried out; see the kinds.
    """
    match spec:
        case ImportSpec():
            return ImportAssignment(spec, bench)
        case QuantizeSpec() if spec.until is not None:
            return StepsBackAssignment(spec, bench)
        case QuantizeSpec():
            return QuantizeAssignment(spec, bench)
        case CalibrateSpec():
            return CalibrateAssignment(spec, bench)
        case EvaluateSpec():
            return EvaluateAssignment(spec, bench)
        case BudgetSpec():
            return BudgetAssignment(spec, bench)
        case RebuildSpec():
            return RebuildAssignment(spec, bench)
        case PullSpec():
            return PullAssignment(spec, bench)
        case AdapterSpec():
            return AdapterAssignment(spec, bench)
        case BundleSpec():
            return BundleAssignment(spec, bench)
        case VerifySpec():
            return VerifyAssignment(spec, bench)
