#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes translation units that try whether every header compiles alone, in fewer compiles than there are headers.

    stub_chains.py INCLUDE_FOLDER OUT_FOLDER SUFFIX HEADER ...    prints the names of the files

A file includes a chain of headers, each of which includes the ones before it itself, whatever macros are set: before it there is nothing
that it would not bring along, so it is tried as if it stood alone. The first has nothing before it. Headers that include each other never
follow one another. At its end a file includes all of its headers again.

The chains are as few as can be (Dilworth: a matching of headers with their successors, by augmenting paths).
"""
import re
import sys
from pathlib import Path


def direct_includes(root, header):
    """Headers of the folder that one includes: always, and at all."""
    always, all_of_them, depth = set(), set(), 0
    for line in (root / header).read_text(encoding="utf-8").splitlines():
        word = re.match(r'\s*#\s*(\w+)(?:\s*([<"])([^>"]+)[>"])?', line)
        if not word:
            continue
        if word[1] in ("if", "ifdef", "ifndef"):
            depth += 1
        elif word[1] == "endif":
            depth -= 1
        elif word[1] == "include" and word[2]:
            path = ((root / header).parent if word[2] == '"' else root) / word[3]
            if path.exists():
                name = path.resolve().relative_to(root).as_posix()
                all_of_them.add(name)
                if depth == 0:
                    always.add(name)
    return always, all_of_them


def closure(start, edges):
    reached, open_ones = set(), list(edges(start))
    while open_ones:
        one = open_ones.pop()
        if one not in reached:
            reached.add(one)
            open_ones += edges(one)
    return reached


def chains_of(root, headers):
    """Lists of headers, each of them in one list, that may be included one after the other."""
    known = {}

    def includes(which):
        def of(header):
            if header not in known:
                known[header] = direct_includes(root, header)
            return known[header][which]
        return of

    always = {header: closure(header, includes(0)) for header in headers}
    at_all = {header: closure(header, includes(1)) for header in headers}
    after = {a: [b for b in headers if a in always[b] and b not in at_all[a]] for a in headers}
    before = {}  # the matching: of a header, the one that it follows

    def find(header, seen):
        for other in after[header]:
            if other not in seen:
                seen.add(other)
                if other not in before or find(before[other], seen):
                    before[other] = header
                    return True
        return False

    for header in headers:
        find(header, set())
    following = {a: b for b, a in before.items()}
    chains = []
    for header in headers:
        if header not in before:
            chains.append([header])
            while chains[-1][-1] in following:
                chains[-1].append(following[chains[-1][-1]])
    return chains


def main():
    root, out, suffix, headers = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3], sorted(sys.argv[4:])
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for chain in chains_of(root, headers):
        text = "".join(f"#include <{header}>\n" for header in chain + chain)
        path = out / (re.sub(r"[/.]", "_", chain[-1]) + suffix)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        names.append(path.as_posix())
    print(";".join(names), end="")


if __name__ == "__main__":
    main()
