#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares minillama's scores of texts with those of the packages that LongBench and RULER are scored by.

    reference_metrics.py PROGRAM      PROGRAM is score_texts.cpp, built; reference_metrics.sh calls this

The references are LongBench's and RULER's functions as the package lm_eval has them, over the packages rouge and fuzzywuzzy. Texts are
random: words, marks, numbers and lines of the kinds that decide a score, and some beyond ASCII. Where minillama differs on purpose
(metrics.hpp), texts of that kind are made too, and both sides must be what is said there. Exit code 1: a score differs otherwise.
"""
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import types
import warnings

warnings.simplefilter("ignore")
draw = random.Random(18)
nearly = 1e-9
rounds = 2000

words = ["a", "an", "The", "the", "box", "Box", "box's", "red", "(red)", "two", "2", "Oslo", "Ærø", "straße", "ёлка", "ΛΟΓΟΣ", "don't", "_the_",
         "the-end", "e.g.", "U.S.A.", "well,", "\u2013", "\u201cbox\u201d", "東京", "naïve", "x²", "\u00a0", "\u3000", "---"]
numbers = ["1", "7", "12", "07", "7.5", "17th", "Paragraph 7", "paragraph 12", "Paragraph 1,", "none", "is", "#3", "-7", "1e7", "७", "７"]
classes = ["Food", "Food type", "Date", "Place", "Other place", "Other", "Da", "Number of something", "Number"]
code = ["return", "self.x", "=", "(", ")", "if", "not", "len", "[i]", "for", "range", "+ 1", "é", "\"a b\"", "{", "};"]


def text_of(parts, most, between=(" ",)):
    return "".join(draw.choice(parts) + draw.choice(between) for _ in range(draw.randint(0, most)))


def package_file(name):
    """A module of lm_eval by its file: the package itself would bring PyTorch along."""
    root = pathlib.Path(importlib.util.find_spec("lm_eval").origin).parent
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), root / "tasks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def references():
    for absent in ("jieba", "transformers"):  # imported there, and not called here
        sys.modules[absent] = types.ModuleType(absent)
    sys.modules["transformers"].AutoTokenizer = None
    longbench, ruler = package_file("longbench/metrics"), package_file("ruler/common_utils")
    best = lambda one: lambda text, answers, names: max(one(text, answer, all_classes=names) for answer in answers)
    return {"qa-f1": best(longbench.qa_f1_score), "rouge-l": best(longbench.rouge_score), "classification": best(longbench.classification_score),
            "retrieval": best(longbench.retrieval_score), "count": best(longbench.count_score), "code": best(longbench.code_sim_score),
            "all": lambda text, answers, names: ruler.string_match_all([text], [answers]),
            # What RULER's own string_match_part says. lm_eval's takes the share of all instead.
            "any": lambda text, answers, names: max(ruler.string_match_all([text], [[answer]]) for answer in answers)}, ruler


def cases():
    for _ in range(rounds):
        answers = [text_of(words, 8) for _ in range(draw.randint(1, 3))]
        text = draw.choice([text_of(words, 12, (" ", " ", "\n", ". ")), draw.choice(answers) + text_of(words, 3)])
        yield "qa-f1", text, answers, []
        yield "rouge-l", text, [answer.replace(" ", ". " if draw.random() < 0.2 else " ") for answer in answers], []
        yield "retrieval", text_of(numbers, 6), [f"Paragraph {draw.randint(1, 20)}" for _ in range(draw.randint(1, 2))], []
        yield "count", text_of(numbers, 6), [str(draw.randint(1, 20))], []
        names = draw.sample(classes, draw.randint(1, len(classes)))
        yield "classification", text_of(names + ["or", "a"], 5), [draw.choice(names)], names
        line = text_of(code, 10)
        comments = "".join(draw.choice(["# note\n", "// note\n", "```cpp\n", "x = 1  # one\n"]) for _ in range(draw.randint(0, 2)))
        wanted = " ".join(draw.choice(code) if draw.random() < 0.2 else word for word in line.split(" "))
        yield "code", draw.choice(["", "\n", "\n\n"]) + comments + (line or "x") + draw.choice(["", "\nmore"]), [wanted], []
        outputs = [draw.choice(["17", "Oslo", "Ås", "ΛΟΓΟΣ", "Ёлка", "8f3a"]) for _ in range(draw.randint(1, 4))]
        said = text_of(outputs + ["18", "oslo", "OSLO", "ås", "ёлка", "170", "8F3A"], 6)
        yield "all", said, outputs, []
        yield "any", said, outputs, []


def ours(program, asked):
    lines = "".join(json.dumps(dict(zip(("by", "text", "answers", "classes"), one))) + "\n" for one in asked)
    ran = subprocess.run([program], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    scores = [float(line) for line in ran.stdout.splitlines()]
    if len(scores) != len(asked):
        sys.exit(f"{len(scores)} of {len(asked)} texts were scored")
    return scores


def check_known_differences(program, theirs, ruler):
    longest = " ".join(f"w{i}" for i in range(1500))
    both = lambda by, text, answers: (ours(program, [(by, text, answers, [])])[0], theirs[by](text, answers, []))
    told = {"rouge-l of 1500 equal words": (both("rouge-l", longest, [longest]), (1, 0)),
            "the share of answers that lm_eval takes for any": ((ours(program, [("any", "Oslo", ["Oslo", "Rome"], [])])[0],
                                                                 ruler.string_match_part(["Oslo"], [["Oslo", "Rome"]])), (1, 0.5))}
    wrong = 0
    for what, (got, wanted) in told.items():
        right = all(abs(a - b) < 1e-6 for a, b in zip(got, wanted))
        wrong += not right
        print(f"{what}: here {got[0]:g}, there {got[1]:g}" + ("" if right else f"; expected {wanted[0]:g} and {wanted[1]:g}"))
    return wrong


def main():
    if len(sys.argv) != 2:
        sys.exit("reference_metrics.py: expected one argument, the program score_texts")
    program, (theirs, ruler) = sys.argv[1], references()
    asked = list(cases())
    counts, wrong = {by: [0, 0, 0] for by in theirs}, 0
    for (by, text, answers, names), score in zip(asked, ours(program, asked)):
        wanted = float(theirs[by](text, answers, names))
        same = abs(score - wanted) <= nearly
        counts[by][0] += same
        counts[by][1] += 1
        counts[by][2] += 0 < wanted < 1
        if not same:
            wrong += 1
            if wrong <= 20:
                print(f"{by}: {text!r}, expected {answers!r}, classes {names!r}: here {score:.6f}, there {wanted:.6f}", file=sys.stderr)
    for by, (same, of, between) in counts.items():
        print(f"{by}: {same} of {of} scores are equal, {between} of them between 0 and 1")
    wrong += check_known_differences(program, theirs, ruler)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
