"""How a command ends badly: one line that says what happened, one that says what to do, and an exit code. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What a script can tell from `$?`."""

    OK = 0
    FAILED = 1  # refused by the server, or the work failed
    USAGE = 2  # the command line or a setting is wrong
    UNREACHABLE = 3  # no quantry server answers
    INTERRUPTED = 130  # Ctrl-C


@dataclass(frozen=True, slots=True)
class Problem:
    """What to tell: a stable code, one line, and a remedy where the line does not hold it already."""

    code: str
    message: str
    remedy: str | None = None
    exit_code: ExitCode = ExitCode.FAILED


class CommandFailed(Exception):
    """Ends the command with its problem. Raised anywhere below `options.command`, told there."""

    def __init__(
        self, code: str, message: str, *, remedy: str | None = None, exit_code: ExitCode = ExitCode.FAILED
    ) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, remedy, exit_code)


# The server's messages name remedies in the words of the API; these say the same in the words of this command.
REMEDIES: dict[str, str] = {
    "lossy_source": "add --allow-requantize to do it all the same",
    "no_chat_template": "add --raw to send the prompt as it is",
    "invalid_api_key": "give the key with --api-key or in QUANTRY_API_KEY",
    "model_not_found": "`quantry list` shows what is there",
    "job_not_found": "`quantry jobs` shows what is there",
    "context_length_exceeded": "send less text; in a chat, /clear starts afresh",
    "quantization_not_applicable": "`quantry plan MODEL` shows the levels that can be made",
    "importance_matrix_required": "add --imatrix auto to compute one first",
    "importance_matrix_not_found": "`quantry importance` shows what is there",
    "pinned": "`quantry unpin NAME` takes the pin off",
    "blob_corrupt": "`quantry verify NAME --repair` makes or fetches it again where that can be done",
    "desired_not_found": "`quantry desired MODEL LEVEL...` says what is wanted",
    "dataset_not_found": "`quantry datasets` shows what is there",
    "does_not_fit": "`quantry list --context 1024` shows what each level takes",
}
