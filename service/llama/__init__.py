"""The only door to llama_cpp: handles with lifetimes, native errors turned into ours.

Runs in child processes only (workers and jobs); the server process never imports it. Knows nothing of scheduling,
prompts or jobs. `python -m service.llama` prints what this build is, as JSON, for `quantry doctor`.
"""
