#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Looks into generated code for float arithmetic that a compiler has moved out of the environment of canonical arithmetic.

    environment_code.py FILE.s...     assembly of x86-64 or AArch64

float_environment.hpp sets the modes and then calls the work, which is not inlined (call_apart). So a function that sets the modes has no
arithmetic of its own; if it has some, that was moved there, before the modes are set or after they are restored. Functions that are reached
through call_apart alone are exempt: they run inside an environment and set another one. Prints a line a file and the functions that are at
fault, and exits with 1 when there is one, or when no function sets the modes.
"""
import collections
import re
import sys
from pathlib import Path

LABEL = re.compile(r"^([A-Za-z_.$][\w.$]*):")
SETS = re.compile(r"\bv?ldmxcsr\b|\bmsr\s+fpcr\b", re.I)
ARITHMETIC = re.compile(r"^\s*(?:v?(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d*)[sp][sd]|f(?:n?madd|n?msub|n?mul|add|sub|div|sqrt|mla|mls))\b")
CALLS = re.compile(r"^\s*(?:callq?|jmpq?|bl|b)\s+([A-Za-z_.$][\w.$]*)")
DOUBLING = re.compile(r"^\s*v?add[sp][sd]\s+(%\w+),\s*\1\b")  # the end of an unsigned number's conversion; exact in every mode
APART = "10call_apart"  # as it stands in mangled names


def functions_of(text):
    functions, lines = {}, []
    for line in text.splitlines():
        label = LABEL.match(line)
        if label and not label[1].startswith(".L"):
            lines = functions.setdefault(label[1], [])
        else:
            lines.append(line)
    return functions


def is_apart(name):
    """Whether it is call_apart itself, and not a function that has the name of one in a template's argument."""
    return APART in name.split("I", 1)[0]


def has_arithmetic(lines):
    return any(ARITHMETIC.match(line) and not DOUBLING.match(line) for line in lines)


def faults_of(functions):
    callers = collections.defaultdict(set)
    for name, lines in functions.items():
        for line in lines:
            called = CALLS.match(line)
            if called and called[1] in functions and called[1] != name:
                callers[called[1]].add(name)

    def runs_inside(name, on_the_way=frozenset()):
        others = callers[name] - on_the_way
        return is_apart(name) or bool(others) and all(runs_inside(one, on_the_way | {name}) for one in others)

    setting = [name for name, lines in functions.items() if any(SETS.search(line) for line in lines)]
    return setting, [name for name in setting if has_arithmetic(functions[name]) and not runs_inside(name)]


def main():
    failed = len(sys.argv) < 2
    for file in sys.argv[1:]:
        setting, faults = faults_of(functions_of(Path(file).read_text(encoding="utf-8")))
        print(f"{file}: {len(setting)} functions set the modes, {len(faults)} of them have arithmetic outside")
        for name in faults:
            print(f"  {name}")
        failed = failed or not setting or bool(faults)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
