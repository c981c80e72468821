#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the names of the CUDA benchmarks against what refers to them. Needs no GPU: the programs list their names.

    gpu_names_test.py PROGRAM NAME ...    PROGRAM NAME is a benchmark
"""
import json
import subprocess
import sys
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
programs = [[sys.argv[1], name] for name in sys.argv[2:]]


def references(data):
    for ceiling in data["ceilings"]:
        yield ceiling["benchmark"]
    for row in data["rows"]:
        yield row["benchmark"]
        yield from row.get("rivals", {}).values()
        for measure in row["measures"]:
            yield measure.get("benchmark", row["benchmark"])
            yield from measure.get("over", [])


class names(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.listed = []
        for program in programs:
            cls.listed += subprocess.run([*program, "--names"], capture_output=True, text=True, check=True).stdout.splitlines()

    def test_a_name_is_measured_once(self):
        self.assertGreater(len(self.listed), len(programs))
        self.assertEqual(len(self.listed), len(set(self.listed)))

    def test_targets_name_what_is_measured(self):
        for name in references(json.loads((root / "bench/targets_gpu.json").read_text())):
            if not name.startswith("torch"):  # rivals: gpu_test.py's
                self.assertIn(name, self.listed)

    def test_names_stay_as_they_were(self):
        for line in (root / "bench/results/gpu_h200.jsonl").read_text().splitlines():
            name = json.loads(line).get("name", "torch")
            if not name.startswith("torch"):
                self.assertIn(name, self.listed)

    def test_arguments_that_no_program_knows(self):
        for arguments in (["--all"], ["a", "b"]):
            done = subprocess.run([*programs[0], *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 2)
            self.assertIn(arguments[-1], done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
