#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds that functions of a kernel need no stack.

The loops that look tokens up (block/scan_lookups.cuh) are functions of their own, so that all registers are theirs. ptxas gives them
what the kernel around them leaves. A change of that kernel, or of another one in the same file, can make it save the registers on the
stack instead. That costs 13 us of a decode step of 53 (bench/cuda/pqcache_step.cu, n 131072, H200), and nothing else shows it.

    stack_test.py PART LEAST COMMAND...

PART    in the mangled names of the functions
LEAST   how many such functions there are, at least
COMMAND nvcc -Xptxas -v ... FILE
"""
import re
import subprocess
import sys

PROPERTIES = re.compile(r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores")


def functions_of(output, part):
    """(name, bytes of stack, bytes of stores to it) of each function whose name has the part."""
    return [(name, int(stack), int(stores)) for name, stack, stores in PROPERTIES.findall(output) if part in name]


def main():
    part, least, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout)
    found = functions_of(done.stdout, part)
    for name, stack, stores in found:
        if stack != 0 or stores != 0:
            print(f"{name}: {stack} bytes of stack, {stores} stored there; expected none")
    print(f"{len(found)} functions with '{part}' in their names, at least {least} expected")
    sys.exit(len(found) < least or any(stack != 0 or stores != 0 for _, stack, stores in found))


if __name__ == "__main__":
    main()
