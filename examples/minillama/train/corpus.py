# SPDX-License-Identifier: Apache-2.0
"""Makes the training text: plain ASCII documentation from Debian packages whose licences are clear and free.

Fetches each package of `sources` with `apt-get download`, checks the licence against the package's own copyright file, turns
HTML and reStructuredText into text, drops what is not ASCII and every block that was seen before, and writes two files:

    text.xz       documents in a random but fixed order, each ended by a blank line; the last ones serve for evaluation
    sources.json  package, version, licence, what the copyright file says, documents and bytes, for the model card

    python3 corpus.py --out FOLDER [--bytes 100000000] [--packages FOLDER]
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import lzma
import pathlib
import random
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from typing import Iterator

largest_file_bytes = 2_000_000  # single-page editions repeat the pages
shortest_document_bytes = 400
shortest_repeated_block_bytes = 60  # shorter blocks ("Example:", "See also") may repeat


@dataclasses.dataclass(frozen=True)
class source:
    """One package. `licence` is an SPDX expression; `evidence` must occur in the copyright file, as the licence of `Files: *`
    where the file is machine-readable, else anywhere in it."""

    package: str
    licence: str
    evidence: str
    pattern: str  # glob below the package's root
    without: str = r"$^"  # regular expression of paths to leave out


sphinx_extras = r"/_modules/|/_sources/|genindex|/search\.html|py-modindex"

sources = [
    source("python3.11-doc", "PSF-2.0", "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
           "usr/share/doc/python3.11/html/**/*.html", sphinx_extras),
    source("postgresql-doc-15", "PostgreSQL", "PostgreSQL", "usr/share/doc/postgresql-doc-15/html/*.html"),
    source("cmake-data", "BSD-3-Clause", "BSD-3-clause", "usr/share/cmake-*/Help/**/*.rst"),
    source("sqlite3-doc", "blessing (public domain)", "public-domain", "usr/share/doc/sqlite3/**/*.html",
           r"/matrix|/search|requirements|/doclist|keyword_index"),
    source("python-django-doc", "BSD-3-Clause", "BSD-3-Clause", "usr/share/doc/python-django-doc/**/*.html", sphinx_extras),
    source("python-sqlalchemy-doc", "MIT", "Expat", "usr/share/doc/python-sqlalchemy-doc/html/**/*.html", sphinx_extras),
    source("python-scipy-doc", "BSD-3-Clause", "BSD-3-clause", "usr/share/doc/python-scipy-doc/html/**/*.html", sphinx_extras),
    source("python-sklearn-doc", "BSD-3-Clause", "BSD-3-Clause", "usr/share/doc/python-sklearn-doc/**/*.html", sphinx_extras),
    source("python-astropy-doc", "BSD-3-Clause", "BSD-3-Clause", "usr/share/doc/python-astropy-doc/html/**/*.html",
           sphinx_extras),
    source("python-pandas-doc", "BSD-3-Clause", "BSD-3", "usr/share/doc/python-pandas-doc/html/**/*.html", sphinx_extras),
    source("apache2-doc", "Apache-2.0", "Apache-2.0", "usr/share/doc/apache2-doc/manual/en/**/*.html"),
    source("llvm-15-doc", "Apache-2.0 WITH LLVM-exception", "APACHE-2-LLVM-EXCEPTIONS",
           "usr/share/doc/llvm-15-doc/html/**/*.html", sphinx_extras),
    source("openvswitch-doc", "Apache-2.0", "Apache-2.0", "usr/share/doc/openvswitch-doc/html/**/*.html", sphinx_extras),
    source("dpdk-doc", "BSD-3-Clause", "BSD-3-clause", "usr/share/doc/dpdk/**/*.html", sphinx_extras + r"|_source\.html|/search/"),
    source("nodejs-doc", "MIT", "Expat", "usr/share/doc/nodejs/api/*.html", r"/all\.html"),
    source("libboost1.74-doc", "BSL-1.0", "BSL-1.0", "usr/share/doc/libboost1.74-doc/**/*.html"),
]


class html_to_text(HTMLParser):
    """The text of a page without its navigation. Line breaks are the page's own, and those that its block elements make."""

    skipped = {"script", "style", "head", "nav", "footer", "header", "svg", "button", "select"}
    blocks = {"p", "div", "li", "ul", "ol", "dl", "dt", "dd", "tr", "table", "pre", "section", "blockquote", "br",
              "h1", "h2", "h3", "h4", "h5", "h6"}
    void = {"br", "hr", "img", "input", "link", "meta", "col", "area", "base", "wbr", "source", "embed", "param", "track"}
    navigation = re.compile(r"^(?!with).*sidebar|navigation|navbar|navheader|navfooter|breadcrumb|footer|toctree|related|headerlink|"
                            r"toc\b|qindex")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden: list[str] = []  # open elements from the outermost hidden one on
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.hidden:
            if tag == self.hidden[0]:
                self.hidden.append(tag)
            return
        names = [word for name, value in attrs if name in ("class", "role", "id") for word in (value or "").split()]
        if tag not in self.void and (tag in self.skipped or any(map(self.navigation.search, names))):
            self.hidden.append(tag)
            return
        if tag == "pre":
            self.preformatted += 1
        if tag in self.blocks:
            self.pieces.append("\n\n" if tag in ("p", "pre", "h1", "h2", "h3", "h4", "table", "dl") else "\n")
        elif tag in ("td", "th"):
            self.pieces.append("  ")

    def handle_endtag(self, tag: str) -> None:
        if self.hidden:
            if tag == self.hidden[0]:
                self.hidden.pop()
            return
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)
        if tag in self.blocks:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data if self.preformatted else re.sub(r"[ \t\r\f]+", " ", data))

    def text(self) -> str:
        return "".join(self.pieces)


punctuation = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "...", "\u00a0": " ",
    "\u2212": "-", "\u00d7": "x", "\u2192": "->", "\u2022": "*", "\u00b6": "", "\u200b": "", "\u2264": "<=", "\u2265": ">=",
    "\u00ab": '"', "\u00bb": '"', "\r": "", "\f": "\n"})


def to_ascii(text: str) -> str:
    """Printable ASCII and line feeds; at most one blank line in a row, no spaces at line ends."""
    text = unicodedata.normalize("NFKD", text.translate(punctuation)).encode("ascii", "ignore").decode()
    text = re.sub(r"[^\n -~]", "", text.expandtabs(4))
    text = re.sub(r" +\n", "\n", text)
    text = re.sub(r"\n[ ]{24,}", "\n        ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class block_filter:
    """Drops every block (lines between blank lines) that came before, in any document."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, text: str) -> str:
        kept: list[str] = []
        for block in text.split("\n\n"):
            if len(block) >= shortest_repeated_block_bytes:
                key = hashlib.blake2b(re.sub(r"\s+", " ", block).encode(), digest_size=8).digest()
                if key in self.seen:
                    continue
                self.seen.add(key)
            kept.append(block)
        return "\n\n".join(kept)


def documents(root: pathlib.Path, origin: source) -> Iterator[str]:
    """Cleaned texts of the package's files, in path order."""
    without = re.compile(origin.without)
    for path in sorted(root.glob(origin.pattern)):
        if path.is_symlink() or not path.is_file() or without.search(str(path)) or path.stat().st_size > largest_file_bytes:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".html":
            parser = html_to_text()
            parser.feed(text)
            parser.close()
            text = parser.text()
        yield to_ascii(text)


def stated_licence(root: pathlib.Path, origin: source) -> str:
    """What the copyright file says of the package as a whole; ends the program when it is not what `sources` says."""
    files = list(root.glob("usr/share/doc/*/copyright"))
    text = files[0].read_text(encoding="utf-8", errors="replace") if files else ""
    stated = "see the copyright file"
    for stanza in text.split("\n\n"):
        if re.match(r"Files:(.*\s)?\*\s", stanza):
            stated = re.search(r"^License: *(.*)$", stanza, re.MULTILINE).group(1).strip()
            break
    if origin.evidence not in (text if stated.startswith("see") else stated):
        sys.exit(f"corpus.py: {origin.package}: the copyright file does not say '{origin.evidence}' (it says '{stated}')")
    return stated if not stated.startswith("see") else origin.evidence


def fetch(packages: pathlib.Path, origin: source) -> tuple[pathlib.Path, str]:
    """Downloads and unpacks one package unless that was done; returns its root and version."""
    root = packages / "x" / origin.package
    archives = sorted(packages.glob(f"{origin.package}_*.deb"))
    if not archives:
        subprocess.run(["apt-get", "download", "-qq", origin.package], cwd=packages, check=True)
        archives = sorted(packages.glob(f"{origin.package}_*.deb"))
    if not root.exists():
        root.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", str(archives[-1]), str(root)], check=True)
    version = subprocess.run(["dpkg-deb", "-f", str(archives[-1]), "Version"], check=True, capture_output=True, text=True)
    return root, version.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the training text from Debian documentation packages.")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--bytes", type=int, default=100_000_000, help="most bytes of text, default 100 million")
    parser.add_argument("--most-of-one", type=int, default=16_000_000, help="most bytes of one package")
    parser.add_argument("--packages", type=pathlib.Path, help="folder for the packages, default OUT/packages")
    args = parser.parse_args()
    packages = args.packages or args.out / "packages"
    packages.mkdir(parents=True, exist_ok=True)

    keep_new = block_filter()
    texts: list[tuple[str, str]] = []
    listing: dict[str, dict[str, object]] = {}
    for origin in sources:
        root, version = fetch(packages, origin)
        listing[origin.package] = {"package": origin.package, "version": version, "licence": origin.licence,
                                   "copyright_file_says": stated_licence(root, origin), "documents": 0, "bytes": 0}
        size = 0
        for text in documents(root, origin):
            text = keep_new(text)
            if len(text) >= shortest_document_bytes and size < args.most_of_one:
                texts.append((origin.package, text))
                size += len(text)
        print(f"{origin.package:24} {version:28} {size / 1e6:7.1f} MB", flush=True)

    random.Random(0).shuffle(texts)
    total = 0
    with lzma.open(args.out / "text.xz", "wb", preset=4) as out:
        for package, text in texts:
            if total + len(text) + 2 > args.bytes:
                break
            out.write((text + "\n\n").encode())
            total += len(text) + 2
            listing[package]["documents"] += 1
            listing[package]["bytes"] += len(text) + 2
    rows = sorted(listing.values(), key=lambda row: -row["bytes"])
    (args.out / "sources.json").write_text(json.dumps({"bytes": total, "sources": rows}, indent=2) + "\n")
    print(f"{total / 1e6:.1f} MB of text, {(args.out / 'text.xz').stat().st_size / 1e6:.1f} MB packed, in {args.out}")


if __name__ == "__main__":
    main()
