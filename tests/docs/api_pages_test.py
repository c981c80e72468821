#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the API pages and checks them: Doxygen warns about nothing, every public name has a description, and faults are found.

    api_pages_test.py DOXYGEN DOXYFILE ROOT
"""
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as tree
from pathlib import Path

doxygen, doxyfile, root = (sys.argv.pop(1) for _ in range(3)) if len(sys.argv) > 3 else (None, None, None)
compounds = ("struct", "class", "union", "concept")
fully_described = ("pqkv::pqcache",)  # its members too; those of other classes may be accessors that say what they are


def build(folder, extra=""):
    """Runs Doxygen with the project's settings and the pages elsewhere."""
    config = f'@INCLUDE = "{doxyfile}"\nOUTPUT_DIRECTORY = "{folder}"\n{extra}'
    return subprocess.run([doxygen, "-"], input=config, capture_output=True, text=True)


def described(element):
    return any("".join(text.itertext()).strip() for kind in ("briefdescription", "detaileddescription") for text in element.findall(kind))


def undescribed(folder):
    """Public classes and namespace members without a description. Tags of operations and specialisations need none."""
    xml = Path(folder) / "xml"
    for entry in tree.parse(xml / "index.xml").getroot().findall("compound"):
        name, kind = entry.findtext("name"), entry.get("kind")
        if kind not in (*compounds, "namespace", "file") or name == "std" or name.startswith(("pqkv::op::", "pqkv::backend::")) or "<" in name:
            continue
        compound = tree.parse(xml / f"{entry.get('refid')}.xml").getroot().find("compounddef")
        if name.endswith((".md", ".dox", ".py")) or "::detail" in name or compound.get("prot") == "private":
            continue
        if not described(compound):
            yield name
        if kind in ("namespace", "file") or name in fully_described:
            for member in compound.iter("memberdef"):
                told = kind == "file"  # by its namespace; macros by the head of config.hpp
                special = "<" in member.findtext("name") or member.findtext("name").startswith("operator") or member.get("prot") == "private"
                if not told and not special and not described(member):
                    yield f"{name}: {member.findtext('name')}"


def dead_links(folder):
    """Links of the Markdown pages that lead to no page. Files of the repository that are no pages may be linked."""
    html = Path(folder) / "html"
    for page in [html / "index.html", *html.glob("md_*.html")]:
        for target in re.findall(r'<a [^>]*href="([^"#:]+)[^":]*"', page.read_text(encoding="utf-8")):
            is_page = target.endswith((".md", ".hpp", ".cuh", ".html"))
            if not (html / target).exists() and (is_page or not any((Path(root) / at / target).exists() for at in (".", "docs", "examples/minillama"))):
                yield f"{page.name}: {target}"


def broken_pages(folder):
    """Markdown pages with a link whose text Doxygen has cut at a line's end: the rest stands behind it, and markup after it as text."""
    html = Path(folder) / "html"
    return [page.name for page in [html / "index.html", *html.glob("md_*.html")]
            if re.search(r'</a>\w[^<"]*"|@ref ', page.read_text(encoding="utf-8"))]


class api_pages(unittest.TestCase):
    maxDiff = None

    def test_pages_of_the_project(self):
        with tempfile.TemporaryDirectory() as folder:
            built = build(folder)
            self.assertEqual((built.returncode, built.stderr), (0, ""))
            self.assertEqual(list(undescribed(folder)), [])
            self.assertEqual(list(dead_links(folder)), [])
            self.assertEqual(broken_pages(folder), [])
            front = (Path(folder) / "html/index.html").read_text(encoding="utf-8")
            xml = (Path(folder) / "xml/index.xml").read_text(encoding="utf-8")
            self.assertIn("Quantized KV retrieval", front)
            for page in (Path(root) / "docs").glob("*.md"):
                names = {page.stem, page.stem.replace("_", "__")}  # Doxygen 1.9 and later ones
                self.assertTrue([name for name in names if list((Path(folder) / "html").glob(f"md_docs_*{name}.html"))], page)
            self.assertRegex(front, r'href="md_[^"]*integrating\.html"')
            for header in (Path(root) / "include/pqkv").rglob("*.hpp"):
                if "detail" not in header.parts:
                    self.assertIn(f"<name>{header.name}</name>", xml)
            for name in ("pqkv::pqcache", "pqkv::view", "retrieve", "top_k"):
                self.assertIn(f"<name>{name}</name>", xml)
            detail = [(header.name, header.read_text(encoding="utf-8")) for header in (Path(root) / "include/pqkv/detail").rglob("*.hpp")]
            for name in ("score_kernels", "group_scorer", "avx2.hpp"):  # what detail is made of
                self.assertTrue(any(name == file or f"struct {name}" in text or f"class {name}" in text for file, text in detail), name)
                self.assertNotIn(f"<name>{name}</name>", xml)

    def plant(self, text, page=""):
        with tempfile.TemporaryDirectory() as folder:
            header, markdown = Path(folder) / "planted.hpp", Path(folder) / "planted.md"
            header.write_text(f"// SPDX-License-Identifier: Apache-2.0\n// A file.\n\n/// The library.\nnamespace pqkv {{\n{text}\n}}\n")
            markdown.write_text(f"# A page\n\n{page}\n")
            built = build(folder, f'INPUT = "{header}" "{markdown}"\nUSE_MDFILE_AS_MAINPAGE =\n')
            return built.returncode, built.stderr, list(undescribed(folder)) + list(dead_links(folder)) + broken_pages(folder)

    def test_sound_docstrings_pass(self):
        code, said, missing = self.plant("/// Adds.\n///\n/// @param a  [n] float\n/// @cost   nothing\n/// @source a book\nint add(int a);\n"
                                         "/// A choice.\nstruct choice {\n  int field = 0;  // what it is\n};", "See [this](planted.md).")
        self.assertEqual((code, said, missing), (0, "", []))

    def test_faults_are_found(self):
        for text, sentence in (("/// Adds.\n/// @param b  no such\nint add(int a);", "argument 'b' of command @param is not found"),
                               ("/// Adds. @nonsense\nint add(int a);", "nknown command"),
                               ("/// See @ref nowhere.\nint add(int a);", "nowhere")):
            code, said, _ = self.plant(text)
            self.assertNotEqual(code, 0, text)
            self.assertIn(sentence, said)
        for link in ("nowhere.md", "../include/pqkv/nowhere.hpp"):
            code, said, _ = self.plant("", f"See [this]({link}).")
            self.assertNotEqual(code, 0, link)
            self.assertIn("nowhere", said)
        for link, faults in (("[this](planted.md)", 0), ("[this\npage](planted.md)", 1)):
            _, _, missing = self.plant("", f"See {link}.\n\n**The** end.")
            self.assertEqual(len(missing), faults, (link, missing))
        _, _, missing = self.plant("", "See [this](../nowhere.sh).")
        self.assertEqual([fault.split(": ")[1] for fault in missing], ["../nowhere.sh"])

    def test_names_without_description_are_found(self):
        text = "int add(int a);\nstruct choice {\n  int field = 0;\n};\nenum class kind { one };\nconstexpr int many = 3;"
        _, _, missing = self.plant(text)
        self.assertEqual(sorted(missing), ["pqkv: add", "pqkv: kind", "pqkv: many", "pqkv::choice"])


if __name__ == "__main__":
    if root is None:
        sys.exit("api_pages_test.py: the paths of doxygen, its settings and the repository are needed")
    unittest.main()
