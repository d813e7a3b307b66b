"""HTTP: the only room that knows wire shapes, status codes, server-sent events and FastAPI. Server process.

A request passes, from outside in: access.py (request id, log, metrics, errors), gate.py (host, origin, key),
limits.py (body size, time, depth), then its route. `routes.install` puts it all together.
"""
