#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/quality/real_model.py with a stand-in for minillama-ask: sums over seeds, nothing run twice, failures named."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

root = pathlib.Path(__file__).resolve().parents[2]
script = root / "bench/quality/real_model.py"

stand_in = '''#!{python}
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
seed = int(value("--seed"))
if seed == 13:
    print("working", file=sys.stderr)
    sys.exit("minillama-ask: no such model")
calls = pathlib.Path(__file__).with_suffix(".calls")
with open(calls, "a") as file:
    file.write(" ".join(words) + "\\n")
rows = "int8" if "--rows" in words else "float"
ratios = [int(word) for word in words[words.index("--ratios") + 1:] if word.isdigit()][:2]
policies = [dict(label="full", right=8, lost_of_full=0, rows="float", bytes_per_token=dict(rows=1000))]
for ratio in sorted(ratios):
    policies.append(dict(label="p", right=7 - seed, lost_of_full=seed, rows=rows, bytes_per_token=dict(rows=40000 // ratio)))
pathlib.Path(value("--json")).write_text(json.dumps(dict(policies=policies)))
'''


class real_model(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.program = pathlib.Path(self.folder.name) / "ask"
        self.program.write_text(stand_in.replace("{python}", sys.executable))
        self.program.chmod(0o755)

    def run_script(self, *arguments):
        command = [sys.executable, "-B", str(script), "--program", str(self.program), "--model", "m", "--folder", self.folder.name + "/results",
                   "--questions", "10", "--contexts", "2", "--ratios", "20", "10", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def calls(self):
        file = self.program.with_suffix(".calls")
        return file.read_text().splitlines() if file.exists() else []

    def test_sums_over_seeds(self):
        got = self.run_script("--seeds", "1", "2", "--jobs", "3")
        self.assertEqual(got.returncode, 0, got.stderr)
        lines = [line.split() for line in got.stdout.splitlines() if line.startswith("weighted axes, over attended, 8-bit rows")]
        self.assertEqual([line[-6] for line in lines], ["13/16", "13/16"])  # 8 - 1 and 8 - 2 of 8 each
        self.assertEqual([line[-2] for line in lines], ["11/20", "11/20"])
        self.assertEqual([line[-1] for line in lines], ["4", "2"])
        wide = [line.split()[-1] for line in got.stdout.splitlines() if "rotary axes, over middle, 16-bit rows" in line]
        self.assertEqual(wide, ["2", "1"])  # floats count as 16 bits
        self.assertEqual(len(self.calls()), 20)
        self.assertIn("real_model, 2000 tokens: 20 of 20 runs", got.stderr)

    def test_goes_on_where_it_stopped(self):
        self.run_script("--seeds", "1")
        again = self.run_script("--seeds", "1", "3")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(len(self.calls()), 20)  # ten settings of each seed, none twice
        self.run_script("--seeds", "1", "--length", "999")
        self.assertEqual(len(self.calls()), 30)  # other questions are other results

    def test_settings_are_chosen_by_name(self):
        name = "exact top-k, 16-bit rows, 32 sinks"
        got = self.run_script("--seeds", "1", "--settings", name)
        self.assertEqual(len(self.calls()), 1)
        self.assertEqual([line[:len(name)] for line in got.stdout.splitlines()[1:]], [name, name])
        refused = self.run_script("--settings", "exact")
        self.assertEqual(refused.returncode, 2)
        self.assertIn("real_model: --settings: 'exact' is none of 'exact top-k", refused.stderr)

    def test_a_failure_is_named_and_ends_the_series(self):
        got = self.run_script("--seeds", "13", "1")
        self.assertEqual(self.calls(), [])  # one at a time, and the first one failed
        self.assertEqual(got.returncode, 1)
        self.assertIn("seed 13: exit code 1: minillama-ask: no such model", got.stderr)


if __name__ == "__main__":
    unittest.main()
