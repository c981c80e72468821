#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs sanitize.sh with an nvcc and a compute-sanitizer that only act as such, so that what it makes of their results is tested without a GPU."""
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parent / "sanitize.sh"

# Makes a "program" of each source: it does what $ACT says for its name, and counts cases.
NVCC = r"""#!/usr/bin/env bash
while [ $# -gt 0 ]; do case $1 in -o) out=$2 ;; *.cu) name=$(basename "$1" .cu) ;; esac; shift; done
if [[ " $ACT " == *" $name:broken "* ]]; then echo "$name.cu: error: broken"; exit 1; fi
cat >"$out" <<'PROGRAM'
#!/usr/bin/env bash
name=$(basename "$0")
echo "arguments: $*"
acts() { [[ " $ACT " == *" $name:$1 "* ]]; }
if acts absent; then echo "no CUDA device"; exit 77; fi
if acts hang; then sleep 60; fi
echo "one: 12 cases, 0 differ"
echo "two: 30 cases, 0 differ"
if [ "${1:-}" = --seconds ]; then echo "small: 5 problems in 61 s, 4 left out"; fi
if acts fail; then exit 1; fi
PROGRAM
chmod +x "$out"
"""

SANITIZER = r"""#!/usr/bin/env bash
while [ "${1:0:2}" = -- ]; do
  case $1 in --tool) tool=$2 ;; --error-exitcode) code=$2 ;; --report-api-errors) echo "api errors: $2" ;; *) exit 5 ;; esac
  shift 2
done
name=$(basename "$1")
"$@"
result=$?
acts() { [[ " $ACT " == *" $name:$tool:$1 "* ]]; }
if acts error; then echo "========= ERROR SUMMARY: 2 errors"; exit "$code"; fi
if acts warning; then echo "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)"; exit 0; fi
if acts mute; then exit 0; fi
echo "========= ERROR SUMMARY: 0 errors"
exit $result
"""


class sanitize(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        for name, text in (("nvcc", NVCC), ("compute-sanitizer", SANITIZER)):
            path = Path(self.folder.name) / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)

    def run_script(self, *arguments, act=""):
        environment = dict(os.environ, PATH=self.folder.name + os.pathsep + os.environ["PATH"], ACT=act)
        done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False)
        return done.returncode, done.stdout

    def test_every_tool_on_every_program(self):
        code, text = self.run_script()
        programs = [path.stem for path in SCRIPT.parent.glob("*.cu") if "return 77;" in path.read_text(encoding="utf-8")]
        programs.remove("real_keys")
        self.assertEqual(code, 0, text)
        self.assertGreater(len(programs), 5)
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
            for program in programs:
                self.assertIn(f"{tool} {program}: clean (42 cases", text)
        self.assertIn(f"{4 * len(programs)} of {4 * len(programs)} runs are clean", text)

    def test_long_programs_are_given_a_time(self):
        with tempfile.TemporaryDirectory() as logs:
            code, text = self.run_script("--programs", "search seam", "--seconds", "9", "--logs", logs, "memcheck")
            self.assertEqual(code, 0, text)
            self.assertIn("memcheck search: clean (42 cases, 4 problems left out", text)
            self.assertIn("arguments: --seconds 9\n", (Path(logs) / "memcheck.search").read_text(encoding="utf-8"))
            self.assertIn("api errors: no\n", (Path(logs) / "memcheck.seam").read_text(encoding="utf-8"))

    def test_what_went_wrong_is_named_and_ends_with_1(self):
        for act, line in (("merge:memcheck:error", "memcheck merge: FOUND: ERROR SUMMARY: 2 errors"),
                          ("merge:racecheck:warning", "racecheck merge: FOUND: RACECHECK SUMMARY: 1 hazard displayed"),
                          ("merge:initcheck:mute", "initcheck merge: FAILED: the tool printed no summary"),
                          ("merge:fail", "synccheck merge: FAILED with exit code 1"),
                          ("merge:broken", "build merge: FAILED\nmerge.cu: error: broken")):
            code, text = self.run_script("--programs", "merge seam", act=act)
            self.assertEqual(code, 1, text)
            self.assertIn(line, text)

    def test_a_program_that_does_not_end(self):
        code, text = self.run_script("--programs", "merge seam", "--limit", "1", "racecheck", act="merge:hang")
        self.assertEqual(code, 1)
        self.assertIn("racecheck merge: DID NOT FINISH in 1 s", text)
        self.assertIn("racecheck seam: clean", text)

    def test_no_gpu(self):
        code, text = self.run_script("--programs", "merge", "racecheck", act="merge:absent")
        self.assertEqual(code, 77)
        self.assertIn("racecheck merge: no GPU", text)

    def test_keys(self):
        with tempfile.NamedTemporaryFile() as keys:
            code, text = self.run_script("--programs", "real_keys", "--keys", keys.name, "synccheck")
            self.assertEqual(code, 0, text)
            self.assertIn("synccheck real_keys: clean", text)

    def test_bad_arguments(self):
        for arguments in (["--bogus"], ["--jobs"], ["--programs", "nothing"], ["--programs", "real_keys"], ["leakcheck"]):
            self.assertEqual(self.run_script(*arguments)[0], 2, arguments)


if __name__ == "__main__":
    unittest.main()
