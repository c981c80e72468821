#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/latency.py and bench/hit_rates.py with a stand-in for minillama: their tables, nothing run twice, and what is refused."""
import json
import pathlib
import subprocess
import sys
import unittest

from stand_in import with_stand_in

root = pathlib.Path(__file__).resolve().parents[2]

# A second for 1000 bytes, a tenth more where an index is built in between, half a second more to the second token, 20 ms for each one behind
# it. Files are slower. Hit rates grow with the cache.
stand_in = '''#!{python}
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as file:
    file.write(" ".join(words) + "\\n")
if "--policy" in words and value("--policy") == "quest":
    sys.exit("minillama: it does not fit")
tier, policy = "--kv-tier" in words, value("--policy") if "--policy" in words else "pq"
text = value("-f") if "-f" in words else value("--perplexity")
n = len(pathlib.Path(text).read_bytes())
assert not tier or pathlib.Path(value("--kv-tier")).is_dir()
first = n / 1000 * (1.0 if policy == "full" else 1.02 if "--index-threads" in words else 1.1)
times = dict(first_token_seconds=first, second_token_seconds=first + 0.5, output_token_seconds=0.03 if tier else 0.02, index_seconds=0.1,
             index_wait_seconds=0.01)
tiers = dict(hit_rate=int(value("--cache-tokens")) / 8192, slow_bytes_per_token=5000.0) if tier else None
document = dict(times=times, statistics=dict(tiers=tiers))
pathlib.Path(value("--json")).write_text(json.dumps(document))
'''


class latency(with_stand_in):
    stand_in = stand_in

    def setUp(self):
        super().setUp()
        self.json = self.folder / "latency.json"

    def run_script(self, *arguments, script="latency.py"):
        command = [sys.executable, "-B", str(root / "bench" / script), "--program", str(self.program), "--model", "m", "--json", str(self.json),
                   "--threads", "1", *(["--lengths", "2000", "500"] if script == "latency.py" else []), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def calls(self):
        return self.program.with_suffix(".calls").read_text().splitlines()

    def test_table(self):
        got = self.run_script("--policies", "full", "pq", "pq-file", "pq-beside")
        self.assertEqual(got.returncode, 0, got.stderr)
        lines = got.stdout.splitlines()
        for line in ("| first token | 500 | 2000 |", "| full | 500 ms | 2 s |", "| second token | 500 | 2000 |", "| pq-file | 1.05 s | 2.7 s |",
                     "| each later token | 500 | 2000 |", "| pq | 20 ms | 20 ms |", "| pq-file | 30 ms | 30 ms |",
                     "The index, built between the layers, adds to full's time to the first token: +10.0% at 500, +10.0% at 2000.",
                     "The index, built beside them on a thread more, adds to full's time to the first token: +2.0% at 500, +2.0% at 2000.",
                     "Selected tokens of pq-file whose rows were in memory: 50% at 500, 50% at 2000."):
            self.assertIn(line, lines)
        self.assertEqual(len(self.calls()), 8)
        self.assertEqual(sum("--kv-tier" in call for call in self.calls()), 2)
        self.assertEqual(len(json.loads(self.json.read_text())["results"]), 8)

    def test_goes_on(self):
        self.run_script("--policies", "full")
        got = self.run_script("--policies", "full", "streaming")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(len(self.calls()), 4)
        self.assertIn("--fresh replaces it", self.run_script("--policies", "full", "--ratio", "0.2").stderr)
        self.run_script("--policies", "full", "--fresh")
        self.assertEqual(len(self.calls()), 6)

    def test_hit_rates(self):
        got = self.run_script("--caches", "4096", "64", "--blocks", "1", "128", "--evictions", "lfu", "lru", script="hit_rates.py")
        self.assertEqual(got.returncode, 0, got.stderr)
        lines = got.stdout.splitlines()
        self.assertIn("| hit rate, KB read a token | 4096 tokens, blocks of 1 | 4096 tokens, blocks of 128 | 64 tokens, blocks of 1 |", lines)
        self.assertIn("| lru, blocks of a layer | 0.50, 5 | 0.50, 5 | 0.01, 5 |", lines)
        self.assertIn("| lfu, blocks of a head | 0.50, 5 | 0.50, 5 | 0.01, 5 |", lines)
        self.assertEqual(len(self.calls()), 12)
        self.assertEqual(sum("--cache-scope head" in call for call in self.calls()), 6)
        self.assertIn("--perplexity-tokens 256", self.calls()[0])
        self.run_script("--caches", "4096", "--blocks", "1", "--evictions", "tiny_lfu", "lru", "--scopes", "layer", script="hit_rates.py")
        self.assertEqual(len(self.calls()), 13)

    def test_refused(self):
        for arguments, what in ((["--policies", "quest"], "quest, 2000: exit code 1: minillama: it does not fit"), (["--tokens", "2"], "--tokens: at least 3"),
                                (["--text", str(self.folder / "none")], "--text: "), (["--lengths", "100000000"], "bytes, 100000000 are wanted"),
                                (["--program", str(self.folder / "absent")], "--program: ")):
            got = self.run_script(*arguments)
            self.assertEqual(got.returncode, 2)
            self.assertIn(what, got.stderr)


if __name__ == "__main__":
    unittest.main()
