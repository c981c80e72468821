#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the tree against the rules of CONTRIBUTING.md; run as a test. layout_check_test.py plants a fault for each rule.

    layout_check.py ROOT      prints one line a fault, exits with 1 when there is one
"""
import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 400
MAX_COLUMNS = 140
SOURCES = {".hpp", ".cuh", ".h", ".cpp", ".cu", ".cmake", ".py", ".sh"}
CPP = {".hpp", ".cuh", ".h", ".cpp", ".cu"}
FOLDERS = ("include", "tests", "bench", "examples", "cmake", "ports", ".ci")
SIZED = ("include/", "tests/", "bench/", "examples/")
VAGUE = re.compile(r"(^|_)(utils?|commons?|helpers?|misc|impl)($|_)")
UNTESTED = {"pqkv", "version", "config", "cuda_extern"}
INTRINSICS = re.compile(r"\b_mm(?:256|512)?_\w+|\b__m(?:128|256|512)\w*\b|\bv(?:ld|st)[1-4]q?_\w+|<(?:\w*mmintrin|x86intrin|arm_neon)\.h>")
PRINTING = re.compile(r"#\s*include\s*<(?:iostream|print)>|\bstd::(?:cout|cerr|clog)\b|\bf?printf\s*\(|\bstd::exit\s*\(")
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")

FENCED = re.compile(r"^( *)```.*?^\1```", re.M | re.S)

# Includes run one way: a file may include what stands in its own line or above.
ORDER = ("config version", "core", "exec", "simd", "quantize", "search", "cache", "merge attention prefill_attention", "selector", "pqcache_state", "pqcache", "preset", "scale", "adapt", "pqkv cuda_extern cuda device_pqcache device_context_parallel")
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}

# Names of the standard library and the header that gives each: compilers differ in what their headers bring along.
STANDARD = {header: re.compile(r"\bstd::(?:" + names + ")") for header, names in {
    "algorithm": r"(?:ranges::)?(?:sort|stable_sort|nth_element|min|max|clamp|find|find_if|copy|copy_n|fill|fill_n|all_of|any_of|none_of|count_if"
                 r"|min_element|max_element|transform|reverse|rotate|remove_if|lower_bound|upper_bound|is_sorted)\(",
    "array": r"array<", "atomic": r"(?:atomic<|memory_order)", "bit": r"(?:bit_cast|popcount|countr_zero|bit_width|bit_ceil)\b",
    "charconv": r"(?:from|to)_chars\(", "chrono": r"chrono::", "cmath": r"(?:exp|log|log2|sqrt|pow|isfinite|floor|ceil|lround)\(",
    "cstdint": r"u?int(?:8|16|32|64|ptr)_t\b", "cstdio": r"(?:f|sn)?printf\(|std::fopen\(", "cstdlib": r"(?:getenv|strtoul|strtod|abort)\(",
    "cstring": r"(?:memcpy|memset|memcmp|memmove|strlen|strcmp)\(", "exception": r"(?:exception_ptr|current_exception|rethrow_exception)\b",
    "filesystem": r"filesystem::", "fstream": r"[io]?fstream\b", "functional": r"function<", "iostream": r"(?:cout|cerr|cin)\b",
    "limits": r"numeric_limits<", "map": r"(?:multi)?map<", "memory": r"(?:unique_ptr|shared_ptr|make_unique|make_shared)<", "mutex": r"(?:mutex|lock_guard|unique_lock)\b",
    "numeric": r"(?:accumulate|iota|reduce)\(", "optional": r"(?:optional<|nullopt\b)", "random": r"(?:mt19937|uniform_int_distribution|uniform_real_distribution|normal_distribution)",
    "set": r"(?:multi)?set<", "span": r"span[<(]", "sstream": r"[io]?stringstream\b", "stdexcept": r"(?:runtime_error|invalid_argument|logic_error|length_error|out_of_range)\b",
    "string": r"(?:string|to_string)\b", "string_view": r"string_view\b", "thread": r"(?:thread|this_thread)\b", "vector": r"vector<"}.items()}


def source_files(root):
    found = [path for path in root.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (root / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path for path in found if path.suffix in SOURCES or path.name == "CMakeLists.txt" or path.parent.name == ".ci")


def kept_files(root):
    """What git would commit; every file where git does not know the folder."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True)
    if listed.returncode != 0:
        return sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in (root / name for name in listed.stdout.split("\0") if name) if path.is_file())


def without_comments(text):
    """Blanks comments and keeps the lines; string literals stay."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)
    return pattern.sub(lambda match: match[0] if match[0].startswith('"') else re.sub(r"[^\n]", " ", match[0]), text)


def section_of(title):
    """The name by which Markdown's readers link to a section."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title.replace("`", "").replace("*", ""))
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


class tree:
    def __init__(self, root):
        self.root = Path(root)
        self.faults = []
        self.text = {}
        for path in source_files(self.root):
            self.text[path.relative_to(self.root).as_posix()] = path.read_text(encoding="utf-8")
        self.code = {name: without_comments(text) for name, text in self.text.items() if Path(name).suffix in CPP}
        self.headers = {name: code for name, code in self.code.items() if name.startswith("include/")}
        self.public = [Path(name) for name in self.headers if "detail" not in Path(name).parts and "adapt" not in Path(name).parts]
        self.opt_in = [Path(name) for name in self.headers if Path(name).parent.name == "adapt"]

    def fault(self, rule, name, what):
        self.faults.append(f"{name}: {what} [{rule}]")

    def each_match(self, pattern, name, code):
        for match in pattern.finditer(code):
            yield code.count("\n", 0, match.start()) + 1, match

    def check(self):
        for rule in (self.sizes, self.first_lines, self.names, self.unfinished, self.mirrored_tests, self.mirrored_backends,
                     self.same_operations, self.tables_of_pages, self.entries_of_pages, self.macros, self.intrinsics, self.early, self.quiet, self.include_order, self.standard_headers, self.versions, self.licences,
                     self.links, self.root_files):
            rule()
        return self.faults

    def sizes(self):
        for name, text in self.text.items():
            lines = text.splitlines()
            if name.startswith(SIZED) and len(lines) > MAX_LINES:
                self.fault("size", name, f"{len(lines)} lines, at most {MAX_LINES}: split it by operation")
            for number, line in enumerate(lines, 1):
                if Path(name).suffix in CPP and len(line) > MAX_COLUMNS:
                    self.fault("width", f"{name}:{number}", f"{len(line)} columns, at most {MAX_COLUMNS}")

    def first_lines(self):
        for name, text in self.text.items():
            lines = text.splitlines()
            first = lines[1] if lines and lines[0].startswith("#!") and len(lines) > 1 else lines[0] if lines else ""
            mark = "//" if Path(name).suffix in CPP else "#"
            if first != f"{mark} SPDX-License-Identifier: Apache-2.0":
                self.fault("licence", name, "does not begin with the SPDX line")
        for path in self.public + self.opt_in:
            text = self.text[path.as_posix()]
            if not re.match(r"//[^\n]*\n// \S", text):
                self.fault("head", path.as_posix(), "says nothing about its purpose under the SPDX line")

    def names(self):
        for name in self.text:
            for part in Path(name).parts:
                if VAGUE.search(part.split(".")[0].lower()):
                    self.fault("name", name, f"'{part}' names no thing")

    def unfinished(self):
        for name, text in self.text.items():
            for line, match in self.each_match(UNFINISHED, name, text):
                self.fault("unfinished", f"{name}:{line}", f"says {match[0]}")

    def mirrored_tests(self):
        tests = {Path(name).name for name in self.text if name.startswith("tests/unit/")}
        for path in [*self.public, *self.opt_in]:
            wanted = [f"{path.stem}_test.cpp"] + ([f"selector_{path.stem}_test.cpp"] if path.parent.name == "selector" else [])
            if path.stem not in UNTESTED and path.suffix == ".hpp" and not tests.intersection(wanted):
                self.fault("test", path.as_posix(), f"has no test of its name: tests/unit/{wanted[-1]}")

    def mirrored(self, name):
        """The public header that a backend's file or its part, HEADER_part, stands behind; None where there is none."""
        stem = Path(name).stem
        whole = [path for path in self.public if path.stem == stem]
        parts = [path for path in self.public if stem.startswith(path.stem + "_")]
        return whole[0] if whole else max(parts, key=lambda path: len(path.stem)) if parts else None

    def mirrored_backends(self):
        for name in self.headers:
            path = Path(name)
            if path.parent.parent.name == "detail" and path.stem != "tuning" and not self.mirrored(name):
                self.fault("mirror", name, "mirrors no public header of that name")

    def same_operations(self):
        """Every operation of the host is on CUDA too, or declared there as absent: else a call of it would ask for a header that cannot help."""
        specialised = re.compile(r"\bkernel<(op::\w+), backend::(host|cuda)>")
        found = {"host": {}, "cuda": {}}
        for name, code in self.headers.items():
            for line, match in self.each_match(specialised, name, code):
                found[match[2]].setdefault(match[1], f"{name}:{line}")
        for operation in found["host"].keys() - found["cuda"].keys():
            self.fault("backends", found["host"][operation], f"{operation} is neither on CUDA nor in detail/cuda/cuda_absent.hpp")

    def tables_of_pages(self):
        """What stands in the pages' tables is what the headers have: operations, those that CUDA lacks, checks of functions on views."""
        page = {}
        for name in ("backends", "policies", "errors"):
            path = self.root / "docs" / f"{name}.md"
            page[name] = path.read_text(encoding="utf-8") if path.is_file() else ""
        specialised = re.compile(r"\bkernel<(op::\w+), backend::(?:host|cuda)>")
        absent = re.compile(r"\babsent_on_cuda<op::(\w+)>")
        checks = re.compile(r"^/// The checks of [^\n]*\n(?:[^\n]*\n){0,2}?[a-z ]*\bstatus (can_\w+)\(", re.M)
        for name in self.headers:
            for line, match in self.each_match(specialised, name, self.code[name]):
                if f"`{match[1]}`" not in page["backends"]:
                    self.fault("tables", f"{name}:{line}", f"{match[1]} is not in the table of docs/backends.md")
            for line, match in self.each_match(absent, name, self.code[name]):
                if f"`{match[1]}`" not in page["policies"]:
                    self.fault("tables", f"{name}:{line}", f"{match[1]} is not among what docs/policies.md says CUDA lacks")
            for line, match in self.each_match(checks, name, self.text[name]):
                if Path(name) in self.public and f"`{match[1]}`" not in page["errors"]:
                    self.fault("tables", f"{name}:{line}", f"{match[1]} is not in the table of docs/errors.md")

    def entries_of_pages(self):
        """The other way round: what the tables name is there. And each public header, family of SIMD kernels and instruction set has a place."""
        code = "\n".join(self.headers.values())
        operations, absent = set(re.findall(r"\bkernel<op::(\w+), backend::\w+>", code)), set(re.findall(r"\babsent_on_cuda<op::(\w+)>", code))
        on_cuda = set(re.findall(r"\bkernel<op::(\w+), backend::cuda>", code)) - absent
        checks = set(re.findall(r"\bstatus (can_\w+)\(", code))
        page = {path.stem: path.read_text(encoding="utf-8") for path in (self.root / "docs").glob("*.md")}
        rows = {name: "\n".join(line for line in text.splitlines() if line.startswith("|")) for name, text in page.items()}
        for name in re.findall(r"^\| (`op::.*?) \|", rows.get("backends", ""), re.M):
            for operation in re.findall(r"`op::(\w+)`", name):
                if operation not in operations:
                    self.fault("tables", "docs/backends.md", f"no backend has op::{operation}")
        for name in re.findall(r"`(can_\w+)`", rows.get("errors", "")):
            if name not in checks:
                self.fault("tables", "docs/errors.md", f"there is no {name}")
        columns = re.search(r"runs on `exec::cuda`[^\n]*\n\|-[^\n]*\n\|([^|]*)\|([^|]*)\|", rows.get("policies", ""))
        runs, lacks = columns.groups() if columns else ("", "")
        for name in absent.intersection(re.findall(r"`(\w+)`", runs)) | on_cuda.intersection(re.findall(r"`(\w+)`", lacks)):
            self.fault("tables", "docs/policies.md", f"{name} is in the wrong column: CUDA {'lacks' if name in absent else 'has'} it")
        for name in re.findall(r"^struct (\w+)[^{]*\{[^\n]*", self.headers.get("include/pqkv/exec/isa.hpp", ""), re.M):
            if "policies" in page and f"| `isa::{name}` |" not in page["policies"] and name != "at_most":
                self.fault("tables", "docs/policies.md", f"isa::{name} is not in the table of instruction sets")
        if "dataflow" not in page:
            return
        for path in self.public:
            name = path.relative_to("include/pqkv").as_posix()
            if path.parent.name != "scale" and name != "pqkv.hpp" and f"`{name}`" not in rows["dataflow"]:
                self.fault("tables", path.as_posix(), "is not in the table of docs/dataflow.md")
        told = re.search(r"`detail/host/simd/`[^(]*\(([^)]*)\)", page["dataflow"])
        families = {path.parts[5] for path in map(Path, self.headers) if path.parts[2:5] == ("detail", "host", "simd") and len(path.parts) == 7}
        if families != set(re.split(r",\s+", told[1]) if told else ()):
            self.fault("tables", "docs/dataflow.md", f"the families of SIMD kernels are {', '.join(sorted(families))}")

    def macros(self):
        define = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.M)
        of_compilers = {"_AMXTILEINTRIN_H_INCLUDED"}  # an include guard of g++ that config.hpp sets for nvcc 12
        for name, code in self.headers.items():
            for line, match in self.each_match(define, name, code):
                if not match[1].startswith("PQKV_") and match[1] not in of_compilers:
                    self.fault("macro", f"{name}:{line}", f"{match[1]} does not begin with PQKV_")
                if name != "include/pqkv/config.hpp":
                    self.fault("macro", f"{name}:{line}", f"{match[1]} is defined outside config.hpp")

    def intrinsics(self):
        for name, code in self.headers.items():
            if "/detail/host/simd/" in name:
                continue
            for line, match in self.each_match(INTRINSICS, name, code):
                self.fault("intrinsics", f"{name}:{line}", f"{match[0]} belongs in detail/host/simd/")

    def early(self):
        writers = re.compile(r"/detail/cuda/(?:kmeans|codebook|axes|pq_index_renew)\.cuh$")  # of codebooks and axes
        for name, code in self.headers.items():
            for line, _ in self.each_match(re.compile(r"\brelease_dependents\("), name, code) if writers.search(name) else ():
                self.fault("early", f"{name}:{line}", "a step reads codebooks and axes before the kernel ahead has ended: it must end first")

    def quiet(self):
        for name, code in self.headers.items():
            for line, match in self.each_match(PRINTING, name, code):
                self.fault("quiet", f"{name}:{line}", f"{match[0]}: the library never prints, never exits")

    def rank(self, name):
        """The place of a header in ORDER; None for a file that has none."""
        parts = Path(name).relative_to("include/pqkv").parts
        folder = parts[0].split(".")[0]
        if parts[0] == "detail":
            if Path(name).stem == "tuning":  # plain data
                return RANK["exec"]
            if "simd" in parts or len(parts) == 2:
                return RANK["simd"]
            mirrored = self.mirrored(name)
            return self.rank(mirrored.as_posix()) if mirrored else RANK["simd"] if "block" in parts else None
        return RANK.get(folder)

    def include_order(self):
        include = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<(pqkv/[^>]+)>)', re.M)
        graph = {}
        for name, code in self.headers.items():
            if self.rank(name) is None:
                self.fault("order", name, "stands in no folder that the order of includes knows")
                continue
            for line, match in self.each_match(include, name, code):
                folder = self.root / "include" if match[2] else (self.root / name).parent
                target = (folder / (match[1] or match[2])).resolve()
                if not target.is_file():
                    self.fault("order", f"{name}:{line}", f"includes {match[1] or match[2]}, which does not exist")
                    continue
                used = target.relative_to(self.root.resolve()).as_posix()
                graph.setdefault(name, []).append(used)
                front = self.rank(name) == RANK["pqkv"]
                if (self.rank(used) or 0) > self.rank(name):
                    self.fault("order", f"{name}:{line}", f"includes {used}, which comes later on the way of the data")
                if "/adapt/" in used and "/adapt/" not in name:
                    self.fault("opt-in", f"{name}:{line}", f"includes {used}: adaptors need other libraries, only their users include them")
                if "/detail/" in used and "/detail/" not in name and not front:
                    self.fault("order", f"{name}:{line}", f"includes its backend {used}; only front pages do")
        self.acyclic(graph)

    def standard_headers(self):
        """Every file gets the standard headers that it uses, by itself or by way of the project's own."""
        include = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.M)
        bases = ("include", "tests", "examples", "examples/minillama", "bench")
        own, given = {}, {}
        for name, code in self.code.items():
            own[name], given[name] = set(), set()
            for match in include.finditer(code):
                places = [(Path(name).parent / match[1]), *(Path(base) / match[1] for base in bases)]
                found = next((place for place in (os.path.normpath(place) for place in places) if place in self.code), None)
                (own if found else given)[name].add(found or match[1])
        for name, code in self.code.items():
            reached, waiting = {name}, [name]
            while waiting:
                new = own[waiting.pop()] - reached
                reached |= new
                waiting += new
            headers = set().union(*(given[each] for each in reached))
            for header, used in STANDARD.items():
                match = None if header in headers else used.search(code)
                if match:
                    self.fault("standard", f"{name}:{code.count(chr(10), 0, match.start()) + 1}", f"uses {match[0].rstrip('<([')} without <{header}>")

    def acyclic(self, graph):
        state = {}

        def visit(name, trail):
            if state.get(name) == "open":
                self.fault("order", name, "includes itself by way of " + ", ".join(trail[trail.index(name) + 1:]))
            if name in state:
                return
            state[name] = "open"
            for used in graph.get(name, []):
                visit(used, trail + [name])
            state[name] = "done"

        for name in graph:
            visit(name, [])

    def versions(self):
        header = self.text.get("include/pqkv/version.hpp", "")
        version = ".".join(re.findall(r"version_(?:major|minor|patch) = (\d+);", header))
        for name in ("vcpkg.json", "ports/pqkv/vcpkg.json"):
            file = self.root / name
            if file.exists() and json.loads(file.read_text(encoding="utf-8"))["version"] != version:
                self.fault("version", name, f"version differs from include/pqkv/version.hpp ({version})")
        for name in ("include/pqkv/config.hpp", "docs/integrating.md"):  # names of functions carry it, so that two versions share none
            path = self.root / name
            for found in re.findall(r"\bv(\d+_\d+_\d+)(?:_|\b)", path.read_text(encoding="utf-8") if path.is_file() else ""):
                if found != version.replace(".", "_"):
                    self.fault("version", name, f"v{found} differs from include/pqkv/version.hpp ({version})")
        citation = self.root / "CITATION.cff"
        if citation.exists() and f"\nversion: {version}\n" not in citation.read_text(encoding="utf-8"):
            self.fault("version", "CITATION.cff", f"version differs from include/pqkv/version.hpp ({version})")
        log = self.root / "CHANGELOG.md"
        if log.exists() and not re.search(rf"\b{re.escape(version)}\b", log.read_text(encoding="utf-8")):
            self.fault("version", "CHANGELOG.md", f"does not mention {version}")

    def licences(self):
        """Each file begins with the SPDX line or is named in the first table of docs/licences.md."""
        page = self.root / "docs/licences.md"
        if not page.is_file():
            return
        table = page.read_text(encoding="utf-8").split("\n## ")[1]
        named = re.compile("|".join(fnmatch.translate(pattern) for row in table.splitlines() if row.startswith("| `")
                                    for pattern in re.findall(r"`([^`]+)`", row.split("|")[1])))
        for path in kept_files(self.root):
            name = path.relative_to(self.root).as_posix()
            if name not in self.text and name != "LICENSE" and not named.fullmatch(name) and not path.name.startswith("."):
                self.fault("licence", name, "is in no row of docs/licences.md")

    def links(self):
        """What a Markdown page links to inside the repository is there, sections included."""
        pages = {path: FENCED.sub("", path.read_text(encoding="utf-8")) for path in kept_files(self.root) if path.suffix == ".md"}
        sections = {path.resolve(): {section_of(title) for title in re.findall(r"^#+ (.+)$", text, re.M)} for path, text in pages.items()}
        for path, text in pages.items():
            for _, match in self.each_match(re.compile(r"\[[^][]*\n[^][]*\]\([^)\s]+\)"), path, text):
                self.fault("link", path.relative_to(self.root).as_posix(), f"'{' '.join(match[0].split())}' stands on two lines, which breaks Doxygen's page")
            for link in re.findall(r"\]\(([^)\s]+)\)", text):
                place, _, section = link.partition("#")
                target = (path.parent / place).resolve() if place else path.resolve()
                if "://" in link or link.startswith("mailto:"):
                    continue
                if not target.exists() or (section and target in sections and section not in sections[target]):
                    self.fault("link", path.relative_to(self.root).as_posix(), f"{link} leads nowhere")
                elif not place:  # Doxygen before 1.10 resolves it only with the page's name before it (docs/doxygen_filter.py)
                    self.fault("link", path.relative_to(self.root).as_posix(), f"{link} does not name its page")

    def root_files(self):
        for name in ("LICENSE", "README.md", "CHANGELOG.md", "CMakePresets.json", "tests/run.sh", "examples/demo.sh", ".ci/run"):
            if not (self.root / name).is_file():
                self.fault("files", name, "is missing")
        for name in ("tests/run.sh", "examples/demo.sh", ".ci/run"):
            path = self.root / name
            if path.is_file() and not path.stat().st_mode & 0o100:
                self.fault("files", name, "is not executable")


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
    checked = tree(root)
    faults = checked.check()
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(checked.text)} files, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
