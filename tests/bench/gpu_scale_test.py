#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs bench/gpu_scale.sh with a compiler that makes programs of shell, and a NCCL that is two empty files: no GPU, no nvcc."""
import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
lengths = (262144, 524288, 1048576, 2097152)


def every_name():
    """The measurements that bench/scale_model.py makes tables of."""
    for n in lengths:
        for codes in ("pq_2x6", "pq_4x8"):
            yield from (f"{how}/{mode}/{codes}/n:{n}" for how in ("peer", "nccl") for mode in ("exact", "local"))
            yield from (f"one_gpu/{codes}/n:{of}" for of in (n // 2, n))
            yield from (f"{how}/exact/{codes}/n:{n // 2}" for how in ("alone", "alone_half"))
        yield f"peer/dense/n:{n}"
    yield from (f"{how}/exchanges/k:2048" for how in ("peer", "nccl"))


# A stand-in for nvcc. $BROKEN names a program that fails, $NO_COMPILE a source that does not compile.
compiler = r"""#!/usr/bin/env bash
while [ $# -gt 0 ]; do case $1 in -o) out=$2; shift ;; *.cu) source=$1 ;; esac; shift; done
if [ "$(basename "${source:-}")" = "${NO_COMPILE:-none}" ]; then echo "error: planted"; exit 1; fi
[ -n "${out:-}" ] || exit 0
cat >"$out" <<'PROGRAM'
#!/usr/bin/env bash
name=$(basename "$0")
if [ -n "${NO_GPUS:-}" ]; then echo "fewer than two GPUs" >&2; exit 77; fi
if [ "$name" = rank_step ]; then grep "rank_step/${1#rank_step/}" "$LINES"; else echo "$name: all right"; fi
if [ "$name" = "${BROKEN:-}" ]; then exit 5; fi
exit 0
PROGRAM
chmod +x "$out"
"""


class script(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name)
        tools, nccl = self.path / "tools", self.path / "nccl"
        for made in (tools, nccl / "include", nccl / "lib"):
            made.mkdir(parents=True)
        (nccl / "include/nccl.h").touch()
        (nccl / "lib/libnccl.so").touch()
        (tools / "nvcc").write_text(compiler)
        (tools / "nvcc").chmod(0o755)
        times = {"us": 50.0, "us_p10": 49.0, "us_p90": 51.0}
        self.path.joinpath("lines").write_text(
            "".join(json.dumps({"name": "rank_step/" + name, **times, "cold": times}) + "\n" for name in dict.fromkeys(every_name())))
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PQKV_NCCL": str(nccl), "LINES": str(self.path / "lines")}
        self.out = self.path / "a folder"

    def run_script(self, *arguments, **environment):
        return subprocess.run([root / "bench/gpu_scale.sh", *arguments], capture_output=True, text=True, env={**self.environment, **environment})

    def files(self):
        return sorted(path.name for path in self.out.iterdir()) if self.out.exists() else []

    def test_a_run_from_end_to_end(self):
        done = self.run_script(self.out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.files(), ["scale.json", "scale.md", "scale_checks.txt"])
        self.assertEqual((self.out / "scale_checks.txt").read_text(), "check: all right\ntwo_gpus: all right\n")
        lines = [json.loads(one) for one in (self.out / "scale.json").read_text().splitlines()]
        self.assertEqual(set(lines[0]["run"]), {"date", "driver", "revision", "prefix"})
        page = (self.out / "scale.md").read_text()
        self.assertEqual(len(re.findall(r"\| - (?=\|)", page)), 3 * len(lengths), page)  # dense attention over NCCL alone has no numbers
        for n in lengths:
            self.assertIn(f"| pq_4x8, {n} | 50.0 us | 50.0 us | 50.0 us | 1.00 | 1.00 |", page)

    def test_the_page_has_these_tables(self):
        self.run_script(self.out)
        lines = (self.out / "scale.md").read_text().splitlines()
        heads = [line for line, after in zip(lines, lines[1:]) if after.startswith("|---")]
        self.assertEqual(len(heads), 6)
        for head in heads:
            self.assertIn(head + "\n|---", (root / "docs/scale.md").read_text(encoding="utf-8"))

    def test_a_prefix_without_checks(self):
        done = self.run_script(self.out, "rank_step/peer/dense", "--no-checks")
        self.assertEqual((done.returncode, self.files()), (0, ["scale.json", "scale.md"]), done.stderr)
        self.assertEqual(len((self.out / "scale.json").read_text().splitlines()), 1 + len(lengths))

    def test_failures_are_told(self):
        for broken in ("check", "two_gpus", "rank_step"):
            done = self.run_script(self.out, BROKEN=broken)
            self.assertEqual((done.returncode, self.files()), (1, ["scale.json", "scale.md", "scale_checks.txt"]), (broken, done.stderr))
        done = self.run_script(self.out, NO_COMPILE="rank_step.cu")
        self.assertEqual(done.returncode, 1)
        self.assertIn("rank_step.cu does not compile:\nerror: planted", done.stderr)

    def test_programs_are_kept_and_taken(self):
        kept = self.path / "kept programs"
        done = self.run_script("--programs", kept)
        self.assertEqual((done.returncode, self.files()), (0, []), done.stderr)
        self.assertEqual(sorted(path.name for path in kept.iterdir()), ["check", "made_from", "rank_step", "two_gpus"])
        done = self.run_script(self.out, "--programs", kept, NO_COMPILE="rank_step.cu")  # nothing is compiled
        self.assertEqual(done.returncode, 0, done.stderr)
        (kept / "made_from").write_text("others")
        done = self.run_script(self.out, "--programs", kept)
        self.assertEqual(done.returncode, 1)
        self.assertIn("its programs were made from other sources", done.stderr)
        self.assertEqual(self.run_script("--programs").returncode, 2)

    def test_fewer_than_two_gpus(self):
        self.assertEqual(self.run_script(self.out, NO_GPUS="1").returncode, 77)
        self.assertEqual(self.run_script(self.out, "--no-checks", NO_GPUS="1").returncode, 77)

    def test_arguments_are_refused_by_name(self):
        for arguments, text in (([], "no FOLDER"), (["--nochecks", self.out], "unknown option --nochecks"), ([self.out, "a", "b"], "too many: b")):
            done = self.run_script(*arguments)
            self.assertEqual((done.returncode, self.files()), (2, []), done.stderr)
            self.assertIn(text, done.stderr)
        self.assertEqual(self.run_script("--help").returncode, 0)


if __name__ == "__main__":
    unittest.main()
