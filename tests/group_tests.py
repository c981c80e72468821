#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes translation units that hold several test files each, so that code which many tests use is compiled once a group.

    group_tests.py FOLDER SIZE FILE ...      writes FOLDER/group_1.cpp and so on with SIZE files each and prints their names
    group_tests.py --program OUT.cu [NAME=]FILE ... writes one program of files that have a main() each: OUT NAME ... is what that file's
would do; NAME is the file's own without its ending, unless given

A group includes what its files include, and then each file inside a namespace of its own: names of two files do not meet, and the
#include lines of the files have nothing left to do. A file that cannot live in a namespace stands alone: one that opens namespace pqkv or says `// group: alone`. A group that stays as it
was is not written again.
"""
import re
import sys
from pathlib import Path


def includes(text):
    """The #include lines of a test file in their order. One that stands under an #if is taken with its condition."""
    lines, conditions = [], []
    for line in text.splitlines():
        word = re.match(r"#\s*(\w+)", line)
        if not word:
            continue
        if word[1] in ("if", "ifdef", "ifndef"):
            conditions.append(line)
        elif word[1] == "endif":
            conditions.pop()
        elif word[1] in ("else", "elif"):
            conditions[-1] = None  # what stands there is not followed: such a file stands alone
        elif word[1] == "include":
            if None in conditions:
                return None
            lines.append("\n".join(conditions + [line] + ["#endif"] * len(conditions)))
    return lines


def stands_alone(text):
    return re.search(r"^namespace pqkv\b|^// group: alone|^template <>|^#define ", text, re.M) is not None or includes(text) is None


def namespace_of(file):
    return re.sub(r"\W", "_", "_".join([*file.parts[-3:-1], file.stem]))


def group_text(files):
    first = {}
    for file in files:
        for line in includes(file.read_text()):
            first.setdefault(line)
    parts = ["// Written by tests/group_tests.py.", *first]
    for file in files:
        name = namespace_of(file)
        parts += [f"namespace {name} {{", f'#include "{file}"', f"}}  // namespace {name}"]
    return "\n".join(parts) + "\n"


DISPATCHER = """\
namespace {
template <class Main>
int called(Main* program, int argc, char** argv) {
  if constexpr (std::is_invocable_v<Main*>)
    return program();
  else
    return program(argc, argv);
}
}  // namespace

int main(int argc, char** argv) {
  const std::string_view name = argc > 1 ? argv[1] : "";
"""


def program_text(named):
    """Of files by name, which all fit into a namespace: that of the file's name and its folders'."""
    files = list(named.values())
    for file in files:
        if stands_alone(file.read_text()):
            sys.exit(f"{file}: cannot live in a namespace, and so not in a program with others")
    calls = [f'  if (name == "{name}") return called({namespace_of(file)}::main, argc - 1, argv + 1);\n' for name, file in named.items()]
    end = '  std::fprintf(stderr, "expected the name of a program, got \\"%s\\"\\n", argc > 1 ? argv[1] : "");\n  return 2;\n}\n'
    heads = "#include <cstdio>\n#include <string_view>\n#include <type_traits>\n"
    return heads + group_text(files) + DISPATCHER + "".join(calls) + end


def write_program(out, arguments):
    pairs = [argument.split("=", 1) if "=" in argument else (Path(argument).stem, argument) for argument in arguments]
    named = {name: Path(file).resolve() for name, file in pairs}
    if len(named) != len(pairs):
        sys.exit("two files have one name: " + " ".join(arguments))
    text = program_text(named)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists() or out.read_text() != text:
        out.write_text(text)


def main():
    if sys.argv[1] == "--program":
        return write_program(Path(sys.argv[2]), sys.argv[3:])
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    files = [Path(name).resolve() for name in sys.argv[3:]]
    alone = [file for file in files if stands_alone(file.read_text())]
    together = [file for file in files if file not in alone]
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(file) for file in alone]
    for begin in range(0, len(together), size):
        path, text = folder / f"group_{begin // size + 1}.cpp", group_text(together[begin : begin + size])
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        names.append(str(path))
    print(";".join(names), end="")


if __name__ == "__main__":
    main()
