#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what a file costs that uses the library: seconds of processor time to compile it, and bytes of code, beside their budgets.

Fails when the code is over its budget, which does not depend on the machine, or when the time is far over its own.
"""
import argparse
import os
import subprocess
import sys
import tempfile

from header_time import processor_seconds


def text_bytes(file):
    sizes = subprocess.run(["size", file], check=True, capture_output=True, text=True).stdout
    return int(sizes.splitlines()[1].split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what is measured, for the text")
    parser.add_argument("--seconds", type=float, required=True, help="processor time aimed at; three times that fails")
    parser.add_argument("--kilobytes", type=int, required=True, help="code above which the test fails, in 1000 bytes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the compile to an object, without -o")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "made.o")
        seconds = processor_seconds([*options.command, "-o", made])
        code = text_bytes(made)
    fits = code <= options.kilobytes * 1000
    print(f"{options.name}: {seconds:.1f} s of at most {options.seconds:.1f}, {code / 1000:.0f} KB of code of at most {options.kilobytes}")
    sys.exit(not fits or seconds > 3 * options.seconds)


if __name__ == "__main__":
    main()
