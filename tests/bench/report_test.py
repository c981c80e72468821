#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs bench/report.py over small files of results: values, medians, verdicts, crossings, what is missing. Needs no matplotlib."""
import json
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "bench"))
import measured  # noqa: E402
import step_lines  # noqa: E402

kmeans = "kmeans/n:131072/ds:64/c:64/L:10/type:f32"


def benchmark(name, time, unit="us", **counters):
    return {"name": name, "run_type": "iteration", "cpu_time": time, "real_time": time * 2, "time_unit": unit, **counters}


class report(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name)

    def put(self, name, runs, **context):
        context = {"date": "2026-01-02T03:04:05", "cpu": "a processor", "compiler": "g++ 0", "ceiling streaming read, 256 MiB": "36.00 GB/s", **context}
        (self.path / f"{name}.json").write_text(json.dumps({"context": context, "benchmarks": runs}))

    def put_peers(self, **ratios):
        sides = {"ours": [1e-3, 2e-3, 3e-3], **{name: [1e-3 * x, 2e-3 * x, 3e-3 * x] for name, x in ratios.items()}}
        sides = {name: {"call": f"how {name}", "seconds": s, "median_seconds": s[1], "times_ours": s[1] / 2e-3} for name, s in sides.items()}
        contest = {"what": "one iteration", "shape": {"n": 7}, "check": "all agree", "rounds": 3, "sides": sides}
        (self.path / "peers.json").write_text(json.dumps({
            "settings": {"rounds": 3}, "context": {"date": "2026-02-03", "cpu": "a processor", "versions": {"ours": "pqkv", "faiss": "9.9"}},
            "contests": {"kmeans": contest}, "left_out": {"torch": "not installed"}}))

    def run_report(self, *arguments):
        return subprocess.run([sys.executable, "-B", str(root / "bench/report.py"), str(self.path), str(self.path / "page.md"), *arguments],
                              capture_output=True, text=True)

    def page(self):
        done = self.run_report()
        self.assertEqual(done.returncode, 0, done.stderr)
        return (self.path / "page.md").read_text(), done.stderr

    def row(self, page, start):
        return next([cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| " + start))

    def test_medians_by_instruction_set(self):
        runs = [benchmark(f"{kmeans}/isa:avx2", 9, of_fma_peak=x) for x in (0.5, 0.9, 0.6)]
        runs += [benchmark(f"{kmeans}/isa:avx512", 9, of_fma_peak=x) for x in (0.85, 0.1, 0.84)]
        runs += [dict(benchmark(f"{kmeans}/isa:avx512", 9, of_fma_peak=0.01), run_type="aggregate")]
        runs += [benchmark(f"{kmeans.replace('131072', '1310720')}/isa:avx512", 9, of_fma_peak=0.02)]
        self.put("kmeans", runs)
        page, _ = self.page()
        self.assertEqual(self.row(page, "k-means iteration, update included: n")[1:], ["at least 80 % of FMA peak", "60 %", "84 %", "met"])
        self.assertIn("| processor | a processor |", page)
        self.assertIn("| streaming read, 256 MiB | 36.0 GB/s | 36.0 to 36.0 |", page)
        self.assertIn("1 are met", page)

    def test_the_widest_instruction_set_decides(self):
        self.put("kmeans", [benchmark(f"{kmeans}/isa:avx2", 9, of_fma_peak=0.9), benchmark(f"{kmeans}/isa:avx512", 9, of_fma_peak=0.4)])
        page, _ = self.page()
        self.assertEqual(self.row(page, "k-means iteration, update included: n")[-3:], ["90 %", "40 %", "short by 50 %"])

    def test_short_of_a_target_by_how_much(self):
        self.put("kmeans", [benchmark(f"{kmeans}/isa:avx2", 9, of_fma_peak=0.6)])
        self.put("top_k", [benchmark("top_k/n:131072/k:2048/scores:normal/type:float/isa:avx2", 9, readings=9.0)])
        page, _ = self.page()
        self.assertEqual(self.row(page, "k-means iteration, update included: n")[-1], "short by 25 %")
        self.assertEqual(self.row(page, "top-k of float scores: ")[-2:], ["9.00", "over by 50 %"])

    def test_ratios_of_times_mind_units(self):
        start = "retrieve/m:2/b:6/g:4"
        self.put("retrieve", [benchmark(f"{start}/n:131072/k:2048/path:joint/isa:avx2", 4000, "ns"),
                              benchmark(f"{start}/n:1048576/k:2048/path:joint/isa:avx2", 5, "us")])
        page, _ = self.page()
        self.assertEqual(self.row(page, "score, reduction, top-k by joint codes: ")[-2:], ["1.25 x", "met"])

    def test_rivals_and_what_is_missing(self):
        self.put_peers(**{"faiss Clustering": 5.0, "ours, bfloat16 rows": 0.5})
        page, said = self.page()
        self.assertIn("| k-means iteration, update included | faiss Clustering | 2000 us | 10.0 ms | 5.00 x | 4 x | met |", page)
        self.assertIn("| k-means iteration, update included | scikit-learn Lloyd |  |  |  | 4 x | not measured |", page)
        self.assertIn("| k-means iteration, bfloat16 rows | our f32 | 1000 us | 2000 us | 2.00 x | 1.6 x | met |", page)
        self.assertIn("torch: not installed, left out.", page)
        self.assertIn("Compared: all agree.", page)
        self.assertIn("not measured: LFU: 3 x list and hash", said)
        wanted = sum(len(row["measures"]) for row in json.loads((root / "bench/targets.json").read_text())["rows"])
        met, short, missing = map(int, re.search(r"targets (\d+) are met, (\d+) are not, (\d+) were", page).groups())
        self.assertEqual((met, met + short + missing), (3, wanted))

    def test_a_benchmark_that_failed_is_named(self):
        self.put("kmeans", [{"name": "kmeans/bad", "error_occurred": True, "error_message": "no room"}, benchmark("x/n:1", 1)])
        self.assertIn("`kmeans/bad` failed: no room", self.page()[0])

    def test_steps_cross(self):
        times = {"full": [10, 20, 40, 80], "pq_tenth": [20, 28.28427, 28.28427, 30], "pq_2048": [9, 9, 9, 9]}
        self.put("step_by_length", [dict(benchmark(f"step_by_length/h:8/n:{1024 << i}/threads:1/policy:{policy}/type:bf16/iterations:3", 1),
                                         real_time=time) for policy, line in times.items() for i, time in enumerate(line)])
        lines = step_lines.lines_of(measured.results(self.path))
        found = step_lines.crossings(lines)
        self.assertAlmostEqual(found["pq_tenth", 1], 2048 * 1.03 * 2 ** 0.5, delta=1)
        self.assertEqual(found["pq_2048", 1], 1024)
        lines["full", 1][8192] = 29e-6  # slower than a tenth at the end
        self.assertIsNone(step_lines.crossings(lines)["pq_tenth", 1])
        page, _ = self.page()
        self.assertIn("| 1 K | 10.0 us | 20.0 us | 9.0 us |", page)
        self.assertIn("faster than dense from 2,983 tokens on", page)
        self.assertIn("faster than dense at every length measured", page)

    def test_speed_by_length(self):
        self.put_peers()
        (self.path / "decoder_speed.json").write_text(json.dumps({
            "command": "decoder_speed.py", "threads": 2, "results": [{"length": 4096, "prefill_tokens_per_second": 1234.4,
                                                                       "decode_tokens_per_second": {"full": 10.2, "pq 1/10": 99.9}}]}))
        self.assertIn("| 4 K | 1234 | 10 | 100 |", self.page()[0])

    def test_bad_input_is_refused(self):
        self.assertIn("has no results", self.run_report().stderr)
        (self.path / "kmeans.json").write_text("{")
        self.assertIn("kmeans.json: cannot be read as JSON", self.run_report().stderr)
        self.assertNotEqual(self.run_report().returncode, 0)
        self.assertFalse((self.path / "page.md").exists())

    def test_results_of_a_gpu_in_the_same_folder_are_left_alone(self):
        self.put("kmeans", [benchmark("x/n:1", 1)])
        (self.path / "gpu.json").write_text('{"run": {}}\n{"name": "x/n:1", "us": 2}\n')
        self.assertIn("# Results of the host kernels", self.page()[0])

    def test_every_target_names_what_the_benchmarks_have(self):
        """Contests and rivals are spelled as bench/peers does."""
        text = "".join(path.read_text() for path in (root / "bench/peers").glob("*.py"))
        for row in json.loads((root / "bench/targets.json").read_text())["rows"]:
            for measure in row["measures"]:
                self.assertEqual(len({"at_least", "at_most"} & set(measure)), 1, measure)
                self.assertTrue("contest" in measure or {"counter", "over"} & set(measure), measure)
                if "contest" in measure:
                    self.assertIn(f'"{measure["contest"]}": {measure["contest"]}', text)
                    rival = measure["rival"]
                    self.assertTrue(f'"{rival}"' in text or rival.startswith("faiss FastScan 4 x 4, k "), rival)


if __name__ == "__main__":
    unittest.main()
