# SPDX-License-Identifier: Apache-2.0
"""Training rows and test prompts: documentation text with facts in it, and questions about the facts.

A row asks many questions, so that nearly every step trains retrieval. Four kinds of rows (README.md gives the forms):
needles 60 %, key-value lists 20 %, variables 12 %, copies of earlier spans 8 %. Every byte of a row has a code:
text (0), copied (1), answer (2); the loss weighs them differently.
"""
from __future__ import annotations

import collections
import dataclasses
import lzma
import math
import pathlib
import random
import re
from typing import Callable, Iterator

import numpy as np
import torch

text_code, copy_code, answer_code = 0, 1, 2
evaluation_share = 0.03  # the last part of the text
usual_question_bytes = 75
copy_lead_bytes = 12  # the start of a copy cannot be foreseen

event = tuple[int, int, str, int, int]  # place in the text, order, inserted piece, coded bytes at its end, their code


@dataclasses.dataclass
class text_part:
    """One part of the text with the words that keys and values are made of; the two parts share no word."""

    text: str
    words: list[str]


def load_parts(path: pathlib.Path) -> tuple[text_part, text_part]:
    """The training part and the evaluation part of a text file (plain or .xz)."""
    raw = lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes()
    return split_parts(raw.decode("ascii", "ignore"))


def split_parts(text: str) -> tuple[text_part, text_part]:
    counts = collections.Counter(re.findall(r"\b[a-z]{4,9}\b", text[:20_000_000]))
    words = sorted(word for word, _ in counts.most_common(6000))
    cut = int(len(text) * (1 - evaluation_share))
    return (text_part(text[:cut], [word for i, word in enumerate(words) if i % 10]),
            text_part(text[cut:], [word for i, word in enumerate(words) if i % 10 == 0]))


def question(key: str) -> str:
    return f"\nQuestion: what is the code of {key}?\nAnswer: "


class writer:
    """Makes keys, values, rows and prompts of one part of the text, from one seed. In `pool_share` of the rows the words come from
    a pool of 8 to 128, so that many keys share a word with others."""

    def __init__(self, part: text_part, seed: int, pool_share: float = 0.0) -> None:
        self.part, self.words, self.pool_share = part, part.words, pool_share
        self.random = random.Random(seed)

    def take_pool(self, size: int) -> None:
        self.words = self.random.sample(self.part.words, min(size, len(self.part.words)))

    def filler(self, length: int) -> str:
        start = self.random.randrange(len(self.part.text) - length + 1)
        return self.part.text[start:start + length]

    def facts(self, count: int) -> list[tuple[str, str]]:
        """Keys (two words, 8 hex digits, or word-number), all different, and values (4 to 7 digits, 8 hex digits, or a word)."""
        pick, words = self.random.random, self.words
        found: dict[str, str] = {}
        while len(found) < count:
            form = int(pick() * 3)
            if form == 0:
                key = f"{words[int(pick() * len(words))]} {words[int(pick() * len(words))]}"
            elif form == 1:
                key = f"{int(pick() * 2**32):08x}"
            else:
                key = f"{words[int(pick() * len(words))]}-{int(pick() * 1000)}"
            form = int(pick() * 3)
            if form == 0:
                digits = 4 + int(pick() * 4)
                value = str(10 ** (digits - 1) + int(pick() * 9 * 10 ** (digits - 1)))
            elif form == 1:
                value = f"{int(pick() * 2**32):08x}"
            else:
                value = words[int(pick() * len(words))]
            found.setdefault(key, value)
        return list(found.items())

    def needle(self, key: str, value: str) -> str:
        form = int(self.random.random() * 4)
        if form == 0:
            return f"\nThe code of {key} is {value}.\n"
        if form == 1:
            return f"\nNote: {key} has the code {value}.\n"
        if form == 2:
            return f"\nRemember that the code of {key} is {value}.\n"
        return f"\n{key}: {value}\n"

    def listing(self, facts: list[tuple[str, str]]) -> str:
        if self.random.random() < 0.3:
            return "\n{\n" + "".join(f'  "{key}": "{value}",\n' for key, value in facts) + "}\n"
        return "\n" + "".join(f'"{key}": "{value}",\n' for key, value in facts)

    def later(self, place: int, last: int) -> int:
        """A place from `place` to `last`, at a distance whose logarithm is uniform."""
        room = last - place
        return place + min(room, int(math.exp(self.random.random() * math.log(room + 1))))

    def ask(self, asked: list[tuple[int, str, str]], length: int, room: int) -> list[event]:
        """Questions (place of the fact, question, answer): half of the time all in the last 15 % of the row, as many as fit there,
        else each one at a skewed distance after its fact. `room` is the bytes of text that the row can still hold."""
        rng = self.random
        if rng.random() < 0.5:
            tail = int(0.15 * length)
            count = max(1, int(tail * rng.uniform(0.3, 1) / usual_question_bytes))
            asked = rng.sample(asked, min(count, len(asked)))
            room -= sum(len(text) + len(answer) + 1 for _, text, answer in asked)
            first = max(0, room - max(0, tail - count * usual_question_bytes))
            return [(rng.randint(max(place, first), max(place, room)), 1, text + answer + "\n", len(answer) + 1, answer_code)
                    for place, text, answer in asked]
        room -= sum(len(text) + len(answer) + 1 for _, text, answer in asked)
        return [(self.later(min(place, room), room), 1, text + answer + "\n", len(answer) + 1, answer_code)
                for place, text, answer in asked]

    def needles_row(self, length: int) -> list[event]:
        rng = self.random
        spacing = math.exp(rng.uniform(math.log(96), math.log(1024)))
        count = max(1, int(length / max(spacing, 150 if rng.random() < 0.5 else 96)))
        facts = self.facts(min(count, max(1, int(0.8 * length / 135))))
        pieces = [self.needle(key, value) for key, value in facts]
        room = length - sum(map(len, pieces))
        most = max(0, room - min(len(facts) * usual_question_bytes, room))  # facts keep clear of the questions' bytes
        places = [rng.randint(0, most) for _ in facts]
        events = [(place, 0, piece, 0, text_code) for place, piece in zip(places, pieces)]
        return events + self.ask([(place, question(key), value) for place, (key, value) in zip(places, facts)], length, room)

    def list_row(self, length: int) -> list[event]:
        rng = self.random
        facts = self.facts(max(2, int(length * rng.uniform(0.10, 0.55) / 27)))
        piece = self.listing(facts)
        while len(piece) > 0.6 * length and len(facts) > 2:
            facts = facts[:len(facts) * 3 // 4]
            piece = self.listing(facts)
        room = length - len(piece)
        count = max(1, min(len(facts), int(rng.uniform(0.2, 0.8) * 0.45 * length / usual_question_bytes)))
        asked = [question(key) + value + "\n" for key, value in rng.sample(facts, count)]
        coded = [len(text) - text.index("Answer: ") - len("Answer: ") for text in asked]
        room -= sum(map(len, asked))
        start = rng.randint(0, max(0, min(room, length // 2 - len(piece))))
        return [(start, 0, piece, 0, text_code)] + [
            (rng.randint(start, max(start, room)), 1, text, size, answer_code) for text, size in zip(asked, coded)]

    def variables_row(self, length: int) -> list[event]:
        """`Set a = 123.` and `Set b = a.`; the question resolves a name through at most three others."""
        rng = self.random
        count = max(2, int(length / math.exp(rng.uniform(math.log(150), math.log(1024)))))
        letters = "abcdefghkmnprstuvwxyz"
        names = list(dict.fromkeys(f"{rng.choice(letters)}{rng.choice(letters)}{rng.randint(0, 99)}" for _ in range(min(count, 4000))))
        chains: list[list[str]] = []  # what follows each name, the number last
        pieces: list[str] = []
        for i, name in enumerate(names):
            other = rng.randrange(i) if i and rng.random() < 0.6 else None
            if other is None or len(chains[other]) > 3:
                chains.append([str(rng.randint(100, 99999))])
            else:
                chains.append([names[other], *chains[other]])
            pieces.append(f"\nSet {name} = {chains[-1][0]}.\n")
        room = length - sum(map(len, pieces))
        most = max(0, room - min(len(names) * 60, room))
        places = sorted(rng.randint(0, most) for _ in names)
        events = [(place, 0, piece, 0, text_code) for place, piece in zip(places, pieces)]
        asked = [(place, f"\nQuestion: resolve {name}.\nAnswer: ", " = ".join(chain))
                 for place, name, chain in zip(places, names, chains)]
        return events + self.ask(asked, length, room)

    def copies(self, text: str, share: float) -> list[event]:
        rng, events, used = self.random, [], 0
        while used < share * len(text):
            size = rng.randint(20, max(20, min(256, len(text) // 4)))
            start = rng.randrange(len(text) - size)
            events.append((self.later(start + size, len(text)), 1, text[start:start + size], size - copy_lead_bytes, copy_code))
            used += size
        return events

    def row(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`length` bytes and their codes."""
        self.words = self.part.words
        if self.random.random() < self.pool_share:
            self.take_pool(int(2 ** self.random.uniform(3, 7)))
        kind = self.random.random()
        if kind < 0.92:
            make = self.needles_row if kind < 0.60 else self.list_row if kind < 0.80 else self.variables_row
            events = make(length)
            text = self.filler(max(0, length - sum(len(piece) for _, _, piece, _, _ in events)))
        else:
            share = self.random.uniform(0.05, 0.3)
            text = self.filler(int(length * (1 - share)))
            events = self.copies(text, share)
        return assemble(text, events, length)

    def positions(self, length: int, reach: int, share: float) -> np.ndarray:
        """0, 1, 2, ..; in `share` of the rows with gaps in at most four places, so that short rows also see far distances.
        The last position is then log-uniform between the row's length and `reach`. Source: PoSE, Zhu et al. 2023."""
        out = np.arange(length, dtype=np.int32)
        rng = self.random
        if reach > length and rng.random() < share:
            skipped = int(length * math.exp(rng.random() * math.log(reach / length))) - length
            cuts = [rng.random() for _ in range(rng.randint(1, 4))]
            for cut in cuts:
                out[int(rng.random() * length):] += int(skipped * cut / sum(cuts))
        return out


def assemble(text: str, events: list[event], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts the pieces into the text at their places, cut or filled with line feeds to `length`."""
    pieces: list[str] = []
    spans: list[tuple[int, int, int]] = []
    size = done = 0
    for place, _, piece, coded, code in sorted(events):
        place = min(place, len(text))
        pieces += (text[done:place], piece)
        size += place - done + len(piece)
        done = place
        if coded > 0:
            spans.append((size - coded, size, code))
    pieces.append(text[done:])
    row = np.frombuffer("".join(pieces).encode("ascii")[:length].ljust(length, b"\n"), dtype=np.uint8)
    codes = np.zeros(length, dtype=np.uint8)
    for begin, end, code in spans:
        codes[begin:end] = code
    return row, codes


class batches(torch.utils.data.IterableDataset):
    """Endless batches: bytes [rows, length + 1] uint8, codes likewise, positions [rows, length] int32. Takes turns among `shapes`."""

    def __init__(self, part: text_part, shapes: list[tuple[int, int]], seed: int, reach: int, gap_share: float,
                 pool_share: float) -> None:
        self.part, self.shapes, self.seed, self.reach, self.gap_share = part, shapes, seed, reach, gap_share
        self.pool_share = pool_share

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        turn, step = (worker.id, worker.num_workers) if worker else (0, 1)
        make = writer(self.part, self.seed * 1000 + turn, self.pool_share)
        while True:
            length, rows = self.shapes[turn % len(self.shapes)]
            made = [make.row(length + 1) for _ in range(rows)]
            places = [make.positions(length, self.reach, self.gap_share) for _ in range(rows)]
            yield (torch.from_numpy(np.stack([row for row, _ in made])), torch.from_numpy(np.stack([codes for _, codes in made])),
                   torch.from_numpy(np.stack(places)))
            turn += step


def single_prompt(make: writer, length: int) -> tuple[str, str]:
    return needle_prompt(make, length, 1)


def keys8_prompt(make: writer, length: int) -> tuple[str, str]:
    return needle_prompt(make, length, 8)


def many_prompt(make: writer, length: int) -> tuple[str, str]:
    return needle_prompt(make, length, max(1, length // 512))


def twins_prompt(make: writer, length: int) -> tuple[str, str]:
    """As many(), but all words come from a pool of 64: most keys share a word with another."""
    make.take_pool(64)
    prompt = many_prompt(make, length)
    make.words = make.part.words
    return prompt


def needle_prompt(make: writer, length: int, count: int) -> tuple[str, str]:
    """`count` facts at random places of `length` bytes, then a question about one of them; with its answer."""
    facts = make.facts(count)
    pieces = [make.needle(key, value) for key, value in facts]
    room = length - sum(map(len, pieces))
    events = [(make.random.randint(0, room), 0, piece, 0, 0) for piece in pieces]
    row, _ = assemble(make.filler(room), events, length)
    key, value = make.random.choice(facts)
    return row.tobytes().decode() + question(key), value + "\n"


def list_prompt(make: writer, length: int) -> tuple[str, str]:
    """A key-value list that takes 30 % of `length` bytes, text before and after it, and a question about one entry."""
    facts = make.facts(max(2, int(length * 0.3 / 27)))
    piece = make.listing(facts)
    room = length - len(piece)
    row, _ = assemble(make.filler(room), [(make.random.randint(0, room), 0, piece, 0, 0)], length)
    key, value = make.random.choice(facts)
    return row.tobytes().decode() + question(key), value + "\n"


prompts: dict[str, Callable[[writer, int], tuple[str, str]]] = {
    "single": single_prompt, "keys8": keys8_prompt, "list": list_prompt, "many": many_prompt,
    "twins": twins_prompt}
