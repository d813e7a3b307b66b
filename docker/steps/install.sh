#!/usr/bin/env bash
# install.sh VENV: installs quantry and its run-time dependencies beside the llama-cpp-python that is there already, then
# removes what only installs. The package itself stays in the repository's folder. Runs in the root of the repository.
set -euo pipefail

venv=${1:?path of the virtual environment}

pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install --no-compile --no-build-isolation --constraint constraints.txt --editable .
"${pip[@]}" check
"${pip[@]}" uninstall --yes setuptools wheel pip
