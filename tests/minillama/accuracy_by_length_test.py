#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs bench/quality/accuracy_by_length.py at small lengths with the shipped model: counts, resumption, errors, figure.

    accuracy_by_length_test.py MINILLAMA_ASK
"""
import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
script = root / "bench/quality/accuracy_by_length.py"
ask = Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else None


class accuracy_by_length(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """One real run, shared by all cases; its file is copied before it is changed."""
        cls.folder = tempfile.TemporaryDirectory()
        cls.json = Path(cls.folder.name) / "figures.json"
        cls.fake = Path(cls.folder.name) / "minillama-ask"  # stands where nothing must run, and fails
        cls.fake.write_text("#!/bin/sh\necho progress >&2\necho minillama-ask: broken by $* >&2\nexit 3\n")
        cls.fake.chmod(0o755)
        cls.real = cls.run_script("--lengths", "512", "1024", program=ask)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def run_script(cls, *arguments, program=None):
        command = [sys.executable, "-B", str(script), "--program", str(program or cls.fake), "--model", str(root / "examples/minillama/model"),
                   "--questions", "4", "--policies", "pq", "streaming", "--threads", "2", "--json", str(cls.json), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def check_refused(self, got, what):
        self.assertEqual(got.returncode, 2, got.stderr)
        self.assertEqual(got.stdout, "")
        self.assertIn(what, got.stderr.splitlines()[-1])
        self.assertTrue(got.stderr.splitlines()[-1].startswith("accuracy_by_length: "), got.stderr)

    def test_counts_of_every_length_and_policy(self):
        self.assertEqual(self.real.returncode, 0, self.real.stderr)
        figures = json.loads(self.json.read_text())
        self.assertEqual(figures["lengths"], [512, 1024])
        self.assertEqual(figures["policies"], ["full", "pq 4x8 1/10", "streaming 1/10"])
        self.assertEqual([result["contexts"] for result in figures["results"]], [4, 2])
        for result in figures["results"]:
            by_label = {policy["label"]: policy for policy in result["policies"]}
            self.assertGreaterEqual(by_label["full"]["right"], 3)  # of 4: the shipped model answers nearly all
            self.assertEqual(by_label["full"]["lost_of_full"], 0)
            self.assertLess(by_label["streaming 1/10"]["right"], by_label["full"]["right"])
            self.assertGreater(by_label["streaming 1/10"]["lost_of_full"], 0)
            self.assertIn(f"--length {result['length']} --questions 4 --contexts", result["command"])
            self.assertIn("--seed 21 --ratios 10 --policy pq streaming", result["command"])
        self.assertEqual(figures["settings"]["model"], "examples/minillama/model")
        self.assertNotIn(str(root), self.json.read_text())
        self.assertIn("1024  right of 4: full ", self.real.stdout)

    def test_goes_on_where_it_stopped(self):
        kept = self.json.read_bytes()
        again = self.run_script("--lengths", "512", "1024")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(again.stdout, self.real.stdout)
        for more in (["--lengths", "512", "2048"], ["--lengths", "512", "--fresh"], ["--lengths", "512", "--questions", "5"]):
            self.check_refused(self.run_script(*more), "exit code 3 of minillama-ask: minillama-ask: broken")
        self.check_refused(self.run_script("--lengths", "512", "--seed", "22"), "was made with other settings")
        self.assertEqual(self.json.read_bytes(), kept)

    def test_bad_input_is_refused(self):
        self.check_refused(self.run_script("--lengths", "200000"), "--lengths: 200000 is more than the model's 131072 positions")
        self.check_refused(self.run_script("--lengths", "many"), "--lengths")
        self.check_refused(self.run_script("--questions", "0"), "--questions")
        self.check_refused(self.run_script("--contexts", "9"), "--contexts: 9 are more than the 4 questions")
        self.check_refused(self.run_script("--policies", "best"), "--policies")
        self.check_refused(self.run_script("--model", "/nowhere"), "--model: /nowhere")
        self.check_refused(self.run_script("--lengths", "2048", program="/nowhere/ask"), "--program: /nowhere/ask")
        self.check_refused(self.run_script("--json", str(self.fake)), "cannot be read as JSON")

    def test_contexts_have_room_for_their_questions(self):
        spec = importlib.util.spec_from_file_location("accuracy_by_length", script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = [module.contexts_for(length, 100) for length in (256, 1024, 2048, 4096, 8192, 32768)]
        self.assertEqual(found, [100, 50, 26, 14, 10, 10])
        self.assertEqual(module.contexts_for(32768, 1), 1)

    def test_a_context_leaves_room_for_a_question(self):
        self.check_refused(self.run_script("--lengths", "131072"), "--length 130944 --questions 4 --contexts 2")

    def test_figure_is_the_same_each_time(self):
        pictures = [Path(self.folder.name) / name for name in ("one.svg", "two.svg")]
        drawn = [subprocess.run([sys.executable, "-B", str(script), "--plot-only", str(self.json), str(picture)], capture_output=True,
                                text=True) for picture in pictures]
        if importlib.util.find_spec("matplotlib") is None:
            for got in drawn:
                self.check_refused(got, "figure: needs matplotlib")
            self.skipTest("no matplotlib: only the refusal was tested")
        self.assertEqual([got.returncode for got in drawn], [0, 0], drawn[0].stderr)
        first, second = (picture.read_bytes() for picture in pictures)
        self.assertEqual(first, second)
        for text in (b"dense (full)", b"streaming (sinks and window) 1/10", b"1 K"):
            self.assertIn(text, first)
        self.assertNotIn(b"<dc:date>", first)
        bad = Path(self.folder.name) / "bad.json"
        bad.write_text('{"results": [{"length": 512}], "policies": ["full"]}')
        self.check_refused(subprocess.run([sys.executable, "-B", str(script), "--plot-only", str(bad), str(pictures[0])],
                                          capture_output=True, text=True), "figure: the JSON file lacks 'policies'")


if __name__ == "__main__":
    if ask is None:
        sys.exit("accuracy_by_length_test.py: the path of minillama-ask is needed")
    unittest.main()
