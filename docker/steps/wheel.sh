#!/usr/bin/env bash
# wheel.sh portable|cuda|native VENV CACHE: makes the virtual environment VENV and installs llama-cpp-python in it,
# built for MODE or found in CACHE. Runs in the root of the repository.
set -euo pipefail

mode=${1:?portable, cuda or native}
venv=${2:?path of the virtual environment}
cache=${3:?path of the cache of wheels}

case "$mode" in
native) arguments=() ;;
portable | cuda) arguments=("--$mode") ;;
*)
  echo "unknown mode $mode" >&2
  exit 64
  ;;
esac

python3 -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install --no-compile --constraint constraints.txt pip setuptools wheel
wheel=$(QUANTRY_WHEEL_CACHE=$cache "$venv/bin/python" scripts/build_llama.py "${arguments[@]}")
"${pip[@]}" install --no-compile --no-deps "$wheel"
