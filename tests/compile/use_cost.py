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
    parser.add_argument("--name", required=True, help="name of what is measured, to print")
    parser.add_argument("--seconds", type=float, required=True, help="target of processor time; three times as much fails")
    parser.add_argument("--kilobytes", type=int, required=True, help="most code, in 1000 bytes; with more the test fails")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the compiler's command that makes an object, without -o")
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
