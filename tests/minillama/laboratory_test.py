#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/quality/run.sh at its smallest size with the shipped model: every selector answers, at equal tokens, and sessions grow.

    laboratory_test.py FOLDER_OF_MINILLAMA_AND_MINILLAMA_ASK
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
programs = Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else None


class laboratory(unittest.TestCase):
    def test_every_selector_and_a_session_that_begins_short(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [str(root / "bench/quality/run.sh"), folder, "--no-real-model", "--size", "tiny", "--seeds", "7", "--ratios", "5"]
            got = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PQKV_PROGRAMS": str(programs)})
            self.assertEqual(got.returncode, 0, got.stderr)
            for part in ("real-selectors", "answers", "divergence"):
                self.assertIn(f"== {part}: left out, no --real-model", got.stderr)
            parts = json.loads((Path(folder) / "quality.json").read_text())["parts"]
            report = (Path(folder) / "report.md").read_text()
        by_key = {(r["family"], r["policy"]): r for r in parts["selectors"]}
        names = ["full", "pq 4x8", "pq 8x8", "oracle", "streaming", "snapkv", "h2o", "sparq", "quest", "infllm"]
        self.assertEqual(sorted(by_key), sorted((family, name) for family in ("needles", "list") for name in names))
        for family in ("needles", "list"):
            self.assertEqual({r["asked"] for r in parts["selectors"] if r["family"] == family}, {2})
            self.assertEqual(by_key[family, "full"]["right"], 2)  # the shipped model answers nearly all
            self.assertEqual(by_key[family, "streaming"]["right"], 0)
            for name in names[1:]:
                self.assertLess(abs(by_key[family, name]["tokens"] - by_key[family, "pq 4x8"]["tokens"]), 1, name)
        self.assertEqual([record["line"].split()[0] for record in parts["first-turn"]], ["session", "one", "turns", "turns,", "token"])
        self.assertIn("## Every selector, the example's own model", report)

    def test_every_selector_on_a_task_whose_prompt_holds_the_question(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-B", str(root / "bench/quality/task_families.py"), "--program", str(programs / "minillama-ask"), "--model",
                       str(root / "examples/minillama/model"), "--folder", folder, "--families", "many keys", "--records", "1", "--seeds", "2",
                       "--length", "1000", "--ratios", "5"]
            got = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(got.returncode, 0, got.stderr)
            result = json.loads((Path(folder) / "many-keys-1000-seed2.json").read_text())
        lines = [line.split("many keys", 1)[1].split() for line in got.stdout.splitlines()[1:]]
        self.assertEqual([line[0] for line in lines], ["full", "pq", "oracle", "streaming", "snapkv", "h2o", "sparq", "quest", "infllm"])
        tokens = {policy["label"]: policy["tokens_attended"] for policy in result["policies"]}
        self.assertGreater(tokens.pop("full"), 1000)
        self.assertEqual(len(tokens), 8)
        for label, attended in tokens.items():  # replies end at different tokens
            self.assertLess(abs(attended - tokens["pq 4x8 1/5"]), 4, label)


if __name__ == "__main__":
    if programs is None:
        sys.exit("laboratory_test.py: the folder of the programs is needed")
    unittest.main()
