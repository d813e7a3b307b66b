"""Everything that can go wrong and that a caller may see, as one tree.

    QuantryError
    ├── InternalError             our own mistake
    ├── InvalidRequest            the caller can mend the request
    │   ├── MalformedBody, InvalidParameter (InvalidGrammar), InvalidName, UnknownQuantization
    │   ├── PromptTooLong, NoChatTemplate, TemplateFailed, NotSupported, PreviousResponseNotFound
    │   └── LossySource, ImportanceMatrixRequired, QuantizationNotApplicable, LabelMismatch
    ├── Unauthorized, Forbidden
    ├── NotFound                  ModelNotFound, BlobNotFound, JobNotFound, RouteNotFound
    │                             DatasetNotFound, ImportanceMatrixNotFound, AdapterNotFound, ResponseNotFound
    │                             DesiredNotFound
    ├── Conflict                  NameTaken, BlobCorrupt, Pinned, JobFinished
    ├── TooLarge                  body or upload over its limit
    ├── RangeNotSatisfiable       bytes asked for or sent that lie elsewhere than there are any
    ├── UnsupportedMediaType      a body that is not JSON
    ├── InvalidModel              a GGUF file that is truncated, corrupt, hostile or unknown to llama.cpp
    ├── DigestMismatch            bytes that are not what their digest says
    ├── Busy                      QueueFull: try again later
    ├── Unavailable               BeingMade, WorkerDied, WorkerQuarantined, LoadFailed, DoesNotFit, ShuttingDown,
    │                             SlowReader
    ├── DeadlineExceeded          a wait of our own ran out
    ├── RemoteFailed              another server, from which something is fetched; RemoteRefused: it does not give it
    ├── DiskFull                  the disk cannot hold it; QuotaExceeded: the store may not
    └── JobFailed                 JobChildDied, JobInterrupted, QuantizationFailed

Every leaf has a stable `code`; its message says what happened and what to do about it. No message holds a
path, a stack trace or another caller's text. HTTP status codes are not known here: `api/responses.py` maps them.
"""

from __future__ import annotations

from collections.abc import Iterator


class QuantryError(Exception):
    """Root of the tree.

    `code` is stable and documented in docs/api.md; `message` is one or two sentences that end in a remedy;
    `param` names the request field at fault, when there is one; `retry_after_seconds` is set where waiting helps.
    """

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InternalError(QuantryError):
    """Our own mistake. The details are in the log, never in the answer."""

    code = "internal_error"


# --- the caller can mend the request -----------------------------------------------------------------------------


class InvalidRequest(QuantryError):
    """The request cannot be carried out as it stands."""

    code = "invalid_request"


class MalformedBody(InvalidRequest):
    """The body is no JSON of the expected shape."""

    code = "malformed_body"


class InvalidParameter(InvalidRequest):
    """A field is unknown, missing, of the wrong type or out of its range."""

    code = "invalid_parameter"


class InvalidGrammar(InvalidParameter):
    """A grammar or schema that cannot be read, is not supported or costs too much."""

    code = "invalid_grammar"


class InvalidName(InvalidRequest):
    """A model reference that does not follow `[host/][namespace/]model[:tag]`."""

    code = "invalid_name"


class UnknownQuantization(InvalidRequest):
    """A level that llama.cpp cannot write."""

    code = "unknown_quantization"


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room in the context."""

    code = "context_length_exceeded"


class NoChatTemplate(InvalidRequest):
    """Messages for a model whose file carries no chat template."""

    code = "no_chat_template"


class TemplateFailed(InvalidRequest):
    """The model's chat template refused the messages, or ran over its limits."""

    code = "template_error"


class NotSupported(InvalidRequest):
    """A known field or part of a dialect that quantry does not carry out."""

    code = "not_supported"


class PreviousResponseNotFound(InvalidRequest):
    """The response that a request goes on from is not kept, or no longer."""

    code = "previous_response_not_found"


class LossySource(InvalidRequest):
    """The source has already lost precision and `allow_requantize` was not given."""

    code = "lossy_source"


class ImportanceMatrixRequired(InvalidRequest):
    """llama.cpp refuses this level without an importance matrix."""

    code = "importance_matrix_required"


class QuantizationNotApplicable(InvalidRequest):
    """The level would not be what its name says on this model."""

    code = "quantization_not_applicable"


class LabelMismatch(InvalidRequest):
    """A name whose quantization label is not the one of the file."""

    code = "label_mismatch"


# --- who may ask -------------------------------------------------------------------------------------------------


class Unauthorized(QuantryError):
    """No key, or one that is not known."""

    code = "invalid_api_key"


class Forbidden(QuantryError):
    """A key or an origin that may not do this."""

    code = "forbidden"


# --- what is there -----------------------------------------------------------------------------------------------


class NotFound(QuantryError):
    """Nothing under that name."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No model or variant under that name; the message lists the closest ones."""

    code = "model_not_found"


class BlobNotFound(NotFound):
    """No blob with that digest."""

    code = "blob_not_found"


class JobNotFound(NotFound):
    """No job with that id."""

    code = "job_not_found"


class ResponseNotFound(NotFound):
    """No response with that id is kept, or no longer."""

    code = "response_not_found"


class DatasetNotFound(NotFound):
    """No dataset under that name."""

    code = "dataset_not_found"


class DesiredNotFound(NotFound):
    """No levels of that model have been asked to be kept."""

    code = "desired_not_found"


class ImportanceMatrixNotFound(NotFound):
    """No importance matrix with that digest."""

    code = "importance_matrix_not_found"


class AdapterNotFound(NotFound):
    """The model has no adapter of that name; the message lists those it has."""

    code = "adapter_not_found"


class RouteNotFound(NotFound):
    """No such route, or not with that method."""

    code = "route_not_found"


class Conflict(QuantryError):
    """The state of the store forbids it."""

    code = "conflict"


class NameTaken(Conflict):
    """The name already stands for something else."""

    code = "name_taken"


class BlobCorrupt(Conflict):
    """The bytes on disk no longer match their digest."""

    code = "blob_corrupt"


class Pinned(Conflict):
    """The variant is pinned: it is not to be deleted."""

    code = "pinned"


class JobFinished(Conflict):
    """The job has ended and cannot be cancelled."""

    code = "job_finished"


# --- what comes in -----------------------------------------------------------------------------------------------


class TooLarge(QuantryError):
    """A body over its limit."""

    code = "body_too_large"


class RangeNotSatisfiable(QuantryError):
    """A range of bytes that the file does not have, or that an upload does not stand at."""

    code = "range_not_satisfiable"


class UnsupportedMediaType(QuantryError):
    """A body that is not `application/json`."""

    code = "unsupported_media_type"


class InvalidModel(QuantryError):
    """A model file that is truncated, corrupt, hostile, or that llama.cpp does not know."""

    code = "invalid_model"


class DigestMismatch(QuantryError):
    """The bytes received are not what their digest says."""

    code = "digest_mismatch"


# --- not now -----------------------------------------------------------------------------------------------------


class Busy(QuantryError):
    """Too much work is waiting."""

    code = "busy"


class QueueFull(Busy):
    """The bounded queue of requests or jobs is full."""

    code = "queue_full"


class Unavailable(QuantryError):
    """It cannot be served now."""

    code = "unavailable"


class BeingMade(Unavailable):
    """The level asked for is being made now; the message names the job."""

    code = "being_made"


class WorkerDied(Unavailable):
    """The process that ran this request ended; its other requests failed with it, no others did."""

    code = "worker_died"


class WorkerQuarantined(Unavailable):
    """The variant's worker died too often and is given a rest."""

    code = "worker_quarantined"


class LoadFailed(Unavailable):
    """llama.cpp could not load the variant."""

    code = "load_failed"


class DoesNotFit(Unavailable):
    """The variant needs more memory than the budget holds."""

    code = "does_not_fit"


class ShuttingDown(Unavailable):
    """The server is draining."""

    code = "shutting_down"


class SlowReader(Unavailable):
    """The client read its stream too slowly and was cut off."""

    code = "slow_reader"


class DeadlineExceeded(QuantryError):
    """A wait of our own ran out."""

    code = "deadline_exceeded"


class RemoteFailed(QuantryError):
    """Another server, from which something was to be fetched, cannot be reached or does not do its part."""

    code = "remote_failed"


class RemoteRefused(RemoteFailed):
    """It does not give it: the repository is gated or private, or the token is wrong."""

    code = "remote_refused"


class DiskFull(QuantryError):
    """The disk cannot hold the result."""

    code = "disk_full"


class QuotaExceeded(DiskFull):
    """The store's own quota does not admit the result."""

    code = "quota_exceeded"


# --- jobs --------------------------------------------------------------------------------------------------------


class JobFailed(QuantryError):
    """A job ended without its result."""

    code = "job_failed"


class JobChildDied(JobFailed):
    """The job's process was killed or crashed."""

    code = "job_child_died"


class JobInterrupted(JobFailed):
    """The server went down too often while the job ran."""

    code = "job_interrupted"


class QuantizationFailed(JobFailed):
    """llama.cpp's quantizer refused or failed."""

    code = "quantization_failed"


def leaves(root: type[QuantryError] = QuantryError) -> Iterator[type[QuantryError]]:
    """Every class of the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from leaves(child)


def by_code(code: str) -> type[QuantryError]:
    """The class for a stable code, as carried by frames and job rows; `InternalError` for an unknown one."""
    for kind in leaves():
        if kind.code == code and kind is not QuantryError:
            return kind
    return InternalError
