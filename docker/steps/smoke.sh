#!/usr/bin/env bash
# smoke.sh VENV: the installed libraries quantize and decode a small model, and the command starts.
set -euo pipefail

venv=${1:?path of the virtual environment}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
check=("$venv/bin/python" -S -B scripts/llama_build/check_child.py "$site" demo/gloss-5m-f16.gguf "$scratch")
export OMP_WAIT_POLICY=passive
# The machine that builds may advertise AMX and not have it; the one that runs the image may have it.
"${check[@]}" || "${check[@]}" sapphirerapids
"$venv/bin/quantry" --help >"$scratch/help"
