#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/quality/task_files.py: what the records of each family hold, at any length; the same in every run; refusals. And what
task_families.py does where it and minillama-ask disagree."""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

root = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "bench/quality"))
sys.dont_write_bytecode = True
import task_files

sizes = (1000, 1001, 4000, 30000)


def asked(*arguments):
    return subprocess.run([sys.executable, "-B", str(root / "bench/quality/task_files.py"), *arguments], capture_output=True, text=True)


class records(unittest.TestCase):
    def each(self, *families):
        for family in families or task_files.families:
            for size in sizes:
                yield from ((record, size) for record in task_files.make(family, 5, 4, size))

    def test_what_is_wanted_is_in_the_text_once_and_the_length_is_used(self):
        for record, size in self.each():
            self.assertLessEqual(len(record["input"]), size)
            self.assertGreater(len(record["input"]), size - 160)  # a sentence less
            self.assertTrue(record["input"].isascii())
            self.assertEqual(len(set(record["outputs"])), len(record["outputs"]))
            for output in record["outputs"]:
                self.assertIn(output, record["input"])
                self.assertNotIn(output, record["answer_prefix"])
            self.assertNotIn(record["answer_prefix"] + " " + record["outputs"][0], record["input"].splitlines()[-1])

    def test_needles_have_one_value_for_the_key_that_is_asked_for(self):
        for record, _ in self.each("single", "identifiers", "many keys", "question first", "second question"):
            asked_key = re.search(r"of the ([a-z ]+) is$", record["answer_prefix"])[1]
            facts = re.findall(rf"^The special (?:number|code) of the {asked_key} is (\w+)\.$", record["input"], re.M)
            self.assertEqual(facts, record["outputs"])
            self.assertTrue(record["input"].splitlines()[-1].split("? ")[0].endswith(f"of the {asked_key}"))

    def test_flavours(self):
        for record, size in self.each("many keys"):
            lines = record["input"].splitlines()
            self.assertEqual({line.split(" of the ")[0] for line in lines[2:-2]}, {"The special number"})
            self.assertGreater(len(lines), size // 80)
        for record, _ in self.each("identifiers"):
            self.assertRegex(record["outputs"][0], "^[a-f][0-9a-f]{7}$")
        for record, _ in self.each("several values"):
            key = re.search(r"of the ([a-z ]+) are$", record["answer_prefix"])[1]
            facts = re.findall(rf"^The special number of the {key} is (\d+)\.$", record["input"], re.M)
            self.assertEqual(sorted(facts), sorted(record["outputs"]))
            self.assertEqual((len(facts), record["input"].count("The special number of")), (4, 6))
        for record, _ in self.each("several keys"):
            values = dict(re.findall(r"^The special number of the ([a-z ]+) is (\d+)\.$", record["input"], re.M))
            named = re.sub("^ The special numbers of the| are$", "", record["answer_prefix"]).replace(" and of the ", ", of the ").split(", of the ")
            self.assertEqual([values[key.strip()] for key in named], record["outputs"])
            self.assertEqual((len(named), len(values)), (4, 6))
        for record, _ in self.each("question first"):
            lines = record["input"].splitlines()
            self.assertEqual(lines[-1], lines[1] + " Answer with the number alone.")
        for record, _ in self.each("second question"):
            first, answer, second = record["input"].splitlines()[-3:]
            key = re.search(r"of the ([a-z ]+)\?$", first)[1]
            self.assertIn(f"The special number of the {key} is {answer.removeprefix('Answer: ')}.\n", record["input"])
            self.assertNotIn(key, second)
        for record, _ in self.each("recite"):
            self.assertEqual(re.findall(r"^Code \d+ is (\w+)\.$", record["input"], re.M), record["outputs"])
            self.assertEqual(re.findall(r"^Code (\d+) is", record["input"], re.M), [str(i) for i in range(1, 13)])

    def test_variables_follow_from_the_assignments(self):
        for record, _ in self.each("variables"):
            values = {}
            for name, of in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", record["input"], re.M):
                values[name] = values.get(of, of)
            value = record["answer_prefix"].split()[-2]
            self.assertEqual([name for name in values if values[name] == value], record["outputs"])
            self.assertEqual((len(values), len(set(values.values()))), (10, 2))

    def test_places_differ_and_a_longer_set_begins_with_a_shorter_one(self):
        shares = [record["input"].index(record["outputs"][0]) / len(record["input"]) for record in task_files.make("single", 1, 60, 8000)]
        self.assertLess(min(shares), 0.2)
        self.assertGreater(max(shares), 0.8)
        self.assertEqual(task_files.make("single", 1, 60, 8000)[:7], task_files.make("single", 1, 7, 8000))
        self.assertNotEqual(task_files.make("single", 1, 1, 8000), task_files.make("single", 2, 1, 8000))

    def test_the_program(self):
        got = asked("several keys", "--seed", "3", "--records", "2", "--bytes", "1500")
        self.assertEqual([json.loads(line) for line in got.stdout.splitlines()], task_files.make("several keys", 3, 2, 1500))
        self.assertEqual(asked("several keys", "--seed", "3", "--records", "2", "--bytes", "1500").stdout, got.stdout)
        for arguments, what in (((("singel",), "family: expected one of single, ")), (("single", "--bytes", "999"), "--bytes: expected at least 1000, got 999")):
            refused = asked(*arguments)
            self.assertEqual((refused.returncode, refused.stdout), (2, ""))
            self.assertTrue(refused.stderr.startswith(f"task_files: {what}"), refused.stderr)


class families(unittest.TestCase):
    def test_scores_that_disagree_end_the_program(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "minillama-ask"
            program.write_text(f"#!{sys.executable}\nimport json, pathlib, sys\nreply = dict(full=dict(text='nothing', score=100))\n"
                               "policy = dict(label='full', tokens_attended=1, bytes_per_token=dict(rows=1, index=None, selector=None))\n"
                               "pathlib.Path(sys.argv[-1]).write_text(json.dumps(dict(policies=[policy], records=[dict(replies=reply)])))\n")
            program.chmod(0o755)
            command = [sys.executable, "-B", str(root / "bench/quality/task_families.py"), "--program", str(program), "--model", "m", "--folder",
                       folder, "--records", "1", "--seeds", "1", "--families"]
            got = subprocess.run([*command, "single"], capture_output=True, text=True)
            self.assertEqual(got.returncode, 1)
            self.assertIn("task_families: single, full: 0 texts are found here, 1 in minillama-ask", got.stderr)
            got = subprocess.run([*command, "double"], capture_output=True, text=True)
            self.assertEqual(got.returncode, 2)
            self.assertTrue(got.stderr.startswith("task_families: --families: expected some of single, "), got.stderr)


if __name__ == "__main__":
    unittest.main()
