"""What every child process shares: no secret reaches it, it runs the server's code, its death has a name."""

from __future__ import annotations

import os

import service
from service.children import child_environment, signal_name


def test_signals_without_a_name_have_a_number():
    assert signal_name(-250) == "signal 250"
    assert signal_name(0) is None


def test_no_secret_reaches_the_child():
    secrets = {
        "QUANTRY_API_KEYS": "x",
        "QUANTRY_DATABASE_URL": "x",
        "HF_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PGPASSWORD": "x",
        "my_password": "x",
        "GOOGLE_APPLICATION_CREDENTIALS": "x",
        "DATABASE": "postgresql://me:hunter2@host/db",
    }
    plain = {"PATH": "/bin", "HOME": "/root", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "2", "PROXY": "http://host:3128"}
    kept = child_environment(secrets | plain)
    assert not secrets.keys() & kept.keys()
    assert plain.items() <= kept.items()


def test_the_child_runs_the_same_code_as_the_server():
    root = os.path.dirname(os.path.dirname(os.path.realpath(service.__file__)))
    assert child_environment({"PYTHONPATH": "/else"})["PYTHONPATH"] == f"{root}{os.pathsep}/else"
