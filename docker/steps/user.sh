#!/usr/bin/env bash
# user.sh: the account that the server runs as, and the one folder that it may write to.
set -euo pipefail

groupadd --gid 10001 quantry
useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin quantry
install --directory --owner=10001 --group=10001 --mode=0700 /data
