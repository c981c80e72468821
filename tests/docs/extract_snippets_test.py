#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests extract_snippets.py on pages made for it."""
import contextlib
import io
import tempfile
import unittest
from pathlib import Path

import extract_snippets as extract

PAGE = """Text.

```cpp
int main() { return 0; }
```

```sh
make
```

- in a list:

  ```cpp fragment
  int x = 1;
    x += 1;
  ```

````text
```cpp
not code
```
````
"""


class snippets(unittest.TestCase):
    def test_kinds_lines_and_indentation(self):
        found = list(extract.snippets("page.md", PAGE))
        self.assertEqual(found, [(4, "program", "int main() { return 0; }\n"), (14, "fragment", "int x = 1;\n  x += 1;\n")])

    def test_unit_has_no_main(self):
        self.assertEqual([kind for _, kind, _ in extract.snippets("page.md", "```cpp\nint maintain();\n```\n")], ["unit"])

    def test_faults_are_named_with_their_line(self):
        for text, words in (("a\n```c++\n```\n", "page.md:2: tag 'c++'"), ("```cpp main\n```\n", "followed by 'main'"),
                            ("```cpp\nint x;\n", "page.md:1: a block that is not closed")):
            with self.assertRaisesRegex(extract.bad_page, words.replace("+", r"\+")):
                list(extract.snippets("page.md", text))

    def test_files_follow_the_pages(self):
        with tempfile.TemporaryDirectory() as folder:
            root, out = Path(folder), Path(folder) / "out"
            (root / "docs").mkdir()
            (root / "docs" / "page.md").write_text(PAGE)
            listing = io.StringIO()
            with contextlib.redirect_stdout(listing):
                extract.main(root, out)
            self.assertEqual(listing.getvalue().split(), ["program", str(out / "page_4.cpp"), "fragment", str(out / "page_14.cpp")])
            self.assertIn('#line 14 "docs/page.md"\nint x = 1;\n', (out / "page_14.cpp").read_text())
            before = (out / "page_4.cpp").stat().st_mtime_ns
            (root / "docs" / "page.md").write_text(PAGE.replace("cpp fragment", "text"))
            with contextlib.redirect_stdout(io.StringIO()):
                extract.main(root, out)
            self.assertEqual([path.name for path in out.iterdir()], ["page_4.cpp"])
            self.assertEqual((out / "page_4.cpp").stat().st_mtime_ns, before)

    def test_pages_may_be_missing(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(extract.pages(Path(folder)), [])


if __name__ == "__main__":
    unittest.main()
