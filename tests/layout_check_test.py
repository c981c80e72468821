#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plants one fault a case in a small clean tree and demands that layout_check.py finds it under the right rule."""
import tempfile
import unittest
from pathlib import Path

import layout_check

HEAD = "// SPDX-License-Identifier: Apache-2.0\n// A file of the clean tree.\n"
SCRIPT = "#!/usr/bin/env bash\n# SPDX-License-Identifier: Apache-2.0\n"
VERSION = "inline constexpr int version_major = 0;\ninline constexpr int version_minor = 1;\ninline constexpr int version_patch = 0;\n"
CLEAN = {
    "LICENSE": "", "README.md": "", "CMakePresets.json": "{}", "CHANGELOG.md": "0.1.0\n", "vcpkg.json": '{"version": "0.1.0"}',
    "ports/pqkv/vcpkg.json": '{"version": "0.1.0"}', "CITATION.cff": "title: pqkv\nversion: 0.1.0\n",
    "docs/licences.md": "# Licences\n\n## What is shipped\n\n| files |\n|---|\n| `*.md`, `*.json`, `CITATION.cff` |\n",
    "tests/run.sh": SCRIPT, "examples/demo.sh": SCRIPT, ".ci/run": SCRIPT,
    "include/pqkv/version.hpp": HEAD + VERSION,
    "include/pqkv/config.hpp": HEAD + "#define PQKV_HD\n",
    "include/pqkv/core/view.hpp": HEAD + '#include "../config.hpp"\n',
    "include/pqkv/exec/host.hpp": HEAD + '#include "../core/view.hpp"\n',
    "include/pqkv/search/scan.hpp": HEAD + '#include "../exec/host.hpp"\n// a comment may say _mm_setzero_ps and printf(\n',
    "include/pqkv/selector/pq.hpp": HEAD + '#include "../search/scan.hpp"\n',
    "include/pqkv/detail/host/simd/scores/avx2.hpp": HEAD + '#include <immintrin.h>\n#include "../../../../exec/host.hpp"\n',
    "include/pqkv/detail/host/scan.hpp": HEAD + '#include "../../search/scan.hpp"\n#include "simd/scores/avx2.hpp"\n',
    "include/pqkv/pqkv.hpp": HEAD + '#include "search/scan.hpp"\n#include "detail/host/scan.hpp"\n',
    "include/pqkv/adapt/thrust.hpp": HEAD + '#include "../core/view.hpp"\n', "tests/unit/thrust_test.cpp": HEAD,
    "include/pqkv/detail/cuda/scan_part.cuh": HEAD + '#include "../../search/scan.hpp"\ntemplate <>\nstruct kernel<op::store_rows, backend::cuda> {};\n',
    "include/pqkv/exec/isa.hpp": HEAD + "struct avx9 {};  // an instruction set\n", "tests/unit/isa_test.cpp": HEAD,
    "docs/backends.md": "| `op::store_rows` |\n",
    "tests/unit/view_test.cpp": HEAD, "tests/unit/host_test.cpp": HEAD, "tests/unit/scan_test.cpp": HEAD,
    "tests/unit/selector_pq_test.cpp": HEAD,
}
SCAN = "include/pqkv/search/scan.hpp"
ALL_HEADERS = "".join(f"| `{name.removeprefix('include/pqkv/')}` |\n" for name in CLEAN if name.startswith("include/pqkv/"))
COLUMNS = "| `isa::avx9` |\n| runs on `exec::cuda` | does not yet |\n|---|---|\n| `top_k` | `store_rows` |\n"

# name of the case: (rule, file, its new text or None to remove it)
FAULTS = {
    "long file": ("size", "bench/scan.cpp", HEAD + "\n" * 400),
    "wide line": ("width", "bench/scan.cpp", HEAD + "int " + "x" * 140 + ";\n"),
    "no licence line": ("licence", "bench/scan.cpp", "int x;\n"),
    "no licence line in a script": ("licence", "tests/a.sh", "#!/bin/sh\n\n"),
    "no purpose": ("head", SCAN, "// SPDX-License-Identifier: Apache-2.0\n#pragma once\n"),
    "link to no file": ("link", "README.md", "[a page](docs/absent.md)\n"),
    "link to no section": ("link", "README.md", "[what is here](docs/licences.md#what-is-here)\n"),
    "link to a section without its page": ("link", "README.md", "# A title\n\n[above](#a-title)\n"),
    "link to no section of its own": ("link", "README.md", "# A title\n\n[above](#the-title)\n"),
    "link on two lines": ("link", "README.md", "See [the\nlicences](docs/licences.md).\n"),
    "vague file": ("name", "tests/test_utils.hpp", HEAD),
    "vague folder": ("name", "bench/helpers/scan.cpp", HEAD),
    "unfinished": ("unfinished", "bench/scan.cpp", HEAD + "// TO" "DO later\n"),
    "header without a test": ("test", "include/pqkv/search/top_k.hpp", HEAD),
    "root header without a test": ("test", "include/pqkv/attention.hpp", HEAD),
    "adaptor without a test": ("test", "include/pqkv/adapt/eigen.hpp", HEAD),
    "adaptor without a purpose": ("head", "include/pqkv/adapt/thrust.hpp", "// SPDX-License-Identifier: Apache-2.0\n#pragma once\n"),
    "adaptor on the front page": ("opt-in", "include/pqkv/pqkv.hpp", HEAD + '#include "adapt/thrust.hpp"\n'),
    "selector without a test": ("test", "tests/unit/selector_pq_test.cpp", None),
    "backend file without its header": ("mirror", "include/pqkv/detail/host/top_k.hpp", HEAD),
    "device file without its header": ("mirror", "include/pqkv/detail/cuda/top_k.cuh", HEAD),
    "part of a device file without its header": ("mirror", "include/pqkv/detail/cuda/top_k_part.cuh", HEAD),
    "part of a device file against the way": ("order", "include/pqkv/detail/cuda/view_part.cuh", HEAD + '#include "../../search/scan.hpp"\n'),
    "operation unknown to CUDA": ("backends", "include/pqkv/detail/host/scan.hpp",
                                  HEAD + "template <>\nstruct kernel<op::scan, backend::host> {};\n"),
    "operation in no table": ("tables", "include/pqkv/detail/host/scan.hpp",
                              HEAD + "template <>\nstruct kernel<op::scan, backend::host> {};\n"),
    "operation that CUDA lacks in no table": ("tables", SCAN, HEAD + "struct kernel<op::scan, backend::cuda> : absent_on_cuda<op::scan> {};\n"),
    "check in no table": ("tables", SCAN, HEAD + "/// The checks of scan().\ntemplate <class T>\nconstexpr status can_scan(T x) noexcept;\n"),
    "operation of a page that no backend has": ("tables", "docs/backends.md", "| `op::gone` | `search/scan.hpp` |\n"),
    "check of a page that is none": ("tables", "docs/errors.md", "| `scan` | `can_gone` |\n"),
    "header in no page": ("tables", "docs/dataflow.md", "SIMD kernels in `detail/host/simd/` (scores)\n"),
    "family of kernels in no page": ("tables", "docs/dataflow.md", ALL_HEADERS + "SIMD kernels in `detail/host/simd/` (scores, rows)\n"),
    "instruction set in no page": ("tables", "docs/policies.md", "| `isa::scalar` |\n"),
    "operation in the wrong column": ("tables", "docs/policies.md", COLUMNS),
    "writer of codebooks that lets a step begin": ("early", "include/pqkv/detail/cuda/codebook.cuh",
                                                   HEAD + "__device__ void f() { block::release_dependents(); }\n"),
    "macro without prefix": ("macro", "include/pqkv/config.hpp", HEAD + "#define HD\n"),
    "macro elsewhere": ("macro", SCAN, HEAD + "# define PQKV_SCAN 1\n"),
    "intrinsic elsewhere": ("intrinsics", SCAN, HEAD + "auto x = _mm256_setzero_ps();\n"),
    "intrinsic header elsewhere": ("intrinsics", SCAN, HEAD + "#include <xmmintrin.h>\n"),
    "neon elsewhere": ("intrinsics", SCAN, HEAD + "auto x = vld1q_f32(p);\n"),
    "printing header": ("quiet", SCAN, HEAD + "#include <iostream>\n"),
    "include against the way": ("order", "include/pqkv/core/view.hpp", HEAD + '#include "../search/scan.hpp"\n'),
    "include of a backend": ("order", SCAN, HEAD + '#include "../detail/host/scan.hpp"\n'),
    "include in angles against the way": ("order", "include/pqkv/core/view.hpp", HEAD + "#include <pqkv/search/scan.hpp>\n"),
    "include of nothing": ("order", SCAN, HEAD + '#include "gone.hpp"\n'),
    "include of itself": ("order", SCAN, HEAD + '#include "scan.hpp"\n'),
    "standard header of another compiler's header": ("standard", "bench/scan.cpp", HEAD + "#include <string>\nstd::uint32_t x;\n"),
    "standard header by way of none": ("standard", "bench/scan.cpp", HEAD + '#include "gone.hpp"\nauto x = std::min(1, 2);\n'),
    "file in an unknown folder": ("order", "include/pqkv/extras/thing.hpp", HEAD),
    "other version": ("version", "vcpkg.json", '{"version": "0.2.0"}'),
    "file of no licence": ("licence", "docs/picture.svg", "<svg/>"),
    "other version to cite": ("version", "CITATION.cff", "version: 0.2.0\n"),
    "other version of the port": ("version", "ports/pqkv/vcpkg.json", '{"version": "0.2.0"}'),
    "other version in names": ("version", "include/pqkv/config.hpp", HEAD + "#define PQKV_MODE PQKV_JOINED(v0_2_0, x)\n"),
    "changelog without the version": ("version", "CHANGELOG.md", "1.0.0\n"),
    "no demo": ("files", "examples/demo.sh", None),
}


class layout(unittest.TestCase):
    def faults(self, changes):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**CLEAN, **changes}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if text is not None:
                    path.write_text(text, encoding="utf-8")
                    path.chmod(0o755)
            return layout_check.tree(folder).check()

    def test_clean_tree(self):
        self.assertEqual(self.faults({}), [])

    def test_planted_faults(self):
        for case, (rule, name, text) in FAULTS.items():
            with self.subTest(case):
                found = self.faults({name: text})
                self.assertTrue(any(f"[{rule}]" in fault for fault in found), f"not found: {found}")

    def test_script_without_permission(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("tests/run.sh", "examples/demo.sh", ".ci/run"):
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(SCRIPT, encoding="utf-8")
                path.chmod(0o644)
            found = layout_check.tree(folder).check()
        self.assertEqual(sum("not executable" in fault for fault in found), 3)


if __name__ == "__main__":
    unittest.main()
