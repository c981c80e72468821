#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints how long a compile takes, beside its budget, and fails only far above it.

Processor time, best of a few, since other work on the machine stretches the clock on the wall and little else. What the
compiler needs for <vector> alone is shown next to it as the machine's own measure.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile


def processor_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, required=True, help="target in seconds")
    parser.add_argument("--limit", type=float, required=True, help="seconds above which the test fails")
    parser.add_argument("--header", default="pqkv/pqkv.hpp", help="name of what is measured, to print")
    parser.add_argument("--runs", type=int, default=5, help="how often to compile; the fastest counts")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the compiler's command; its last word is the source file")
    options = parser.parse_args()

    seconds = min(processor_seconds(options.command) for _ in range(options.runs))
    with tempfile.TemporaryDirectory() as folder:
        vector = os.path.join(folder, "vector" + os.path.splitext(options.command[-1])[1])
        with open(vector, "w", encoding="utf-8") as file:
            file.write("#include <vector>\n")
        measure = min(processor_seconds([*options.command[:-1], vector]) for _ in range(options.runs))
    verdict = "within" if seconds <= options.budget else "OVER"
    print(f"#include <{options.header}>: {seconds:.2f} s, {verdict} the budget of {options.budget:.2f} s (limit {options.limit:.2f} s; <vector> alone {measure:.2f} s)")
    sys.exit(seconds > options.limit)


if __name__ == "__main__":
    main()
