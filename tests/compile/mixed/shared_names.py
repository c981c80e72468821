#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two objects of one program, one for every CPU and one for new ones, must share no function of the library.

    shared_names.py FOR_EVERY_CPU.o FOR_NEW_CPUS.o

A linker keeps one body of a weak name. Looks at both objects with nm and objdump, and fails when
  1. a weak name of the library is in both objects: its code could be the wrong one;
  2. the object for every CPU has AVX code in a function that is no SIMD kernel (those are called after asking the CPU);
  3. the second object has none in its weak functions: then this test would show nothing.
Names of the standard library's templates are in both, and are counted only.
"""
import re
import subprocess
import sys
import tempfile

LIBRARY = "4pqkv"  # in a mangled name
# Instructions that are encoded by VEX or EVEX are named v... (verr and its like are no code of programs); masks have names of their own.
AVX = re.compile(r"\t(\{[a-z0-9]+\} )?v[a-z]|%[yz]mm[0-9]|%k[0-7]\b")
# A SIMD kernel, in a demangled name: a class of functions for one instruction set, or a function called by it alone.
KERNELS = re.compile(r"kernels<[^<>]*isa::avx|float_environment::clear_upper_halves\(\)")  # the latter asks the CPU itself


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def weak_names(path):
    lines = (line.split() for line in output("nm", "--defined-only", path).splitlines())
    return {words[-1] for words in lines if len(words) == 3 and words[1] in "WVu"}


def functions_with_avx(path):
    """Mangled names of functions, all kinds, that hold an AVX instruction."""
    found = set()
    with tempfile.NamedTemporaryFile("w", suffix=".ld") as script, tempfile.NamedTemporaryFile(suffix=".o") as merged:
        script.write("SECTIONS { .text : { *(.text*) } }")  # objdump takes seconds where every function has a section of its own
        script.flush()
        output("ld", "-r", "--force-group-allocation", "-T", script.name, path, "-o", merged.name)
        functions = output("objdump", "-d", "--no-show-raw-insn", merged.name).split("\n\n")
    for function in functions:
        begin = re.match(r"[0-9a-f]+ <(.+)>:\n", function)
        if begin and AVX.search(function, begin.end()):
            found.add(begin[1])
    return found


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return text.splitlines()


def main():
    every_cpu, new_cpus = sys.argv[1:]
    old, new = weak_names(every_cpu), weak_names(new_cpus)
    of_library = {name for name in old if LIBRARY in name}
    faults = [f"in both objects: {name}" for name in demangled(sorted(of_library & new))]
    if faults:
        print("\n".join(faults[:20]), f"... {len(faults)} names", sep="\n")
        return 1
    faults += [f"AVX code outside SIMD kernels: {name}" for name in demangled(sorted(functions_with_avx(every_cpu))) if not KERNELS.search(name)]
    fast = functions_with_avx(new_cpus) & {name for name in new if LIBRARY in name}
    if not of_library or not fast:
        faults.append(f"nothing to see: {len(of_library)} weak names of the library, {len(fast)} with AVX code in the second object")
    print("\n".join(faults[:20]))
    print(f"{len(of_library)} weak names of the library in the first object, {len(of_library & new)} of them in the second; "
          f"{len(old & new) - len(of_library & new)} shared names of others; "
          f"{len(fast)} weak functions of the library with AVX code in the second; {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
