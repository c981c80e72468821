#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles one program with several compilers and flags and demands the same single line of output from each.

The program prints a hash over canonical results, so a difference means that some compiler contracted, reordered or
replaced an operation. The flag sets are those that have been seen to do it: native instructions at -O2 and -O3, and no
optimisation at all. nvcc compiles what is the host's of a file in a way of its own. --few takes the set that leaves a compiler
the most freedom for the first one, and for the others contraction alone, with half of the compile time; the program as it was built is
then compiled without optimisation.
"""
import argparse
import os
import subprocess
import sys
import tempfile

FLAG_SETS = (("-O2",), ("-O2", "-march=native"), ("-O3", "-march=native", "-ffp-contract=fast"), ("-O0",))
FEW_FLAG_SETS = (("-O3", "-march=native", "-ffp-contract=fast"), ("-O1", "-march=native", "-ffp-contract=fast"))
NVCC_FLAG_SETS = (("-O2",), ("-O3", "--use_fast_math", "-Xcompiler=-march=native,-ffp-contract=fast"))
FEW_NVCC_FLAG_SETS = (("-O1", "--use_fast_math", "-Xcompiler=-march=native,-ffp-contract=fast"),)


def digest(program):
    if program.endswith(".txt"):
        with open(program, encoding="utf-8") as file:
            return file.read().strip()
    result = subprocess.run([program], capture_output=True, text=True, check=True, timeout=300)
    lines = result.stdout.strip().splitlines()
    if len(lines) != 1 or not lines[0]:
        sys.exit(f"{program}: expected one line, got {result.stdout!r}")
    return lines[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--built", help="the program as the build made it, or a file .txt with what it printed")
    parser.add_argument("--write", help="a file for what all of them printed")
    parser.add_argument("--include", nargs="+", default=[])
    parser.add_argument("--compilers", nargs="*", default=[])
    parser.add_argument("--nvcc", help="nvcc, which compiles the program as a .cu file")
    parser.add_argument("--few", action="store_true", help="one set of flags for each compiler; tests/run.sh --all takes all")
    parser.add_argument("--sources", nargs="*", default=[], help="further files the program is made of")
    options = parser.parse_args()

    if not options.compilers and not options.nvcc:
        parser.error("--compilers or --nvcc")
    compilers = {os.path.realpath(path): path for path in options.compilers}.values()
    found = []
    builds = [(compiler, flags) for i, compiler in enumerate(compilers)
              for flags in ([FEW_FLAG_SETS[min(i, 1)]] if options.few else FLAG_SETS)]
    if options.nvcc:
        builds += [(options.nvcc, ("-x", "cu", "-arch=sm_90", *flags)) for flags in (FEW_NVCC_FLAG_SETS if options.few else NVCC_FLAG_SETS)]
    with tempfile.TemporaryDirectory() as folder:
        if options.built:
            found.append((digest(options.built), "as built"))
        for compiler, flags in builds:
            program = os.path.join(folder, "digest")
            include = [f"-I{path}" for path in options.include]
            subprocess.run([compiler, "-std=c++20", *flags, *include, options.source, *options.sources, "-o", program], check=True)
            found.append((digest(program), f"{os.path.basename(compiler)} {' '.join(flags)}"))
            print(*found[-1], sep="  ", flush=True)
    if len({value for value, _ in found}) != 1:
        sys.exit("canonical digests differ: " + "; ".join(f"{value} ({name})" for value, name in found))
    if options.write:
        with open(options.write, "w", encoding="utf-8") as file:
            file.write(found[0][0])
    print(f"{len(found)} builds agree")


if __name__ == "__main__":
    main()
