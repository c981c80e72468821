#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the shipped model's codebooks find in a session that begins short, beside the same tokens as one prompt.

    short_first_turn_test.py MINILLAMA

A small session, so that it takes seconds; bench/quality/first_turn.py measures long ones, and what renewals cost.
"""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
program = Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else None

TOKENS, SCORED = 2600, 48


class short_first_turn(unittest.TestCase):
    def recall(self, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            text, result = Path(folder) / "text", Path(folder) / "run.json"
            text.write_bytes((root / "LICENSE").read_bytes()[:TOKENS])
            command = [str(program), "-m", str(root / "examples/minillama/model"), "-t", "2", "--policy", "pq", "--quality", "--perplexity",
                       str(text), "--perplexity-tokens", str(SCORED), "--json", str(result), *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            statistics = json.loads(result.read_text())["statistics"]
        return statistics["quality"]["recall"]["mean"], statistics["maintenance"]["trainings"]

    def test_recall_is_that_of_one_prompt(self):
        whole, _ = self.recall()
        grown, trainings = self.recall("--perplexity-prompt", "300", "--perplexity-turn", "512")
        print(f"recall: one prompt {whole:.3f}, a first turn of 300 tokens {grown:.3f}, ratio {grown / whole:.3f}", flush=True)
        self.assertGreater(trainings, 0)
        self.assertGreater(grown, 0.92 * whole)  # .95 on one machine, .50 with --refresh 0


if __name__ == "__main__":
    if program is None:
        sys.exit("short_first_turn_test.py: the program is needed")
    unittest.main()
