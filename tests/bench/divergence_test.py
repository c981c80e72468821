#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/quality/divergence.py with a stand-in for minillama: means over texts, nothing run twice, a changed text run again, failures named."""
import pathlib
import subprocess
import sys
import unittest

from stand_in import with_stand_in

root = pathlib.Path(__file__).resolve().parents[2]
script = root / "bench/quality/divergence.py"

stand_in = '''#!{python}
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
text = pathlib.Path(value("--perplexity")).read_text()
if text.startswith("broken"):
    sys.exit("minillama: no such model")
with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as file:
    file.write(" ".join(words) + "\\n")
score = dict(policy=dict(divergence_from_full=len(text) * float(value("--ratio"))), full=dict(perplexity=2.0 * len(text)))
pathlib.Path(value("--json")).write_text(json.dumps(dict(perplexity=score, statistics=dict(bytes_per_token=dict(rows=8000)))))
'''


class divergence(with_stand_in):
    stand_in = stand_in

    def setUp(self):
        super().setUp()
        self.texts = [self.folder / "short", self.folder / "long"]
        for text, letters in zip(self.texts, (2, 50)):
            text.write_text("x" * letters)

    def run_script(self, *arguments):
        command = [sys.executable, "-B", str(script), "--program", str(self.program), "--model", "m", "--folder", str(self.folder / "results"),
                   "--bytes", "10", "--ratios", "20", "10", "--text", *map(str, self.texts), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def calls(self):
        return len(self.program.with_suffix(".calls").read_text().splitlines())

    def test_mean_and_highest_over_texts_of_so_many_bytes(self):
        got = self.run_script("--jobs", "3")
        self.assertEqual(got.returncode, 0, got.stderr)
        lines = [line.split() for line in got.stdout.splitlines()]
        of = lambda name: [line[-5:] for line in lines if " ".join(line).startswith(name)]
        self.assertEqual(of("rotary axes, over middle, 8-bit rows"), [["1/10", "0.6000", "1.0000", "12.00", "8"], ["1/20", "0.3000", "0.5000", "12.00", "8"]])
        self.assertEqual([line[-1] for line in of("rotary axes, over middle, 16-bit rows")], ["4", "4"])  # floats count as 16 bits
        self.assertEqual(self.calls(), 32)

    def test_goes_on_where_it_stopped_and_sees_another_text(self):
        two = ["--settings", "rotary axes, over middle, 8-bit rows", "exact top-k, 8-bit rows, 4 sinks"]
        self.run_script(*two)
        self.run_script(*two)
        self.assertEqual(self.calls(), 8)
        self.texts[0].write_text("yy")
        self.assertEqual(self.run_script(*two).returncode, 0)
        self.assertEqual(self.calls(), 12)

    def test_failures_are_named(self):
        self.texts[1].write_text("broken")
        got = self.run_script()
        self.assertEqual(got.returncode, 1)
        self.assertIn("/long: exit code 1: minillama: no such model", got.stderr)
        self.assertEqual(list((self.folder / "results").glob("*.partial")), [])
        twice = self.run_script("--text", str(self.texts[0]), str(self.texts[0]))
        self.assertIn("two files of one name", twice.stderr)


if __name__ == "__main__":
    unittest.main()
