#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the bytes of bench/scale_model.py with tests/cases/step_bytes.hpp, whose numbers the library's tests count, and its tables with
those of docs/scale.md."""
import re
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "bench"))
import scale_model  # noqa: E402


class ScaleModel(unittest.TestCase):
    def test_bytes_are_those_that_are_counted(self):
        text = (ROOT / "tests/cases/step_bytes.hpp").read_text(encoding="utf-8")
        table = text[text.index("every_step_bytes[] = {"):text.index("};\ninline constexpr std::size_t step_bytes_tokens")]
        lines = [[int(number) for number in re.findall(r"\d+", line)] for line in re.findall(r"\{\d+, .*\}\}", table)]
        self.assertGreaterEqual(len(lines), 3)
        kinds = (scale_model.host_exact, scale_model.host_local, scale_model.nccl_exact, scale_model.nccl_local)
        for h, hq, d, k, ranks, *counted in lines:
            for i, exchange in enumerate(kinds):
                net = scale_model.network(ranks, 3, 50)
                exchange(net, scale_model.layer(h, hq, d, k))
                self.assertEqual([net.exchanges, net.sent], counted[2 * i:2 * i + 2], (exchange.__name__, h, hq, d, k, ranks))

    def test_page_has_the_tables_that_are_printed(self):
        printed = subprocess.run([sys.executable, "-B", ROOT / "bench/scale_model.py"], capture_output=True, text=True, check=True).stdout
        page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
        self.assertIn(printed.strip(), page, "docs/scale.md: run bench/scale_model.py and copy its tables")


if __name__ == "__main__":
    unittest.main()
