"""GGUF in, GGUF or figures out: planning a level and making it. Child processes only."""
