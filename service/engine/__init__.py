"""Inference in a worker process: submit, cancel, step, close. Knows no HTTP, SQL, IPC or settings."""
