#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the C++ blocks out of README.md and docs/*.md, so that the build compiles what the pages show.

    extract_snippets.py ROOT DIR      writes DIR/<page>_<line>.cpp, prints one line a block: "program FILE" or "fragment FILE"

A block begins with one of two tags, and no other one that names C++ is accepted:

    ```cpp            a file as it stands, with its own includes; one that has a main() is linked and run too
    ```cpp fragment   statements; they are put into a function after fragment_preamble.hpp, which declares the names that
                      fragments may take as given

Each file carries #line, so a compiler's complaint points into the page. Files of blocks that are gone are removed; a file whose
text is the same is not touched.
"""
import re
import sys
from pathlib import Path

FENCE = re.compile(r"^( *)(`{3,})(.*)$")
OTHER_NAMES = {"c++", "cxx", "cc", "hpp", "cu", "cuda", "c"}
HAS_MAIN = re.compile(r"^\s*int\s+main\s*\(", re.M)


class bad_page(Exception):
    pass


def blocks(name, text):
    """(line of the first line inside, tag, text) of every fenced block."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None and match:
            fence, tag, first, inside = match, match[3].strip(), number + 1, []
        elif fence is not None and match and len(match[2]) >= len(fence[2]) and not match[3].strip():
            yield first, tag, "\n".join(inside) + "\n"
            fence = None
        elif fence is not None:
            inside.append(line.removeprefix(fence[1]))
    if fence is not None:
        raise bad_page(f"{name}:{first - 1}: a block that is not closed")


def snippets(name, text):
    """(line, kind, text) of every C++ block; kind is program, unit (no main) or fragment."""
    for line, tag, inside in blocks(name, text):
        words = tag.split()
        if words and words[0].lower() in OTHER_NAMES:
            raise bad_page(f"{name}:{line - 1}: tag '{words[0]}'; C++ is tagged 'cpp' here, so that it is compiled")
        if not words or words[0] != "cpp":
            continue
        if words[1:] == ["fragment"]:
            yield line, "fragment", inside
        elif words[1:]:
            raise bad_page(f"{name}:{line - 1}: 'cpp' is followed by '{' '.join(words[1:])}'; only 'fragment' is known")
        else:
            yield line, "program" if HAS_MAIN.search(inside) else "unit", inside


def source_file(name, line, kind, text):
    place = f'#line {line} "{name}"\n'
    if kind != "fragment":
        return place + text
    function = f"void of_{re.sub(r'[^a-zA-Z0-9]', '_', Path(name).stem)}_{line}()"  # its own name: several may be one translation unit
    return f'#include "fragment_preamble.hpp"\nnamespace snippet {{\n{function};\n{function} {{\n{place}{text}}}\n}}\n'


def pages(root):
    return [path for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))] if path.is_file()]


def write_if_changed(path, text):
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def main(root, folder):
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for page in pages(root):
        name = page.relative_to(root).as_posix()
        for line, kind, text in snippets(name, page.read_text(encoding="utf-8")):
            path = folder / f"{page.stem}_{line}.cpp"
            write_if_changed(path, source_file(name, line, kind, text))
            written.append(path)
            print(kind, path)
    for stale in set(folder.glob("*.cpp")) - set(written):
        stale.unlink()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except bad_page as fault:
        sys.exit(str(fault))
