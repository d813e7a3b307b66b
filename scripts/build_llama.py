#!/usr/bin/env python3
"""Prints the path of a llama-cpp-python wheel that works on this machine, building it the first time.

Standard library only: `make` runs it before anything is installed. See docs/decisions/0001-building-llama-cpp.md.
"""

from __future__ import annotations

import argparse

from caching import CacheError, end_on_signals, fail
from llama_build.builder import find_or_build
from llama_build.rungs import Mode


def main() -> None:
    """Parses the command line, finds or builds, prints the path."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--portable",
        action="store_const",
        dest="mode",
        const=Mode.portable,
        help="for other machines too: the CPU library is chosen when it is loaded",
    )
    mode.add_argument(
        "--cuda", action="store_const", dest="mode", const=Mode.cuda, help="portable, plus the CUDA backend"
    )
    parser.add_argument("--rebuild", action="store_true", help="build again even when the cache has the wheel")
    arguments = parser.parse_args()
    end_on_signals()
    try:
        print(find_or_build(arguments.mode or Mode.native, rebuild=arguments.rebuild))
    except CacheError as error:
        fail(error)


if __name__ == "__main__":
    main()
