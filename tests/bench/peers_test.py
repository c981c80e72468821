#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison with rivals: the functions of bench/peers/ours.cpp compute what they say, on small inputs, and the turns are
timed as they say. Needs no numpy and no rival.

    peers_test.py LIBRARY
"""
import ctypes
import json
import math
import random
import struct
import sys
import tempfile
import unittest
from pathlib import Path

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "bench/peers"))
import timing  # noqa: E402

lib = ctypes.CDLL(str(Path(sys.argv.pop(1)).resolve())) if len(sys.argv) > 1 else None
size = ctypes.c_size_t


def floats(values):
    return (ctypes.c_float * len(values))(*values)


def bfloat16(values):
    """Cut, not rounded: the inputs are chosen so that it makes no difference."""
    return (ctypes.c_uint16 * len(values))(*(struct.unpack("<I", struct.pack("<f", x))[0] >> 16 for x in values))


def exact(generator, count):
    """Eighths from -4 to 4: bfloat16 holds them."""
    return [generator.randrange(-32, 33) / 8 for _ in range(count)]


class peers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in ("ours_search", "ours_layer"):
            getattr(lib, name).restype = ctypes.c_void_p
        lib.ours_error.restype = lib.ours_version.restype = lib.ours_compiler.restype = ctypes.c_char_p

    def done(self, code):
        self.assertEqual(code, 0, lib.ours_error())

    def test_it_says_what_it_is(self):
        header = (root / "include/pqkv/version.hpp").read_text()
        major = header.split("version_major = ")[1].split(";")[0]
        self.assertTrue(lib.ours_version().startswith(b"pqkv " + major.encode()))
        self.assertRegex(lib.ours_compiler().decode(), r"(g\+\+|clang) \d+")

    def test_both_selections_are_the_best(self):
        generator = random.Random(1)
        for n, k in ((1, 1), (100, 7), (1000, 1000), (5000, 640)):
            scores = [generator.randrange(50) / 4 for _ in range(n)]  # many ties
            best = sorted(sorted(range(n), key=lambda i: (-scores[i], i))[:k])
            for function in (lib.ours_top_k, lib.ours_nth_element):
                indices = (ctypes.c_int32 * k)()
                self.done(function(floats(scores), size(n), size(k), indices, size(2)))
                self.assertEqual(sorted(indices), best)

    def test_kmeans_finds_the_clusters(self):
        generator = random.Random(2)
        centres = [(16 * (i % 4), 16 * (i // 4)) for i in range(16)]
        rows = [x + generator.randrange(-1, 2) / 8 for _ in range(50) for centre in centres for x in centre]
        centroids = (ctypes.c_float * 32)()
        for bits, points in ((32, floats(rows)), (16, bfloat16(rows))):
            self.done(lib.ours_kmeans(points, bits, size(800), size(2), size(16), size(20), centroids))
            error = sum(min((rows[i] - centroids[x]) ** 2 + (rows[i + 1] - centroids[16 + x]) ** 2 for x in range(16)) for i in range(0, 1600, 2))
            self.assertLess(error / 800, 20)  # a random choice of 16 rows leaves some clusters without one; the spread is 320
        self.done(lib.ours_kmeans(floats([1.0] * 1600), 32, size(800), size(2), size(16), size(20), centroids))
        self.assertEqual(list(centroids), [1.0] * 32)  # the only row there is, repeated
        self.assertEqual(lib.ours_kmeans(floats([math.inf] * 1600), 32, size(800), size(2), size(16), size(20), centroids), 1)
        self.assertIn(b"finite rows", lib.ours_error())

    def test_search_scans_and_retrieves_by_its_own_codes(self):
        generator = random.Random(3)
        h, n, d, g, k = 2, 600, 8, 2, 40
        keys, query = exact(generator, h * n * d), exact(generator, h * g * d)
        handle = ctypes.c_void_p(lib.ours_search(bfloat16(keys), size(h), size(n), size(d), size(g), size(2), 4))
        self.assertTrue(handle, lib.ours_error())
        centroids, codes = (ctypes.c_float * (h * 2 * 16 * 4))(), (ctypes.c_uint8 * (h * 2 * n))()
        self.done(lib.ours_search_centroids(handle, centroids))
        self.done(lib.ours_search_codes(handle, codes))
        logits = [[sum(query[q * d + j * 4 + i] * centroids[((q // g * 2 + j) * 16 + codes[(q // g * 2 + j) * n + t]) * 4 + i]
                       for j in range(2) for i in range(4)) for t in range(n)] for q in range(h * g)]
        for t in range(0, n, 50):  # each key has its nearest centroid
            sub = keys[t * d:t * d + 4]
            away = [sum((sub[i] - centroids[x * 4 + i]) ** 2 for i in range(4)) for x in range(16)]
            self.assertAlmostEqual(away[codes[t]], min(away), places=3)

        sums = (ctypes.c_uint16 * (h * g * n))()
        self.done(lib.ours_scan(handle, floats(query), sums, size(2)))
        for q in range(h * g):
            low, high = min(range(n), key=lambda t: logits[q][t]), max(range(n), key=lambda t: logits[q][t])
            step = (logits[q][high] - logits[q][low]) / (sums[q * n + high] - sums[q * n + low])
            for t in range(n):
                self.assertAlmostEqual(logits[q][low] + step * (sums[q * n + t] - sums[q * n + low]), logits[q][t], delta=4 * step + 1e-4)

        indices = (ctypes.c_int32 * (h * k))()
        self.done(lib.ours_retrieve(handle, floats(query), size(k), indices, size(2)))
        from math import exp
        for head in range(h):
            scores = [0.0] * n
            for q in range(head * g, head * g + g):
                top = max(logits[q])
                shares = [exp((x - top) / d ** 0.5) for x in logits[q]]
                scores = [old + x / sum(shares) for old, x in zip(scores, shares)]
            mine = list(indices[head * k:head * k + k])
            self.assertEqual(mine, sorted(set(mine)))
            self.assertAlmostEqual(sum(scores[t] for t in mine), sum(sorted(scores)[-k:]), places=5)

        before = bytes(codes)
        self.assertEqual(lib.ours_encode(handle, floats(keys)), 1)  # one head's rows only
        self.assertIn(b"encode", lib.ours_error())
        self.done(lib.ours_search_codes(handle, codes))
        self.assertEqual(bytes(codes), before)
        lib.ours_search_free(handle)
        self.assertFalse(lib.ours_search(bfloat16(keys), size(h), size(n), size(d), size(g), size(3), 4))
        self.assertTrue(lib.ours_error())

    def test_attention_and_layers_attend(self):
        from math import exp
        generator = random.Random(4)
        h, n, d, g = 2, 200, 8, 2
        keys, values, query = exact(generator, h * n * d), exact(generator, h * n * d), exact(generator, h * g * d)

        def plain(q, row_count, extra=()):
            head = q // g
            rows = [(keys[(head * n + t) * d:][:d], values[(head * n + t) * d:][:d]) for t in range(row_count)] + [
                (extra[0][head * d:][:d], extra[1][head * d:][:d]) for _ in range(1 if extra else 0)]
            weights = [exp(sum(a * b for a, b in zip(query[q * d:][:d], key)) / d ** 0.5) for key, _ in rows]
            return [sum(w * value[i] for w, (_, value) in zip(weights, rows)) / sum(weights) for i in range(d)]

        out = (ctypes.c_float * (h * g * d))()
        both = [x for i in range(0, h * n * d, d) for x in keys[i:i + d] + values[i:i + d]]
        self.done(lib.ours_attention(bfloat16(both), size(h), size(n), size(d), size(g), floats(query), out))
        for q in range(h * g):
            for i, wanted in enumerate(plain(q, n)):
                self.assertAlmostEqual(out[q * d + i], wanted, places=2)

        halves = (ctypes.c_uint16 * len(both))(*(struct.unpack("<H", struct.pack("<e", x))[0] for x in both))
        chosen, all_tokens = (ctypes.c_int32 * h)(17, 150), (ctypes.c_int32 * (h * n))(*[t for _ in range(h) for t in range(n)])
        for rows, is_half in ((halves, 1), (bfloat16(both), 0)):
            for indices, k in ((all_tokens, 0), (all_tokens, n), (chosen, 1)):
                self.done(lib.ours_listed_attention(rows, size(is_half), size(h), size(n), size(d), size(g), indices, size(k), floats(query), out))
                for q in range(h * g):
                    for i, wanted in enumerate(values[(q // g * n + chosen[q // g]) * d:][:d] if k == 1 else plain(q, n)):
                        self.assertAlmostEqual(out[q * d + i], wanted, places=2)

        key, value = exact(generator, h * d), exact(generator, h * d)
        for retrieved in (0, n):  # dense, and a budget above all tokens
            layer = ctypes.c_void_p(lib.ours_layer(bfloat16(keys), bfloat16(values), size(h), size(n), size(d), size(g), size(8), size(16),
                                                   size(retrieved), size(1)))
            self.assertTrue(layer, lib.ours_error())
            self.done(lib.ours_step(layer, bfloat16(key), bfloat16(value), floats(query), out))
            for q in range(h * g):
                for i, wanted in enumerate(plain(q, n, (key, value))):
                    self.assertAlmostEqual(out[q * d + i], wanted, places=2)
            self.assertEqual(lib.ours_step(layer, bfloat16(key), bfloat16(value), floats(query), out), 1)  # no room for another
            lib.ours_layer_free(layer)


class turns(unittest.TestCase):
    def test_sides_take_turns_and_begin_in_turns(self):
        order = []

        def burn(name, loops):
            def run(times):
                order.append(name)
                for _ in range(times * loops):
                    pass
            return run
        entry = timing.contest("a race", {"n": 1}, {"ours": timing.side("short", burn("a", 20000)),
                                                    "rival": timing.side("ten times as long", burn("b", 200000), lambda: 2.0)}, lambda: "same")
        result = timing.measure(entry, 4, 0.002)
        self.assertEqual("".join(order), "aabb" + "abbaabba")
        ratio = result["sides"]["rival"]["times_ours"]
        self.assertTrue(2 < ratio < 15, ratio)
        self.assertEqual(result["check"], "same")
        self.assertEqual(len(result["sides"]["ours"]["seconds"]), 4)

    def test_the_record_goes_on_and_refuses_other_settings(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peers.json"
            first = timing.record(path, {"rounds": 3}, {"date": "then", "versions": {"a": "1"}}, False)
            first.keep("kmeans", {"rounds": 3})
            first.leave_out("torch", "not installed")
            again = timing.record(path, {"rounds": 3}, {"date": "now", "versions": {"a": "1"}}, False)
            self.assertTrue(again.has("kmeans"))
            self.assertFalse(again.has("encode"))
            self.assertEqual(again.value["context"]["date"], "then")
            for settings, versions in (({"rounds": 9}, {"a": "1"}), ({"rounds": 3}, {"a": "2"})):
                with self.assertRaises(SystemExit):
                    timing.record(path, settings, {"date": "now", "versions": versions}, False)
                self.assertFalse(timing.record(path, settings, {"date": "now", "versions": versions}, True).has("kmeans"))
            self.assertEqual(json.loads(path.read_text())["left_out"], {"torch": "not installed"})


if __name__ == "__main__":
    if lib is None:
        sys.exit("peers_test.py: the path of the library is needed")
    unittest.main()
