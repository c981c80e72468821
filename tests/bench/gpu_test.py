#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs bench/gpu_report.py over a few lines of results, bench/gpu.sh with a compiler that makes programs of shell, and bench/peers/gpu.py with
a torch that does nothing: no GPU, no nvcc, no torch."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
joint = "retrieve/joint/h:8/g:4/m:2/b:6/n:131072/k:2048"
dense = "attention/dense/h:8/g:4/d:128/n:131072"
machine = {"device": "a GPU", "multiprocessors": 4, "l2_bytes": 1000, "cuda_runtime": "13.0"}
read = {"name": "ceiling/read/bytes:1073741824", "us": 10.0, "us_p10": 9.0, "us_p90": 11.0, "bytes": 40e6}  # 4 TB/s
l2_read = {"name": "ceiling/l2_read/bytes:16777216", "us": 10.0, "us_p10": 9.0, "us_p90": 11.0, "bytes": 80e6}


def line(name, us, cold=None, **members):
    value = {"name": name, "us": us, "us_p10": us * 0.9, "us_p90": us * 1.1, "calls": 2, "replays": 3, **members}
    return value if cold is None else {**value, "cold": {"us": cold, "us_p10": cold, "us_p90": cold, "calls": 1, "replays": 3}}


class folder_case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name)


class tier_parts(folder_case):
    def run_parts(self, *lines):
        (self.path / "gpu.json").write_text("".join(json.dumps(one) + "\n" for one in lines))
        return subprocess.run([sys.executable, "-B", root / "bench/tier_parts.py", self.path / "gpu.json"], capture_output=True, text=True)

    def step(self, what, us, n=131072):
        return line(f"tiered_step/{what}/h:8/g:4/d:128/n:{n}", us, us + 5)

    def test_parts_add_up_to_the_step(self):
        done = self.run_parts(machine, self.step("attend_on_gpu", 10), self.step("all_on_gpu", 30), self.step("kept:5/without_update", 60),
                              self.step("kept:5", 63), self.step("dense", 150),
                              {"tier": "tiered_step/kept:5/h:8/g:4/d:128/n:131072", "hit_rate": 0.57, "slow_bytes_of_a_step": 1, "admissions_of_a_step": 0})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[0], "| a GPU, us | hit rate | score | attend | fetch | update | step | dense step |")
        self.assertEqual(done.stdout.splitlines()[2], "| 128 K, kept:5 | 0.57 | 20.0 | 10.0 | 30.0 | 3.0 | 63.0 | 150.0 |")

    def test_updates_that_were_not_told_apart_are_in_fetch(self):
        done = self.run_parts(machine, self.step("attend_on_gpu", 10), self.step("all_on_gpu", 30), self.step("kept:5", 63))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[2], "| 128 K, kept:5 | 0 | 20.0 | 10.0 | 33.0 | in fetch | 63.0 | not measured |")

    def test_a_step_without_its_parts_is_left_out(self):
        done = self.run_parts(machine, self.step("all_on_gpu", 30), self.step("kept:5/without_update", 60), self.step("kept:5", 63))
        self.assertEqual(done.returncode, 1)
        self.assertIn("no step over tiers is in it with all of its parts", done.stderr)


class report(folder_case):
    bench = root / "bench"

    def run_report(self, *lines):
        (self.path / "gpu.json").write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
        program = self.bench / "gpu_report.py"
        return subprocess.run([sys.executable, "-B", program, self.path, self.path / "gpu.md"], capture_output=True, text=True)

    def page(self, *lines):
        done = self.run_report(*lines)
        self.assertEqual(done.returncode, 0, done.stderr)
        return (self.path / "gpu.md").read_text(), done.stderr

    def row(self, page, start):
        return next([cell.strip() for cell in one.strip("|").split("|")] for one in page.splitlines() if one.startswith("| " + start))

    def test_warm_and_cold_have_verdicts_of_their_own(self):
        page, _ = self.page(machine, line(joint, 6, 22))
        row = self.row(page, "retrieve by joint codes, n 131072, k 2048")
        self.assertEqual(row[1:3] + row[-1:], ["6.0 us", "22.0 us", "warm: met; cold: over by 100 %"])
        self.assertIn("1 are met, 1 are not", page)

    def test_shares_of_what_binds(self):
        small, large = line(joint, 1, 2, bytes=800), line(dense, 2, 4, bytes=4e6)
        train = line("train/problems:512/n:16384/ds:64/c:64/L:25", 20, flops=1e9)
        page, _ = self.page(machine, read, l2_read, line("ceiling/fma/type:f32", 10, flops=1e9), small, large, train)
        self.assertEqual(self.row(page, "retrieve by joint")[3], "0.0 % of reading L2; 0.0 % of reading, cold")
        self.assertEqual(self.row(page, "dense attention")[3], "50 % of reading; 25 % of reading, cold")
        self.assertEqual(self.row(page, "train, 512")[3], "50 % of multiply-adds")
        self.assertEqual(self.row(page, "reading device memory")[1], "4.00 TB/s")
        self.assertEqual(self.row(page, "multiply-adds in float")[1], "100.00 Tflop/s")

    def test_a_share_can_be_the_target(self):
        page, _ = self.page(machine, read, line("attention/listed/h:128/g:4/d:128/n:65536/k:4096", 2, 4, bytes=6.4e6))
        self.assertEqual(self.row(page, "attention, 4096 listed rows, batch 16")[-1], "warm: 80 %, met; cold: 40 %, short by 47 %")

    def test_the_fastest_rival_counts(self):
        start, end = "torch layer prefill", "hidden:4096/mlp:14336/h:8/g:4/d:128/n:131072"
        build = line("index_build/h:8/d:128/m:2/b:6/n:131072/L:10/keys:normal", 2000)
        page, _ = self.page(machine, build, line(f"{start} flash/{end}", 1e6), line(f"{start} cudnn/{end}", 5e5))
        self.assertEqual(self.row(page, "index build of a layer")[-3:],
                         ["at most 0.3 % of prefill", "torch layer prefill, flash 1000.0 ms; cuDNN 500.0 ms", "0.40 %, over by 33 %"])
        page, _ = self.page(machine, build)
        self.assertEqual(self.row(page, "index build of a layer")[-1], "not measured")

    def test_ratio_of_two_lengths(self):
        page, said = self.page(machine, line(joint, 10, 10), line(joint.replace("131072", "1048576"), 12, 20))
        self.assertEqual(self.row(page, "retrieve by joint codes, n 1048576")[-1], "warm: 1.20 x, met; cold: 2.00 x, over by 60 %")
        self.assertIn("not measured: top_k, 64 rows", said)

    def test_a_later_run_replaces_what_it_measured(self):
        other = "retrieve/scan/h:8/g:4/m:4/b:8/n:131072/k:2048"
        page, _ = self.page({"run": {"date": "2026-01-02", "revision": "abc"}}, machine, line(joint, 6, 16), line(other, 9, 9),
                            {"run": {"date": "2026-01-03", "revision": "def"}}, line(joint, 5, 15))
        self.assertEqual(self.row(page, "retrieve by joint codes, n 131072, k 2048")[1:3], ["5.0 us", "15.0 us"])
        self.assertEqual(self.row(page, "retrieve by scan, 4 x 8 bits, n 131072")[1], "9.0 us")
        self.assertIn("| date, revision | 2026-01-02, abc |", page)
        self.assertIn("| of another run | 2026-01-03, def: `retrieve/joint/` |", page)
        self.assertIn("from runs of `bench/gpu.sh FOLDER`", page)

    def test_a_row_that_falls_short_without_a_reason_says_so(self):
        self.bench = self.path / "bench"
        self.bench.mkdir()
        for source in (root / "bench").glob("*.py"):
            shutil.copy(source, self.bench)
        targets = json.loads((root / "bench/targets_gpu.json").read_text())
        for row in targets["rows"]:
            row.pop("binds", None)
        (self.bench / "targets_gpu.json").write_text(json.dumps(targets))
        page, _ = self.page(machine, line(joint, 9, 9))
        self.assertIn("| retrieve by joint codes, n 131072, k 2048 | not said |", page)

    def test_circumstances_and_what_did_not_go_well(self):
        (self.path / "checks.txt").write_text("search: passed, 3 s: x\nreal_keys: left out: no keys\nseam: FAILED, exit code 1\n    seam: 1 differs\n")
        page, _ = self.page({"run": {"date": "2026-01-02", "driver": "1.2", "nvcc": "13.0.1", "revision": "abc", "prefix": "retrieve"}}, machine,
                            line(joint, 1), {"name": "torch x", "refused": "no such kernel"}, {"failed": "top_k", "exit_code": 3},
                            {"left_out": "peers", "why": "not asked for"}, {"peer": "torch", "version": "9", "cuda": "13", "cudnn": 1})
        for text in ("a GPU, 4 multi", "1.2; runtime 13.0, nvcc 13.0.1", "1 of 2 programs of tests/cuda passed; FAILED: seam; left out: real_keys", "torch 9, CUDA 13",
                     "`torch x` was refused: no such kernel.", "`top_k` FAILED: exit code 3.", "`peers` was left out: not asked for.",
                     "begin with `retrieve` were taken"):
            self.assertIn(text, page)

    def test_what_tiers_have_counted(self):
        counted = {"tier": "tiered_step/x", "hit_rate": 0.497, "slow_bytes_of_a_step": 1.5e6, "admissions_of_a_step": 2}
        page, _ = self.page(machine, line("tiered_step/x", 10), counted)
        self.assertIn("| `tiered_step/x` | 50 % | 1.50 MB | 2.0 |", page)
        page, _ = self.page(machine, line("tiered_step/x", 10))
        self.assertNotIn("from host memory |", page)

    def test_bad_input_is_refused(self):
        for lines, text in (((machine,), "has no measurement"), ((machine, "{half"), "gpu.json:2: is not JSON"), (("3",), "is no JSON object")):
            done = self.run_report(*lines)
            self.assertIn(text, done.stderr)
            self.assertEqual((done.returncode, (self.path / "gpu.md").exists()), (1, False))

    def test_every_target_says_what_decides_it(self):
        for row in json.loads((root / "bench/targets_gpu.json").read_text())["rows"]:
            self.assertTrue({"what", "benchmark", "measures"} <= set(row), row)
            for measure in row["measures"]:
                self.assertEqual(len({"at_least", "at_most"} & set(measure)), 1, measure)
                self.assertTrue(measure.get("unit") in ("us", "share") or "over" in measure, measure)


# A stand-in for torch whose every event took 1.5 ms.
torch = """
import runpy, sys
from unittest.mock import MagicMock
torch, tensor = MagicMock(__version__="9"), MagicMock()
torch.version.cuda, torch.backends.cudnn.version.return_value = "13", 1
torch.cuda.get_device_properties.return_value.L2_cache_size = 10
torch.cuda.Event.return_value.elapsed_time.return_value = 1.5
torch.randn.return_value = tensor.__mul__.return_value = tensor
tensor.numel.return_value = 10
torch.topk.side_effect = RuntimeError("no room\\nfor it")
sys.modules.update({"torch": torch, "torch.nn.attention": torch.nn.attention, "torch.nn.functional": torch.nn.functional})
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class peers(unittest.TestCase):
    def test_rivals_are_measured_by_the_names_of_the_targets(self):
        done = subprocess.run([sys.executable, "-B", "-c", torch, root / "bench/peers/gpu.py"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = {one["name"]: one for one in map(json.loads, done.stdout.splitlines()) if "name" in one}
        self.assertEqual(lines["torch.topk/rows:8/n:131072/k:2048"]["refused"], "no room")
        self.assertEqual(lines["torch gather of K and V/h:8/d:128/n:131072/k:4096"]["us"], 187.5)
        self.assertEqual(lines["torch gather of K and V/h:8/d:128/n:131072/k:4096"]["cold"]["us"], 1500)
        for row in json.loads((root / "bench/targets_gpu.json").read_text())["rows"]:
            for name in [*row.get("rivals", {}).values(), *(other for measure in row["measures"] for other in measure.get("over", []))]:
                self.assertTrue(not name.startswith("torch") or name in lines, name)


# A stand-in for nvcc: its programs list one name, or print a line of it. $BROKEN names a program that fails, $NO_COMPILE a source that does.
compiler = r"""#!/usr/bin/env bash
case "$*" in *--version*) echo 'Cuda compilation tools, release 13.0, V13.0.1'; exit ;; esac
while [ $# -gt 0 ]; do case $1 in -o) out=$2; shift ;; *.cu) source=$1 ;; esac; shift; done
if [ "$(basename "$source")" = "${NO_COMPILE:-}" ]; then echo "error: planted"; exit 1; fi
cat >"$out" <<'PROGRAM'
#!/usr/bin/env bash
name=$(basename "$0")
if [ "$1" = --names ]; then echo "$name/n:1"; exit; fi
if [ -n "${NO_GPU:-}" ]; then echo "no CUDA device" >&2; exit 77; fi
if [ "$1" = nothing ]; then exit; fi
case $name in
  check_*) echo "$name: 3 cases, 0 differ"; if [ "$name" = "${BROKEN:-}" ]; then exit 5; fi ;;
  *)
    if [ "$name" = ceilings ]; then echo '{"device": "a GPU", "l2_bytes": 1}'; fi
    case $name/n:1 in "$1"*) echo "{\"name\": \"$name/n:1\", \"us\": 1.5, \"us_p10\": 1, \"us_p90\": 2}" ;; esac
    if [ "$name" = "${BROKEN:-}" ]; then echo "planted" >&2; exit 5; fi ;;
esac
PROGRAM
chmod +x "$out"
"""


class script(folder_case):
    def setUp(self):
        super().setUp()
        tools = self.path / "tools"
        tools.mkdir()
        (tools / "nvcc").write_text(compiler)
        (tools / "no_torch").write_text("#!/bin/sh\nexit 1\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PQKV_TORCH_PYTHON": str(tools / "no_torch"), "PQKV_JOBS": "2"}
        self.out = self.path / "a folder"

    def run_script(self, *arguments, **environment):
        return subprocess.run([root / "bench/gpu.sh", *arguments], capture_output=True, text=True, env={**self.environment, **environment})

    def files(self):
        return sorted(path.name for path in self.out.iterdir()) if self.out.exists() else []

    def lines(self):
        return [json.loads(one) for one in (self.out / "gpu.json").read_text().splitlines() if one]

    def test_a_run_from_end_to_end(self):
        done = self.run_script(self.out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.files(), ["checks.txt", "gpu.json", "gpu.md"])
        programs = {path.stem for path in (root / "bench/cuda").glob("*.cu")}
        self.assertEqual({one["name"].split("/")[0] for one in self.lines() if "name" in one}, programs)
        self.assertEqual(self.lines()[0]["run"]["nvcc"], "13.0.1")
        checks = (self.out / "checks.txt").read_text().splitlines()
        self.assertIn("search_fast_math: passed", "\n".join(checks))
        self.assertEqual(len(checks), sum(": passed" in one for one in checks))
        self.assertIn(f"{len(checks)} of {len(checks)} programs", (self.out / "gpu.md").read_text())
        self.assertIn("no python3 with torch", (self.out / "gpu.md").read_text())

    def test_ranks_are_checked_where_nccl_is(self):
        nccl = self.path / "nccl"
        for name in ("include/nccl.h", "lib/libnccl.so.2"):
            (nccl / name).parent.mkdir(parents=True)
            (nccl / name).touch()
        done = self.run_script(self.out, "top_k/", PQKV_NCCL=str(nccl))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("context_parallel: passed", (self.out / "checks.txt").read_text())

    def test_a_prefix_without_checks(self):
        self.out.mkdir()
        (self.out / "checks.txt").write_text("of an earlier run")
        done = self.run_script(self.out, "top_k/", "--no-checks")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.files(), ["gpu.json", "gpu.md"])
        self.assertEqual([one["name"] for one in self.lines() if "name" in one], ["ceilings/n:1", "top_k/n:1"])

    def test_a_check_that_fails(self):
        done = self.run_script(self.out, BROKEN="check_search")
        self.assertEqual((done.returncode, self.files()), (1, ["checks.txt", "gpu.json", "gpu.md"]))
        self.assertIn("search: FAILED, exit code 5\n    check_search: 3 cases", (self.out / "checks.txt").read_text())
        self.assertIn("FAILED: search", (self.out / "gpu.md").read_text())

    def test_a_benchmark_that_fails(self):
        done = self.run_script(self.out, "--no-checks", BROKEN="encode")
        self.assertEqual(done.returncode, 1)
        self.assertIn({"failed": "encode", "exit_code": 5}, self.lines())
        self.assertIn("top_k/n:1", [one.get("name") for one in self.lines()])
        self.assertIn("encode ended with exit code 5", done.stderr)

    def test_nothing_is_written_when_nothing_can_be_measured(self):
        done = self.run_script(self.out, NO_COMPILE="top_k.cu")
        self.assertEqual((done.returncode, self.files()), (1, []))
        self.assertIn("bench/cuda/top_k.cu does not compile:\nerror: planted", done.stderr)
        done = self.run_script(self.out, NO_GPU="1")
        self.assertEqual((done.returncode, self.files()), (77, []))

    def test_programs_are_compiled_ahead(self):
        programs = self.path / "programs"
        done = self.run_script("--programs", programs, NO_GPU="1")
        self.assertEqual((done.returncode, self.files()), (0, []), done.stderr)
        self.assertTrue((programs / "check_search_fast_math").exists() and (programs / "top_k").exists())
        done = self.run_script(self.out, "--programs", programs, NO_COMPILE="top_k.cu")  # it is not compiled again
        self.assertEqual((done.returncode, self.files()), (0, ["checks.txt", "gpu.json", "gpu.md"]), done.stderr)
        (programs / "encode").unlink()
        done = self.run_script(self.out, "encode/", "--no-checks", "--programs", programs, NO_COMPILE="encode.cu")
        self.assertEqual(done.returncode, 1)
        self.assertIn("encode.cu does not compile", done.stderr)
        done = self.run_script(self.out, "--programs", programs, PQKV_CUDA_ARCH="sm_100")
        self.assertEqual(done.returncode, 1)
        self.assertIn("made from other sources, or for another architecture than sm_100", done.stderr)
        (programs / "made_from").write_text("sm_90 0\n")
        self.assertIn("made from other sources", self.run_script(self.out, "--programs", programs).stderr)

    def test_a_verdict_is_said_before_the_last_check_has_ended(self):
        done = self.run_script(self.out, BROKEN="check_search")
        self.assertIn("search: FAILED, exit code 5\n    check_search: 3 cases", done.stderr)
        self.assertIn("seam: passed", done.stderr)

    def test_arguments_are_refused_by_name(self):
        for arguments, text in (([], "no FOLDER"), (["--nochecks", self.out], "unknown option --nochecks"), ([self.out, "a", "b"], "too many: b"),
                                ([self.out, 'x"y'], 'x"y: no benchmark'), ([self.out, "no_such", "--no-checks"], "no_such: no benchmark"), ([""], "empty"),
                                ([self.out, "--programs"], "--programs: no folder given")):
            done = self.run_script(*arguments)
            self.assertEqual((done.returncode, self.files()), (2, []), done.stderr)
            self.assertIn(text, done.stderr)
        self.assertEqual(self.run_script("--help").returncode, 0)


if __name__ == "__main__":
    unittest.main()
