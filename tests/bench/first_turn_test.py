#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/quality/first_turn.py with a stand-in for minillama: ratios to one prompt, shares of the session's time, nothing run twice."""
import pathlib
import subprocess
import sys
import unittest

from stand_in import with_stand_in

root = pathlib.Path(__file__).resolve().parents[2]
script = root / "bench/quality/first_turn.py"

# Recall 0.8 of one prompt; grown 0.6 for 100 bytes, 0.7 for 200, and 0.1 less without --refresh. A layer's index is trained 3 times.
stand_in = '''#!{python}
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
text = pathlib.Path(value("--perplexity")).read_text()
if text.startswith("broken"):
    sys.exit("minillama: no such model")
with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as file:
    file.write(" ".join(words) + "\\n")
grown = "--perplexity-prompt" in words
prompt = int(value("--perplexity-prompt")) if grown else len(text) - int(value("--perplexity-tokens"))
one_by_one = grown and value("--perplexity-turn") == "1"
recall = 0.8 if not grown else len(text) / 1000 + (0.5 if float(value("--refresh")) else 0.4)
quality = dict(recall=dict(mean=recall), attention_mass=dict(mean=0.9 if grown else 1.0))
statistics = dict(steps=len(text) - prompt, quality=quality, maintenance=dict(seconds=0.5, trainings=12 if grown else 0, codes=0))
subspaces = int(value("--subspaces"))
if grown:  # one and a half codes for each token, layer, KV head and subspace
    statistics["maintenance"]["codes"] = len(text) * 3 // 2 * 4 * 2 * subspaces
times = dict(prefill_seconds=1, index_seconds=1, decode_seconds=18 if one_by_one else 3)
document = dict(statistics=statistics, times=times, prompt=dict(tokens=prompt), model=dict(layers=4, kv_heads=2),
                settings=dict(subspaces=subspaces))
pathlib.Path(value("--json")).write_text(json.dumps(document))
'''


class first_turn(with_stand_in):
    stand_in = stand_in

    def setUp(self):
        super().setUp()
        self.text = self.folder / "text"
        self.text.write_text("x" * 250)

    def run_script(self, *arguments):
        command = [sys.executable, "-B", str(script), "--program", str(self.program), "--model", "m", "--folder", str(self.folder / "results"),
                   "--text", str(self.text), "--bytes", "200", "100", "--first", "10", "--tokens", "20", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def calls(self):
        return self.program.with_suffix(".calls").read_text().splitlines()

    def rows(self, got, name):
        return [line[len(name):].split() for line in got.stdout.splitlines() if line.startswith(name + " ")]

    def test_ratios_to_one_prompt_and_shares_of_the_session(self):
        got = self.run_script("--refresh", "1.5", "0", "--codes", "2x6")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertTrue(all("--subspaces 2 --bits 6 " in call for call in self.calls()))
        self.assertEqual(self.rows(got, "one prompt"), [["-", "100", "0.800", "1.000", "1.000", "1.000", "0.0", "0.00", "5.0", "10.00"],
                                                        ["-", "200", "0.800", "1.000", "1.000", "1.000", "0.0", "0.00", "5.0", "10.00"]])
        self.assertEqual(self.rows(got, "turns")[0], ["1.5", "100", "0.600", "0.750", "0.900", "0.900", "3.0", "1.50", "5.0", "10.00"])
        self.assertEqual(self.rows(got, "turns, mean")[0], ["1.5", "150", "0.650", "0.812", "0.900", "0.900", "3.0", "1.50", "5.0", "10.00"])
        self.assertEqual(self.rows(got, "turns, mean")[1][:4], ["0", "150", "0.550", "0.688"])
        self.assertEqual(self.rows(got, "token by token")[0], ["1.5", "200", "0.700", "0.875", "0.900", "0.900", "3.0", "1.50", "20.0", "2.50"])
        self.assertEqual(len(self.calls()), 2 + 2 * 3)
        one_by_one = [call for call in self.calls() if "--perplexity-prompt 10 --perplexity-turn 1 " in call]
        self.assertEqual(len(one_by_one), 2)

    def test_goes_on_where_it_stopped_and_sees_another_text(self):
        self.run_script()
        self.run_script()
        self.assertEqual(len(self.calls()), 5)
        self.text.write_text("y" * 250)
        self.assertEqual(self.run_script().returncode, 0)
        self.assertEqual(len(self.calls()), 10)

    def test_failures_are_named(self):
        short = self.run_script("--bytes", "251")
        self.assertIn("/text: has 250 bytes, fewer than the 251 of --bytes", short.stderr)
        self.text.write_text("broken" * 50)
        got = self.run_script()
        self.assertEqual(got.returncode, 1)
        self.assertIn("one prompt, 100 bytes: exit code 1: minillama: no such model", got.stderr)


if __name__ == "__main__":
    unittest.main()
