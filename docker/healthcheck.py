"""The container's health check: exit 0 when the server in it answers /health. Standard library only."""

import os
import sys
from http.client import HTTPConnection, HTTPException

TIMEOUT_SECONDS = 4

connection = HTTPConnection("127.0.0.1", int(os.environ.get("QUANTRY_PORT", "8080")), timeout=TIMEOUT_SECONDS)
try:
    connection.request("GET", "/health")
    healthy = connection.getresponse().status == 200
except (OSError, HTTPException):
    healthy = False
finally:
    connection.close()
sys.exit(0 if healthy else 1)
