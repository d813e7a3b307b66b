"""The GGUF format: bounded reading and validation of untrusted files. Child processes only, standard library only."""
