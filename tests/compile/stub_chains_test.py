#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of stub_chains.py: each header is in one chain, after headers only that it includes itself whatever macros are set."""
import tempfile
import unittest
from pathlib import Path

from stub_chains import chains_of

HEADERS = {
    "p/a.hpp": "#include <vector>",
    "p/b.hpp": '#include "a.hpp"',
    "p/c.hpp": "#include <p/b.hpp>",
    "p/no_include.hpp": "",
    "p/conditional.hpp": '#if defined(X)\n#include "no_include.hpp"\n#endif',
    "p/one.hpp": '#include "a.hpp"\n#include "other.hpp"',
    "p/other.hpp": '# include "one.hpp"',
    "p/in/deep.hpp": '#include "../c.hpp"\n#include "../one.hpp"',
}


class chains(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name).resolve()
        for name, text in HEADERS.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text("#pragma once\n" + text + "\n", encoding="utf-8")

    def test_chains(self):
        found = chains_of(self.root, sorted(HEADERS))
        self.assertEqual(sorted(header for chain in found for header in chain), sorted(HEADERS))
        self.assertEqual(len(found), 5)  # a, b, c, deep; four others, none of which includes another for sure
        follows = {(a, b) for chain in found for a, b in zip(chain, chain[1:])}
        self.assertNotIn(("p/no_include.hpp", "p/conditional.hpp"), follows)  # without X it would stand alone
        self.assertFalse(follows & {("p/one.hpp", "p/other.hpp"), ("p/other.hpp", "p/one.hpp")})  # the second would not be entered
        self.assertLessEqual(follows, {("p/a.hpp", "p/b.hpp"), ("p/a.hpp", "p/c.hpp"), ("p/b.hpp", "p/c.hpp"), ("p/a.hpp", "p/one.hpp"),
                                       ("p/a.hpp", "p/other.hpp"), ("p/a.hpp", "p/in/deep.hpp"), ("p/b.hpp", "p/in/deep.hpp"),
                                       ("p/c.hpp", "p/in/deep.hpp"), ("p/one.hpp", "p/in/deep.hpp"), ("p/other.hpp", "p/in/deep.hpp")})

    def test_a_header_that_leans_on_another_is_first_or_after_what_it_includes(self):
        (self.root / "p/no_include.hpp").write_text("inline std::vector<int> leans;\n", encoding="utf-8")
        for chain in chains_of(self.root, sorted(HEADERS)):
            if "p/no_include.hpp" in chain:
                self.assertEqual(chain[0], "p/no_include.hpp")


if __name__ == "__main__":
    unittest.main()
