#!/usr/bin/env bash
# packages.sh build|run [python]: installs Debian packages in a stage. The one step that needs root and a container.
set -euo pipefail

case "${1:-}" in
build) packages=(build-essential) ;;
run) packages=(libgomp1 tini) ;;
*)
  echo "usage: packages.sh build|run [python]" >&2
  exit 64
  ;;
esac
if [[ "${2:-}" == python ]]; then
  packages+=(python3 python3-venv)
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends "${packages[@]}"
rm -rf /var/lib/apt/lists/*
