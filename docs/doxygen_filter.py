#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows Doxygen a file as its readers see it. Of a header the head becomes the file's page and the comment behind a member its
description; of a Markdown page the links to headers lead to their pages, and those to sections of a page to the page: Doxygen before 1.10
gives sections other names than Markdown does.

    doxygen_filter.py FILE      prints it, line for line
"""
import re
import sys

# A declaration or an enumerator, then a comment; neither a preprocessor line nor a comment that has been marked already.
behind_member = re.compile(r"^(\s*(?![#/])[^\"]*?[\w;,)\]}])(\s+)// (.*)$")

# Its text may be in backticks, which a reference would show.
link_to_header = re.compile(r"\[`?([^][`]*)`?\]\((?:\.\./)*include/(pqkv/[\w/]+\.(?:hpp|cuh))\)")

link_to_section = re.compile(r"\]\(((?:[\w.-]+/)*[\w-]+\.md)#[\w-]+\)")


def header(lines):
    head = True
    for number, line in enumerate(lines):
        if head and line.startswith("//"):
            yield "/// @file" if number == 0 else "/" + line  # the SPDX line gives way
            continue
        head = False
        yield behind_member.sub(r"\1\2///< \3", line.replace("::inline PQKV_MODE", ""))  # users name none of it


def page(lines):
    for line in lines:
        yield link_to_section.sub(r"](\1)", link_to_header.sub(r"[\1](@ref \2)", line))


if __name__ == "__main__":
    shown = page if sys.argv[1].endswith(".md") else header
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.stdout.write("\n".join(shown(file.read().split("\n"))))
