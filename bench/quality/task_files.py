#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Question sets in RULER's form, for minillama-ask --benchmark: needles of every kind, variables, questions before and after, long replies.

    task_files.py FAMILY --seed 1 --records 10 --bytes 8000 > FILE.jsonl

  single           one number in prose
  identifiers      the same with eight hexadecimal digits
  many keys        a text of such sentences alone, one of which is asked for
  several values   four numbers of one key, all of them wanted
  several keys     four keys in one question
  variables        five names that have one value by assignments to each other, among other assignments
  question first   one number; the question stands before the text too
  second question  one number, behind another question and its answer
  recite           twelve numbered codes in prose, all to be written down in order

A record has `index`, `input`, `outputs`, `answer_prefix`, as RULER's files do; what is right is that the outputs occur in the reply. Texts are
made here, by seed, and are the same on every machine. `input` has at most --bytes characters, all of ASCII.
"""
from __future__ import annotations

import argparse
import json
import random
from typing import Callable

from kept_runs import refuse

Draw = Callable[[int], int]
subjects = ["The baker", "A young clerk", "The old ferryman", "My neighbour", "The harbour master", "A tired teacher", "The gardener",
            "One of the miners", "The postman", "A quiet visitor", "The chemist", "Her brother", "The innkeeper", "A travelling singer"]
verbs = ["found", "carried", "repaired", "sold", "described", "painted", "forgot", "counted", "borrowed", "cleaned", "hid", "returned",
         "measured", "photographed"]
objects = ["a wooden box", "the broken clock", "three bags of flour", "an unsigned letter", "the green bicycle", "a pair of boots",
           "the map of the coast", "two brass lamps", "a basket of pears", "the church bell", "an empty bottle", "the winter coats"]
places = ["near the old bridge", "behind the station", "in the market hall", "at the edge of the forest", "on the second floor",
          "by the river", "in front of the school", "under the stairs", "beside the mill", "along the canal", "in the back garden"]
times = ["before sunrise", "on a rainy Monday", "late in the evening", "during the fair", "after the harvest", "without a word",
         "for the second time", "as the snow melted", "while the others slept", "in the first week of May"]
keys = ["apple", "anchor", "arrow", "badger", "barrel", "beacon", "candle", "canyon", "cedar", "cinder", "copper", "coral", "dagger", "eagle",
        "ember", "falcon", "feather", "garnet", "hammer", "hazel", "helmet", "indigo", "island", "ivory", "kettle", "lantern", "marble",
        "meadow", "mirror", "nickel", "olive", "orchid", "pebble", "pillar", "quartz", "rabbit", "ribbon", "saddle", "silver", "timber",
        "tulip", "velvet", "walnut", "willow"]
# Tokens of a reply at most, behind the part of it that is given.
reply_tokens = {"single": 16, "identifiers": 24, "many keys": 16, "several values": 64, "several keys": 64, "variables": 48,
                "question first": 16, "second question": 16, "recite": 240}
families = list(reply_tokens)


def draws(seed: int) -> Draw:
    """Numbers below a bound. Python promises the sequence of random() alone for all versions."""
    source = random.Random(seed)
    return lambda bound: int(source.random() * bound)


def pick(of: list[str], below: Draw) -> str:
    return of[below(len(of))]


def different(count: int, one: Callable[[Draw], str], below: Draw) -> list[str]:
    """Texts that are all different, in the order in which they were drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[one(below)] = None
    return list(found)


def key_of_two(below: Draw) -> str:
    return f"{pick(keys, below)} {pick(keys, below)}"


def key_of_three(below: Draw) -> str:
    return f"{pick(keys, below)} {key_of_two(below)}"


def number(below: Draw) -> str:
    return str(1000000 + below(9000000))


def identifier(below: Draw) -> str:
    """Eight hexadecimal digits, of which the first is a letter: no reply has one by chance."""
    return "abcdef"[below(6)] + "".join("0123456789abcdef"[below(16)] for _ in range(7))


def name(below: Draw) -> str:
    return "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[below(26)] for _ in range(5))


def sentence(below: Draw) -> str:
    return f"{pick(subjects, below)} {pick(verbs, below)} {pick(objects, below)} {pick(places, below)} {pick(times, below)}.\n"


def hidden(pieces: list[str], size: int, below: Draw) -> str:
    """Prose of at most `size` bytes with the pieces between its sentences, in their order."""
    sentences, left = [], size - sum(map(len, pieces))
    while len(one := sentence(below)) <= left:
        sentences.append(one)
        left -= len(one)
    places_of_pieces = sorted(below(len(sentences) + 1) for _ in pieces)
    for place, piece in reversed(list(zip(places_of_pieces, pieces))):
        sentences.insert(place, piece)
    return "".join(sentences)


def fact(key: str, value: str, what: str = "number") -> str:
    return f"The special {what} of the {key} is {value}.\n"


def a_needle(family: str, size: int, below: Draw) -> tuple[str, list[str], str]:
    """One key is asked for. Input, outputs and what the reply begins with."""
    what, value_of = ("code", identifier) if family == "identifiers" else ("number", number)
    many = family == "many keys"
    all_keys = different(size // 50, key_of_three, below) if many else different(2, key_of_two, below)
    values = dict(zip(all_keys, different(len(all_keys), value_of, below)))
    key, earlier = all_keys[below(len(all_keys))] if many else all_keys[0], all_keys[1]
    question = f"What is the special {what} of the {key}?"
    before = f"Some special {what}s are hidden in the following text. Memorize them.\n"
    before += f"{question}\n" if family == "question first" else ""
    after = f"{question} Answer with the {what} alone."
    if family == "second question":
        after = f"Question: What is the special {what} of the {earlier}?\nAnswer: {values[earlier]}\nQuestion: {after}"
    room = size - len(before) - len(after) - 2
    if many:
        facts = [fact(k, values[k], what) for k in all_keys]
        while sum(map(len, facts)) > room:
            facts.pop(next(i for i, one in enumerate(facts) if one != fact(key, values[key], what)))
        text = "".join(facts)
    else:
        text = hidden([fact(k, values[k], what) for k in (all_keys if family == "second question" else [key])], room, below)
    return f"{before}\n{text}\n{after}", [values[key]], f" The special {what} of the {key} is"


def several(family: str, size: int, below: Draw) -> tuple[str, list[str], str]:
    """Four values are asked for, of one key or of four."""
    all_keys, values = different(6, key_of_two, below), different(6, number, below)
    asked = all_keys[:4]
    if family == "several values":
        all_keys = [all_keys[0]] * 4 + all_keys[4:]
        asked = all_keys[:1]
    pieces = [fact(key, value) for key, value in zip(all_keys, values)]
    for last in range(len(pieces) - 1, 0, -1):
        other = below(last + 1)
        pieces[last], pieces[other] = pieces[other], pieces[last]
    listed = " and of the ".join([", of the ".join(asked[:-1]), asked[-1]] if len(asked) > 1 else asked)
    question = f"What are all the special numbers of the {listed}? Answer with the numbers alone."
    before = "Some special numbers are hidden in the following text. Memorize them.\n"
    text = hidden(pieces, size - len(before) - len(question) - 2, below)
    return f"{before}\n{text}\n{question}", values[:4], f" The special numbers of the {listed} are"


def variables(size: int, below: Draw) -> tuple[str, list[str], str]:
    names, (value, other) = different(10, name, below), different(2, number, below)
    first, second = names[:5], names[5:]
    chain = lambda own, start: [f"VAR {own[0]} = {start}\n", *(f"VAR {b} = VAR {a}\n" for a, b in zip(own, own[1:]))]
    one, two = chain(first, value), chain(second, other)
    pieces = []
    while one or two:
        pieces.append((one if one and (not two or below(2) == 0) else two).pop(0))
    before = "Memorize and track the chain of variable assignments that are hidden in the following text.\n"
    question = f"Which five variables have the value {value}? Answer with their names alone."
    text = hidden(pieces, size - len(before) - len(question) - 2, below)
    return f"{before}\n{text}\n{question}", first, f" The variables that have the value {value} are"


def recite(size: int, below: Draw) -> tuple[str, list[str], str]:
    codes = different(12, identifier, below)
    pieces = [f"Code {place} is {code}.\n" for place, code in enumerate(codes, 1)]
    before = "Twelve codes are hidden in the following text. Memorize them.\n"
    question = "Write down all twelve codes in order, one a line, in the words of the text."
    text = hidden(pieces, size - len(before) - len(question) - 2, below)
    return f"{before}\n{text}\n{question}", codes, "Code 1 is"


least_bytes = 1000  # of a record: the longest question and all facts


def make(family: str, seed: int, records: int, size: int) -> list[dict]:
    """The records of a set. Each family has its own random numbers; a longer set begins with a shorter one."""
    if family not in families:
        refuse("task_files", f"family: expected one of {', '.join(families)}, got {family!r}")
    if size < least_bytes:
        refuse("task_files", f"--bytes: expected at least {least_bytes}, got {size}")
    made = []
    for index in range(records):
        below = draws(seed * 1000003 + families.index(family) * 1009 + index * 64007)
        if family == "variables":
            one = variables(size, below)
        elif family == "recite":
            one = recite(size, below)
        else:
            one = (several if family.startswith("several") else a_needle)(family, size, below)
        made.append(dict(zip(("input", "outputs", "answer_prefix"), one)) | {"index": index})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", help=", ".join(families))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--records", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=8000, help="most bytes of a record's input")
    args = parser.parse_args()
    for record in make(args.family, args.seed, args.records, args.bytes):
        print(json.dumps(record))


if __name__ == "__main__":
    main()
