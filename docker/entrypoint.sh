#!/usr/bin/env bash
# Starts `quantry serve`, or any other quantry command given to the container. With QUANTRY_DEMO=1 the demo models are imported
# into the running server once; the mark of that lies in the volume.
set -euo pipefail

app=$(dirname "${BASH_SOURCE[0]}")
home=${QUANTRY_HOME:-/data}
# The server knows its own settings only and refuses others.
demo=${QUANTRY_DEMO:-0}
unset QUANTRY_DEMO

if [[ "${1:-serve}" != serve ]]; then
  exec quantry "$@"
fi

if [[ ! -w "$home" ]]; then
  echo "quantry: $home cannot be written by user $(id -u); give the volume to it: chown -R $(id -u) VOLUME" >&2
  exit 1
fi
if [[ "${QUANTRY_HOST:-127.0.0.1}" != 127.0.0.1 && -z "${QUANTRY_API_KEYS:-}" ]]; then
  echo "quantry: set QUANTRY_API_KEYS (comma-separated, at least 16 characters each): the server listens on" \
    "${QUANTRY_HOST} and is open to whoever reaches it" >&2
  exit 1
fi

import_demo() {
  local url="http://127.0.0.1:${QUANTRY_PORT:-8080}" file
  for ((second = 0; second < 120; second++)); do
    if python "$app/healthcheck.py"; then
      for file in "$app"/models/*.gguf; do
        [[ ! -e "$file" ]] || export QUANTRY_SMOLLM2=$file
      done
      if quantry demo --no-serve --url "$url"; then
        touch "$home/.demo-imported"
      fi
      return
    fi
    sleep 1
  done
  echo "quantry: the server did not become healthy within 120 s; the demo models were not imported" >&2
}

if [[ "$demo" == 1 && ! -e "$home/.demo-imported" ]]; then
  # From a subshell that ends at once: the importer becomes a child of init, not of the server.
  (import_demo &)
fi
exec quantry "$@"
