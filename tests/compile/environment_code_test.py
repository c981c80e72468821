#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small functions in assembly, each of which environment_code.py accepts or finds at fault."""
import unittest

import environment_code

SET = "\tldmxcsr\t4(%rsp)\n"
CALL = "\tcall\t_ZN4pqkv6detail10call_apartIZ4workEEvRKT_\n"
APART = "_ZN4pqkv6detail10call_apartIZ4workEEvRKT_:\n\tdivss\t%xmm0, %xmm1\n"


class environment_code_test(unittest.TestCase):
    def faults(self, text):
        setting, faults = environment_code.faults_of(environment_code.functions_of(text))
        self.assertTrue(setting)
        return faults

    def test_call_alone(self):
        self.assertEqual(self.faults("work:\n" + SET + CALL + SET + APART), [])

    def test_moved_before_and_behind(self):
        for moved in ("\tdivss\t%xmm0, %xmm1\n", "\tvsqrtsd\t%xmm0, %xmm0, %xmm1\n", "\tvfmadd231ps\t%ymm0, %ymm1, %ymm2\n"):
            self.assertEqual(self.faults("work:\n" + moved + SET + CALL + SET + APART), ["work"])
            self.assertEqual(self.faults("work:\n" + SET + CALL + SET + ".L3:\n" + moved + APART), ["work"])

    def test_inside_of_another(self):
        inner = "inner:\n\tmulss\t%xmm0, %xmm1\n" + SET + CALL + SET
        self.assertEqual(self.faults(inner + APART + "\tcall\tinner\n"), [])
        self.assertEqual(self.faults(inner + APART + "\tcall\tinner\n" + "other:\n\tcall\tinner\n"), ["inner"])
        # The name of one in a template's argument does not make a function one.
        self.assertEqual(self.faults("_ZN4pqkv3runIZN4pqkv6detail10call_apartEEEv:\n\tmulss\t%xmm0, %xmm1\n" + SET),
                         ["_ZN4pqkv3runIZN4pqkv6detail10call_apartEEEv"])

    def test_exact_ones(self):
        self.assertEqual(self.faults("work:\n\taddsd\t%xmm0, %xmm0\n" + SET + CALL + SET + APART), [])
        self.assertEqual(self.faults("work:\n\taddsd\t%xmm0, %xmm1\n" + SET + CALL + SET + APART), ["work"])

    def test_aarch64(self):
        body = "\tmsr\tfpcr, x0\n\tbl\t_ZN4pqkv6detail10call_apartIZ4workEEvRKT_\n\tmsr\tfpcr, x1\n"
        self.assertEqual(self.faults("work:\n" + body + APART), [])
        self.assertEqual(self.faults("work:\n\tfsqrt\ts0, s1\n" + body + APART), ["work"])


if __name__ == "__main__":
    unittest.main()
