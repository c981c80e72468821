#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/quality/run.sh with stand-ins for minillama and minillama-ask: every part's records and tables, nothing run twice, refusals; and
that the tables of docs/quality.md are those of its JSON."""
import csv
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

root = pathlib.Path(__file__).resolve().parents[2]
bench = root / "bench/quality"
sys.path.insert(0, str(bench))
sys.dont_write_bytecode = True
import intervals
import tables

stand_in = '''#!{python}
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as file:
    file.write(" ".join(words) + "\\n")
of_policy = lambda label, right, **more: dict(label=label, right=right, lost_of_full=2 - right, rows="int8" if "int8" in words else "float",
    tokens_attended=99.0, bytes_per_token=dict(rows=8000, index=100, selector=None), recall=dict(mean=0.5, worst_head=0.125), attention_mass=dict(mean=0.25), **more)
if "--perplexity" in words:
    share = float(value("--ratio"))
    half = 0.5 if "8" == words[-1] or "int8" in words else 1
    result = dict(perplexity=dict(policy=dict(divergence_from_full=half * share), full=dict(perplexity=9.0)),
                  statistics=dict(bytes_per_token=dict(rows=8000)))
elif "--benchmark" in words:
    sets = [json.loads(line) for line in pathlib.Path(value("--benchmark")).read_text().splitlines()]
    ratios = sorted(int(word) for word in words[words.index("--ratios") + 1:][:2] if word.isdigit())
    named = [word for word in words[words.index("--policy") + 1:][:8] if word.isalnum() and not word.isdigit()]
    labels = ["full"] + [name + code + " 1/%d" % r for name in named for r in ratios for code in ([" 4x8", " 8x8"] if name == "pq" else [""])]
    most = lambda label: 99 if label == "full" or label.startswith("quest") else 1 if label.startswith("pq") else 0
    reply = lambda label, one: " ".join(one["outputs"][:most(label)]).upper()
    result = dict(policies=[dict(of_policy(l, 0), tokens_attended=99.0 if "/" in l else 990.0) for l in labels],
                  records=[dict(replies=dict((l, dict(text=reply(l, one), score=100 * min(most(l), len(one["outputs"])) / len(one["outputs"])))
                                             for l in labels)) for one in sets])
else:
    chat = "real" in value("--model")
    ratios = sorted(int(word) for word in words[words.index("--ratios") + 1:][:2] if word.isdigit())
    named = words[words.index("--policy") + 1:] if "--policy" in words else []
    named = [word for word in named[:8] if word.isalnum() and not word.isdigit()]
    labels = ["full"] + [name + code + " 1/%d" % r for name in named for r in ratios for code in ([" 4x8", " 8x8"] if name == "pq" else [""])]
    right = lambda label: 2 if label == "full" or label.startswith("oracle") or label.startswith("pq") and label.endswith("/10") else 0 if "streaming" in label else 1
    questions = [dict(kind=kind, value="17", answers=dict((l, ("17" if i < right(l) else "18") + (", so" if chat else "")) for l in labels))
                 for i, kind in enumerate(["numbers"] * 2 if chat else ["needles", "list"])]
    result = dict(questions=questions, policies=[of_policy(l, right(l), **(dict(ratio=1 / int(l.split("/")[1])) if "/" in l else dict()))
                                                 for l in labels])
pathlib.Path(value("--json")).write_text(json.dumps(result))
'''


class laboratory(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for name in ("minillama", "minillama-ask"):
            program = self.folder / name
            program.write_text(stand_in.replace("{python}", sys.executable))
            program.chmod(0o755)
        self.model = self.folder / "real"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.out = self.folder / "out"

    def run_script(self, *arguments, real=True):
        command = [str(bench / "run.sh"), str(self.out), "--no-real-model", "--size", "tiny", "--ratios", "20", "10", *arguments]
        own = ["--real-model", str(self.model)] if real else []
        return subprocess.run(command + own, capture_output=True, text=True, env={**os.environ, "PQKV_PROGRAMS": str(self.folder)})

    def calls(self):
        files = [self.folder / f"{name}.calls" for name in ("minillama", "minillama-ask")]
        return [line for file in files if file.exists() for line in file.read_text().splitlines()]

    def results(self):
        return json.loads((self.out / "quality.json").read_text())["parts"]

    def test_records_tables_and_resumption(self):
        wanted = ["selectors", "real-selectors", "tasks", "answers", "divergence"]
        got = self.run_script("--parts", *wanted, "--seeds", "3", "4", "--jobs", "4")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(got.stdout.strip(), str(self.out / "report.md"))
        measured = self.results()
        self.assertEqual(list(measured), wanted)
        by_key = {(r["family"], r["policy"], r["one_in"]): r for r in measured["selectors"]}
        self.assertEqual(len(by_key), 2 * (1 + 2 * 9))  # families of dense attention and of eight selectors, pq with two codes, at two budgets
        snapkv = by_key["list", "snapkv", 10]  # a stand-in's second question, which pq answers at 1/10 alone
        self.assertEqual([snapkv[name] for name in ("right", "asked", "kept", "dense", "better_than_pq", "worse_than_pq")], [0, 2, 0, 2, 0, 2])
        self.assertEqual(by_key["list", "snapkv", 20]["worse_than_pq"], 0)
        self.assertEqual([snapkv["tokens"], snapkv["row_bytes"], snapkv["ranking_bytes"], snapkv["recall"]], [99, 4000, 100, 0.5])
        self.assertEqual([snapkv["worst_recall"], snapkv["worst_retrieval_mass"]], [0.125, None])  # what was not measured is not 0
        numbers = {(r["policy"], r["one_in"]): r["right"] for r in measured["real-selectors"]}
        self.assertEqual([numbers["oracle", 20], numbers["quest", 20], numbers["streaming", 20]], [4, 2, 0])
        found = {(r["family"], r["policy"], r["one_in"]): r for r in measured["tasks"]}
        self.assertEqual(len(found), 9 * (1 + 2 * 9))
        keys = ("right", "asked", "kept", "dense", "better_than_pq", "worse_than_pq", "tokens")
        self.assertEqual([found["several keys", "quest", 10][name] for name in keys], [8, 8, 8, 8, 6, 0, 99])  # four numbers, two seeds
        self.assertEqual([found["several keys", "pq 4x8", 20][name] for name in keys], [2, 8, 2, 8, 0, 0, 99])
        self.assertEqual([found["recite", "snapkv", 10][name] for name in keys], [0, 24, 0, 24, 0, 2, 99])
        self.assertEqual(len(measured["answers"]), 20)
        self.assertEqual({r["dense"] for r in measured["answers"]}, {4})
        self.assertEqual(len(measured["divergence"]), 16)
        with open(self.out / "quality.csv") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), sum(map(len, measured.values())))
        self.assertEqual([row["right"] for row in rows if row["part"] == "selectors" and row["policy"] == "snapkv"][:2], ["2", "0"])
        report = (self.out / "report.md").read_text()
        self.assertIn("| snapkv | **2 (34 to 100 %)** | **2 (34 to 100 %)** | 0 (0 to 66 %) |", report)
        self.assertIn("- key-value lists at 1/10: pq 4x8 and pq 8x8 best with 2 of 2.", report)
        self.assertIn("- needles in text at 1/20: pq 4x8 and pq 8x8 best with 2 of 2, and snapkv, h2o, sparq, quest, infllm as good.", report)
        self.assertIn("| several keys | 1/10 | 8 | 8 | 2 | 2 | 0 | 0 | 0 | 0 | 0 | **8** | 0 | 990, 99 |", report)
        self.assertIn("- several keys at 1/10: **quest is best with 8 of 8**, pq 4x8 has 2 (it loses 6 to quest and gains 0: p = 0.03).", report)
        self.assertIn("| snapkv | 1/10 | 0.500 | 0.125 | 0.250 | - | - | - | - | - |", report)
        self.assertIn("| exact top-k, 16-bit rows, 32 sinks | 0.1000 (0.1000) | 0.0500 (0.0500) | 1.00, 1.00 |", report)
        self.assertIn("| weighted axes, over attended, 8-bit rows | 0.0500 (0.0500) | 0.0250 (0.0250) | 0.50, 0.50 |", report)

        kept, before = {path.name: path.read_bytes() for path in self.out.glob("quality.*")}, len(self.calls())
        self.assertEqual(self.run_script("--parts", *wanted, "--seeds", "3", "4").returncode, 0)
        self.assertEqual(len(self.calls()), before)
        self.assertEqual({path.name: path.read_bytes() for path in self.out.glob("quality.*")}, kept)
        self.run_script("--parts", "selectors", "--seeds", "5")
        self.assertEqual(len(self.calls()), before + 1)

        if importlib.util.find_spec("matplotlib"):
            for part in set(wanted) - {"tasks"}:
                self.assertIn(b"1/10", (self.out / f"{part}.svg").read_bytes())
        else:
            self.assertIn("no matplotlib", got.stderr)

    def test_parts_of_the_real_model_are_left_out_without_it(self):
        (self.folder / "minillama-ask.calls").write_text("")
        got = self.run_script("--parts", "selectors", real=False)
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertIn("compared_selectors, 512 tokens: 1 of 1 runs", got.stderr)
        self.assertNotIn("the real model", (self.out / "report.md").read_text())

    def test_refusals(self):
        refused = self.run_script("--parts", "answers", real=False)
        self.assertEqual((refused.returncode, refused.stderr), (2, "laboratory: --parts: answers need --real-model\n"))
        (self.model / "config.json").unlink()
        self.assertIn("--real-model: " + str(self.model) + ": has no config.json", self.run_script().stderr)
        (self.folder / "minillama").unlink()
        self.assertIn("minillama: no such program", self.run_script().stderr)
        self.assertEqual(self.calls(), [])
        usage = subprocess.run([str(bench / "run.sh"), "--size"], capture_output=True, text=True)
        self.assertEqual((usage.returncode, usage.stdout), (2, ""))
        self.assertIn("bench/quality/run.sh FOLDER", usage.stderr)

    def test_a_selector_that_beats_pq_is_named(self):
        of = lambda policy, right, better=0, worse=0: {"family": "list", "policy": policy, "one_in": 10, "right": right, "asked": 30,
                                                       "better_than_pq": better, "worse_than_pq": worse}
        verdict = tables.selectors_verdict([of("full", 30), of("pq 4x8", 20), of("oracle", 29), of("quest", 26, 8, 2)])
        self.assertEqual(verdict, "- key-value lists at 1/10: **quest is best with 26 of 30**, pq 4x8 has 20 "
                                  "(it loses 8 to quest and gains 2: p = 0.11).")

    def test_goals_are_those_of_the_budget_and_unasked_lengths_are_left_out(self):
        of = lambda setting, length, one_in, kept: {"setting": setting, "length": length, "one_in": one_in, "kept": kept, "dense": 20}
        exact = [of("exact", n, b, k) for n in (2000, 4000) for b, k in ((10, 10), (20, 10), (40, 5))]
        own = [of("weighted axes, over attended, 8-bit rows", n, b, k) for n in (2000, 4000) for b, k in ((10, 10), (20, 10), (40, 7))]
        part = [of("part", 4000, b, k) for b, k in ((10, 9), (20, 11), (40, 6))] + [of("part", 2000, 10, 20)]
        made = tables.more_answers(exact + own + part).splitlines()
        self.assertEqual(made[2:], [
            "| weighted axes, over attended, 8-bit rows (the library's defaults over `quantized_rows`, shown queries) | 20, 20, 14 | 20, 20, 10 | "
            "+0 (+0 %), +0 (+0 %), +4 (+40 %) | 1/10, 1/40 | 40 |",
            "| part | 9, 11, 6 | 10, 10, 5 | -1 (-10 %), +1 (+10 %), +1 (+20 %) | 1/20 | 20 |"])

    def test_half_of_the_divergence(self):
        of = lambda setting, one_in, value: {"setting": setting, "one_in": one_in, "divergence": value}
        made = tables.divergence_verdict([of("exact", 10, 0.5), of("exact", 20, 0.5), of("a", 10, 0.25), of("a", 20, 0.25), of("b", 10, 0.2),
                                          of("b", 20, 0.3), of("c", 10, 0.26), of("c", 20, 0.5)])
        self.assertEqual(made.splitlines(), ["- a: **at every budget**.", "- b: at 1/10 only.", "- c: at no budget."])

    def test_marked_tables(self):
        (self.folder / "r.json").write_text(json.dumps({"parts": {"first-turn": [{"line": "new"}]}}))
        page = self.folder / "page.md"
        page.write_text("a\n<!-- begin first-turn -->\nold\n<!-- end first-turn -->\nb\n")
        call = lambda *more: subprocess.run([sys.executable, "-B", str(bench / "tables.py"), str(self.folder / "r.json"), str(page), *more],
                                            capture_output=True, text=True)
        self.assertEqual(call("--check").returncode, 1)
        self.assertEqual(call().returncode, 0)
        self.assertEqual(page.read_text(), "a\n<!-- begin first-turn -->\n\n```\nnew\n```\n\n<!-- end first-turn -->\nb\n")
        self.assertEqual(call("--check").returncode, 0)
        page.write_text("<!-- begin answers -->\n<!-- end answers -->\n")
        self.assertEqual((call().returncode, call().stderr), (2, f"tables: {page}: begin answers: the results have no part answers\n"))

    def test_intervals(self):
        low, high = intervals.wilson(81, 101)
        self.assertAlmostEqual(low, 0.7137, 3)
        self.assertAlmostEqual(high, 0.8680, 3)
        self.assertEqual(intervals.wilson(0, 0), (0, 1))
        self.assertEqual(intervals.percent(0, 0), "-")
        self.assertAlmostEqual(intervals.sign_test(8, 2), 2 * (1 + 10 + 45) / 1024)
        self.assertEqual([intervals.sign_test(0, 0), intervals.sign_test(3, 3)], [1, 1])

    def test_the_page_has_the_tables_of_its_results(self):
        got = subprocess.run([sys.executable, "-B", str(bench / "tables.py"), str(root / "docs/quality.json"), str(root / "docs/quality.md"),
                              "--check"], capture_output=True, text=True)
        self.assertEqual(got.returncode, 0, got.stderr)


if __name__ == "__main__":
    unittest.main()
