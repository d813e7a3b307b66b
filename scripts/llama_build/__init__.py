"""Builds the llama-cpp-python wheel for this machine and proves that it decodes before keeping it.

Standard library only: it runs before anything is installed. `probe` asks the machine, `rungs` decides (pure),
`wheel` builds, `check` decodes in a child process, `builder` puts them in order.
"""
