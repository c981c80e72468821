#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A program of tests runs the kernels that its operations' library was compiled with, not those that its own files have without optimisation.

    operations_first_test.py PROGRAM OBJECT ...    PROGRAM: of pqkv_link_operations_first(); OBJECT: of pqkv::compiled, in their order

A linker keeps the first body of a name: a function of kernels must have the size in the program that it has in the first object with it.
"""
import subprocess
import sys


def kernel_sizes(file):
    """Bytes of each function of kernels that other files may have too, by its name."""
    lines = subprocess.run(["nm", "--print-size", "--defined-only", file], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split() for line in lines]
    return {one[3]: int(one[1], 16) for one in fields if len(one) == 4 and one[2] in "WV" and "_kernels" in one[3]}


def main():
    in_program, wanted = kernel_sizes(sys.argv[1]), {}
    for file in sys.argv[2:]:
        wanted = {**kernel_sizes(file), **wanted}
    if len(wanted) < 10:
        sys.exit(f"expected kernels in {' '.join(sys.argv[2:])}, got {len(wanted)}")
    others = [name for name, size in wanted.items() if in_program.get(name) != size]
    print(f"{len(wanted)} functions of kernels, {len(others)} of them not the library's")
    sys.exit("\n".join(others) or 0)


if __name__ == "__main__":
    main()
