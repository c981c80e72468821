#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny model for half a minute on the repository's own pages: killed after its first stage it goes on, the loss falls, and
what it wrote is read by minillama and by evaluate.py. Needs what examples/minillama/train/README.md asks for.

    train_smoke_test.py MINILLAMA
"""
import json
import re
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
folder = root / "examples/minillama/train"
minillama = Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else None
patience_s = 240  # for a stage of 10 s, on a machine with other work


class train(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        here = Path(cls.scratch.name)
        cls.text, cls.model = here / "text", here / "model"
        pages = [*sorted((root / "docs").glob("*.md")), *sorted((root / "include").rglob("*.hpp")), *sorted(root.glob("*.md"))]
        cls.text.write_text("\n".join(page.read_text(encoding="utf-8") for page in pages), encoding="ascii", errors="ignore")
        command = [sys.executable, "-B", str(folder / "train.py"), "--device", "cpu", "--smoke", "--text", str(cls.text),
                   "--out", str(cls.model), "--stages", "128x16:10,256x8:7,512x2+128x8:4", "--warm-up", "20", "--report-every", "1",
                   "--loaders", "0", "--try-count", "2", "--keep-stages"]
        cls.first = cls.kill_after_first_stage(command, here / "first.log")
        cls.second = subprocess.run(command, capture_output=True, text=True)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    @classmethod
    def kill_after_first_stage(cls, command, log):
        """Until the model of the first stage lies in its folder, which is after the checkpoint."""
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            end = time.monotonic() + patience_s
            while not (cls.model / "length-128/config.json").exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            cls.was_running = process.poll() is None
            process.kill()
            process.wait()
        return log.read_text()

    def test_goes_on_from_its_checkpoint(self):
        self.assertTrue(self.was_running, self.first)
        self.assertEqual(self.second.returncode, 0, self.second.stdout + self.second.stderr)
        resumed = re.search(r"goes on at step +(\d+), stage 2 of 3", self.second.stdout)
        self.assertIsNotNone(resumed, self.second.stdout)
        steps_before = [int(step) for step in re.findall(r"step +(\d+) ", self.first)]
        done = re.search(r"done: (\d+) steps", self.second.stdout)
        self.assertGreaterEqual(int(resumed[1]), steps_before[-1])
        self.assertGreater(int(done[1]), int(resumed[1]))
        self.assertNotIn("length 128: ready", self.second.stdout)  # the first stage is not run again
        for kept in ("length-128", "length-256", "length-512"):
            self.assertTrue((self.model / kept / "model.safetensors").exists(), kept)

    def test_loss_falls(self):
        losses = [float(loss) for loss in re.findall(r"text (\d+\.\d+)", self.first + self.second.stdout)]
        resumed = [float(loss) for loss in re.findall(r"text (\d+\.\d+)", self.second.stdout)]
        self.assertGreater(len(losses), 4, self.first)
        self.assertLess(losses[-1], 0.75 * losses[0])
        self.assertLess(resumed[0], losses[0])  # it did not begin anew

    def test_minillama_reads_the_model(self):
        prompt = "The code of amber is "
        got = subprocess.run([minillama, "-m", self.model, "-p", prompt, "-n", "4", "--policy", "full"], capture_output=True)
        self.assertEqual(got.returncode, 0, got.stderr)
        said = got.stdout[:-1]  # the last line feed is the program's
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        import torch
        from model import load_model

        llama = load_model(self.model, torch.device("cpu"))
        tokens = list(prompt.encode() + (said or b"\n"))  # nothing said: the line feed that ends a reply came first
        with torch.no_grad():
            scores = llama.logits(llama(torch.tensor([tokens]), torch.arange(len(tokens))[None]))[0]
        for at in range(len(prompt) - 1, len(tokens) - 1):
            self.assertLess(float(scores[at].max() - scores[at, tokens[at + 1]]), 0.01)  # the likeliest, but for rounding

    def test_average_of_two_stages(self):
        out = Path(self.scratch.name) / "average"
        stages = [self.model / "length-256", self.model / "length-512"]
        got = subprocess.run([sys.executable, "-B", folder / "average.py", "--models", *stages, "--out", out], capture_output=True, text=True)
        self.assertEqual(got.returncode, 0, got.stderr)
        import torch
        from safetensors.torch import load_file

        one, two, mean = (load_file(path / "model.safetensors") for path in (*stages, out))
        self.assertEqual(one.keys(), mean.keys())
        for name, weight in mean.items():
            self.assertTrue(torch.equal(weight, ((one[name].float() + two[name].float()) / 2).to(weight.dtype)), name)
        self.assertFalse(torch.equal(one["model.embed_tokens.weight"], two["model.embed_tokens.weight"]))
        self.assertTrue((out / "config.json").exists())

    def test_evaluate_runs_on_it(self):
        out = Path(self.scratch.name) / "evaluation.json"
        got = subprocess.run([sys.executable, "-B", folder / "evaluate.py", "--model", self.model, "--text", self.text, "--lengths", "1024",
                              "--count", "2", "--device", "cpu", "--out", out], capture_output=True, text=True)
        self.assertEqual(got.returncode, 0, got.stderr)
        exact = json.loads(out.read_text())["exact"]
        self.assertGreaterEqual(len(exact), 4)
        for task, right in exact.items():
            self.assertIn(right["1024"], (0, 1, 2), task)


if __name__ == "__main__":
    if minillama is None:
        sys.exit("train_smoke_test.py: the path of minillama is needed")
    unittest.main()
