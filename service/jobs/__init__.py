"""Slow work on files, durable: a queue in the database and one child process per running job.

`queue`, `runner`, `admission`, `progress`, `events` and `child` run in the server process; `steps`, `smoke` and
`limits` in the job's child; `messages` is what the two say to each other.
"""
