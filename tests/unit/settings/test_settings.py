"""Every setting has limits and words, and a bad one refuses to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service import settings as module
from service.domain.errors import InvalidParameter
from service.settings import Settings, is_loopback, load_settings

KEY = "a-key-of-at-least-sixteen-characters"
UNITS = ("_seconds", "_bytes", "_tokens")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in list(module.os.environ):
        if name.startswith("QUANTRY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("QUANTRY_HOME", str(tmp_path))


def test_the_defaults_start(tmp_path):
    settings = load_settings()
    assert (settings.host, settings.port, settings.home) == ("127.0.0.1", 8080, tmp_path)
    assert settings.database == f"sqlite:///{tmp_path}/quantry.db"
    assert settings.blob_folder == tmp_path / "blobs"
    assert settings.api_keys == ()


def test_the_home_is_absolute_and_knows_the_tilde(monkeypatch):
    monkeypatch.setenv("QUANTRY_HOME", "~/somewhere")
    assert load_settings().home == Path.home() / "somewhere"
    monkeypatch.setenv("QUANTRY_HOME", "relative")
    assert load_settings().home.is_absolute()


def test_every_setting_has_one_sentence_and_numbers_have_limits():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if field.annotation in (int, float, int | None):
            limits = {type(limit).__name__ for limit in field.metadata}
            assert {"Ge", "Le"} <= limits, name


def test_lists_are_split_at_commas(monkeypatch):
    monkeypatch.setenv("QUANTRY_API_KEYS", f" {KEY}, {KEY}2 ,")
    monkeypatch.setenv("QUANTRY_ALLOWED_HOSTS", "Models.lan,[fd00::1]")
    settings = load_settings()
    assert [key.get_secret_value() for key in settings.api_keys] == [KEY, f"{KEY}2"]
    assert settings.allowed_hosts == ("models.lan", "[fd00::1]")
    assert KEY not in repr(settings)
    assert KEY not in str(settings.model_dump())


def test_import_folders_are_absolute(monkeypatch):
    assert load_settings().import_folders == ()
    monkeypatch.setenv("QUANTRY_IMPORT_FOLDERS", " /models , ~/gguf,")
    assert load_settings().import_folders == ("/models", str(Path.home() / "gguf"))


def test_an_empty_variable_is_the_default(monkeypatch):
    monkeypatch.setenv("QUANTRY_PORT", "")
    monkeypatch.setenv("QUANTRY_API_KEYS", "")
    assert load_settings().port == 8080


def test_overrides_win_and_none_does_not(monkeypatch):
    monkeypatch.setenv("QUANTRY_PORT", "1234")
    assert load_settings(port=None).port == 1234
    assert load_settings(port=4321).port == 4321


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "models.lan", "127.0.0.1.nip.io"])
def test_other_machines_may_only_come_with_a_key(monkeypatch, host):
    monkeypatch.setenv("QUANTRY_HOST", host)
    with pytest.raises(InvalidParameter, match="QUANTRY_API_KEYS"):
        load_settings()
    monkeypatch.setenv("QUANTRY_API_KEYS", KEY)
    assert load_settings().host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(host):
    assert is_loopback(host)
    assert load_settings(host=host).host == host


BAD = {
    "PORT": ["-1", "65536", "x", "1.5"],
    "API_KEYS": ["short", "has spaces in the middle of it", "\u00fcber-ein-langer-schluessel"],
    "ALLOWED_HOSTS": ["*", "http://x", "x:80", "a b"],
    "IMPORT_FOLDERS": ["models", "./models", "/models,models", "~nobody-of-that-name/x"],
    "LOG_LEVEL": ["verbose", "INFO "],
    "LOG_FORMAT": ["xml"],
    "CONTEXT_LENGTH": ["0", "63", "99999999"],
    "PARALLEL": ["0", "257"],
    "THREADS": ["0", "-1"],
    "GPU_LAYERS": ["-2"],
    "MEMORY_BUDGET_BYTES": ["1", "-1", "inf"],
    "KEEP_ALIVE_SECONDS": ["-1", "nan", "inf", "5m"],
    "MAX_QUEUED_REQUESTS": ["0"],
    "MAX_BODY_BYTES": ["0", "1023"],
    "DRAIN_SECONDS": ["-1", "nan"],
    "JOB_CONCURRENCY": ["0"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_by_the_name_of_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(f"QUANTRY_{name}", value)
    with pytest.raises(InvalidParameter) as refused:
        load_settings()
    assert f"QUANTRY_{name}: " in refused.value.message


def test_a_bad_key_is_not_repeated_in_the_message(monkeypatch):
    monkeypatch.setenv("QUANTRY_API_KEYS", "tooshort")
    with pytest.raises(InvalidParameter) as refused:
        load_settings()
    assert "tooshort" not in refused.value.message


@pytest.mark.parametrize("name", ["QUANTRY_KEYS", "QUANTRY_PROT", "QUANTRY_WHATEVER"])
def test_a_misspelt_variable_is_refused(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidParameter, match=name):
        load_settings()


def test_a_misspelt_variable_is_told_its_right_name(monkeypatch):
    monkeypatch.setenv("QUANTRY_APIKEYS", "x")
    with pytest.raises(InvalidParameter, match=r"did you mean QUANTRY_API_KEYS\?"):
        load_settings()


def test_variables_of_clients_tests_and_tools_are_left_alone(monkeypatch):
    monkeypatch.setenv("QUANTRY_API_KEY", "what a client sends")
    monkeypatch.setenv("QUANTRY_TEST_FAIL_POINT", "x")
    assert load_settings()


def test_the_module_loads_no_native_code():
    code = "import service.settings, sys; sys.exit(bool({'numpy', 'llama_cpp'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_quantized_values_without_flash_attention_refuse_to_start(monkeypatch):
    monkeypatch.setenv("QUANTRY_CACHE_TYPE_V", "q8_0")
    assert load_settings().cache_type_v == "q8_0"
    monkeypatch.setenv("QUANTRY_FLASH_ATTENTION", "off")
    with pytest.raises(InvalidParameter, match=r"q8_0 need flash attention; set QUANTRY_FLASH_ATTENTION=auto"):
        load_settings()
    monkeypatch.setenv("QUANTRY_CACHE_TYPE_V", "auto")
    assert load_settings().flash_attention == "off"
