"""What a child's end means, and what it gets to see of the server's environment."""

from __future__ import annotations

import signal

import pytest

from service.domain.errors import DiskFull, InvalidModel, JobChildDied
from service.domain.jobs import JobKind
from service.jobs.child import death


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_a_crash_while_importing_is_the_files_fault(number):
    error = death(JobKind.IMPORT, -number, "GGML_ASSERT(n > 0) failed")
    assert isinstance(error, InvalidModel)
    assert "llama.cpp crashed reading it" in error.message
    assert signal.Signals(number).name in error.message
    assert "GGML_ASSERT(n > 0) failed" in error.message


def test_a_crash_while_quantizing_is_not():
    error = death(JobKind.QUANTIZE, -signal.SIGSEGV, None)
    assert isinstance(error, JobChildDied)
    assert "SIGSEGV" in error.message


@pytest.mark.parametrize("kind", list(JobKind))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_kill_is_named(kind, number):
    error = death(kind, -number, None)
    assert isinstance(error, JobChildDied)
    assert number.name in error.message


def test_a_file_that_outgrew_its_limit_is_a_full_disk():
    assert isinstance(death(JobKind.QUANTIZE, -signal.SIGXFSZ, None), DiskFull)


@pytest.mark.parametrize("status", [0, 1, 2, 127])
def test_a_silent_exit_is_reported_with_its_status(status):
    error = death(JobKind.IMPORT, status, None)
    assert isinstance(error, JobChildDied)
    assert f"status {status}" in error.message
