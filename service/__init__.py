"""quantry: quantize, measure and serve GGUF language models over REST."""

__version__ = "0.1.0"
