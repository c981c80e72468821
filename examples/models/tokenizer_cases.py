#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the library `tokenizers` makes of many texts: the oracle for minillama's own reader of tokenizer.json.

    tokenizer_cases.py TOKENIZER.json > CASES.jsonl

One JSON object a line, in ASCII: `text`; `ids`, without the tokens that a post-processor adds; `ids_special`, with them; `decoded`, the
text of `ids` with special tokens shown, where a byte that is no part of a character is U+FFFD. The texts are made here, are the same
in every run, and are valid UTF-8. Needs tokenizers; smollm2.sh installs it.
"""
from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import random
from typing import Callable, Iterator

from tokenizers import Tokenizer

most_special_tokens = 8  # of a tokenizer that has hundreds

scripts = [
    "The quick brown fox jumps over the lazy dog.",
    "Déjà vu, naïve façade, œuvre, Ærø, straße, Łódź, \u0130stanbul, \u0131ş\u0131k.",
    "\u0130I\u0131i ǅ ǈ ʰʱ ﬁnd ﬃ ẞ \u017f",
    "ἐν ἀρχῇ ἦν ὁ λόγος Καλημέρα",
    "Привет, мир! Ёлка и їжак.",
    "مرحبا بالعالم، ك\u064eت\u064eب\u064e ١٢٣",
    "ש\u05b8\u05c1לו\u05b9ם עולם",
    "नमस\u094dत\u0947 द\u0941न\u093fय\u093e १२३ क\u094dष",
    "สว\u0e31สด\u0e35ชาวโลก ๑๒๓",
    "你好，世界。一二三，第１２３章",
    "こんにちは世界、カタカナーｶﾀｶﾅ々",
    "안녕하세요 세계 \u1112\u1161\u11ab",
    "გამარჯობა Բարեւ እንደምን",
    "𐌰𐌱𐌲 𝔄𝔟𝟙 𠀀𪛖",
    "😀👍\U0001f3fd 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🇫🇷",
    "1\ufe0f\u20e3 ❤\ufe0f ☕ ©®™",
    "e\u0301 e\u0301\u0323 n\u0303 \u0301alone \u0301\u0302\u0303 a\u20dd",
    "Zalgo: Z\u0351\u036b\u0343a\u0310\u0321l\u0357\u034dg\u0336\u0321o\u031a",
    "日本abc123да!?\u3000中",
]

numbers = [
    "0", "7", "42", "123", "1234", "12345", "123456", "1234567890", "3.14159", "1,000,000.00", "-17e-3", "0x1F4", "1st 2nd 3rd",
    "v2.10.3", "2024-02-29T12:34:56Z", "a1b22c333d4444", "12 34  56   78", "½¾⅓", "x²+y³=z⁴", "ⅠⅡⅢ Ⅻ", "①②③", "١٢٣٤٥", "१२३४", "０１２３",
    "1٢2३", "〇一十", "௰௱ ༳", "𝟎𝟏𝟐", "9" * 40, "007 'tis 99's",
]

contractions = [
    "it's I'm you're we've they'll he'd don't", "IT'S I'M YOU'RE WE'VE THEY'LL HE'D DON'T", "It'S i'M You'Re we'vE they'Ll he'D",
    "it’s don’t I’ll", "'s 't 're 've 'm 'll 'd", " 's 't", "''s '''t", "rock'n'roll o'clock 'tis", "it'sit'reit'll",
    "x'stuff x'text x'dark", "'\u017f '\u017ftop it'\u017f", "s't'", "'", "''", "'S", "1's 2'LL", "_'s_", "'\u0130 '\u0131",
]

marks = [
    "", "a", " ", "Hello", " Hello", "Hello ", "  Hello  ", "Hello, world!", "HELLO wOrLd", "...", "?!?!", "(a)[b]{c}<d>", "a-b_c.d/e\\f",
    "user@example.org", "path/to/file.txt:12", "C:\\dir\\new", "$100 €200 £300", "50% #tag &amp; *bold* ~x~ ^y^ `z`",
    "“quoted” ‘text’ — – …", "¿Qué? ¡Olé!", " .", " !", " ,a", ".a", "a.", "!a!b !c", "==> <== -> <- :: ||", "∑∫√∞≠≤", "─│┌ ██",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "HTTPServer2XMLParser",
]

code = [
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < 10; ++i) {\n\tsum += a[i];\n}\n", "\t\tif x:\n\t\t\tpass",
    "#include <vector>\r\nint main() {}\r\n", "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\"}", "<a href=\"x\">y</a>",
    "SELECT * FROM t WHERE id='1';", "x = \"\"\"\n\n  y\n\"\"\"\n", "# Title\n\n- one\n- two\n\n```\ncode\n```\n",
    "a\n\nb\n\n\nc\n\n\n\nd", "key:   value\nother:\tvalue\n", "    four\n        eight\n  two\n",
]

# Characters that some definition of a blank has and others have not.
odd_blanks = [
    "\u00a0", "\u1680", "\u180e", "\u0085", "\u2000", "\u2003", "\u2007", "\u2009", "\u200a", "\u200b", "\u200c", "\u200d", "\u2028",
    "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f",
]

controls = [
    "a\x00b", "\x00", "\x01\x02\x03", "a\x07b\x08c", "\x1b[31mred\x1b[0m", "x\x7fy", "\u0080\u0081\u009f", "a\u00adb",
    "\u200e\u200f\u202a\u202e", "\ufff9\ufffa\ufffb", "\ufffd", "\ufffe\uffff", "\ue000\uf8ff", "\U000e0041\U000e007f", "\U0010ffff",
    "\u0378\u0530",
]

long_texts = [
    "a" * 300, "ab" * 200, "Donau" + "dampfschiff" * 20, "é" * 100, "中" * 100, "😀" * 40, "-" * 200, "=" * 63 + "\n" + "=" * 64,
    "ha" * 50 + " " + "HA" * 50, " " * 100, " " * 257 + "x", "\n" * 50, "\t" * 33, "na na " * 60, "\u0301" * 30, "0" * 300,
]


def blanks() -> Iterator[str]:
    """Runs of up to three of the usual blanks, between letters and between digits; some alone; then line ends of other systems."""
    runs = ["".join(run) for length in (1, 2, 3) for run in itertools.product(" \t\n", repeat=length)]
    for first in range(0, len(runs), 4):
        part = runs[first:first + 4]
        yield "x".join(["", *part, ""])
        yield "1" + "2".join(part) + "!"
    yield from runs[:12]
    yield from ("\r", "\r\n", "\n\r", "\r\r\n", "a\rb", "a\r\nb\r\n\r\nc", " \r\n \r\n", "a \r\n\tb", "\r\n\r\n", "x  \r\n  y",
                "!\r\n\r\n?", ".\n\n .\r\r")
    yield from ("a  b", "a   b", "a    b", "   a", "a   ", " \n ", "  \n\n  x", "\n\n  \n x", "\t \t x", "a\n b", "a \nb", "a!\n\nb",
                "a! \n b", "a\n\n\n b")


def around_odd_blanks() -> Iterator[str]:
    for blank in odd_blanks:
        yield f"a{blank}b {blank} c{blank}{blank}d{blank}1{blank}!{blank}\n{blank}"


def draws(seed: int) -> Callable[[int], int]:
    """Numbers below a bound. Python promises the sequence of random() alone for all versions."""
    source = random.Random(seed)
    return lambda bound: int(source.random() * bound)


def random_texts() -> Iterator[str]:
    below = draws(20240229)
    alphabets = [
        "abcXYZ '\n", "ab \t\r\n", "aB1 .'", "0123456789 ,.", "ée\u0301 ß\u0130", "аб αβ'中ア", "😀\u200d\ufe0f \U0001f3fd",
        " \u00a0\u3000\u180e\u0085\nx", "<|>im_startend", "\u2581 _a", "\u0120\u010a !a", "(){};=+-*/ \n\tifx0",
    ]
    for alphabet in alphabets:
        for length in (12, 40):
            yield "".join(alphabet[below(len(alphabet))] for _ in range(length))
    for low, high in ((0x20, 0x250), (0x370, 0x600), (0x900, 0xe00), (0x2000, 0x2600), (0x3040, 0x9fff), (0xac00, 0xd7a3),
                      (0x1f300, 0x1f650)):
        yield "".join(chr(low + below(high - low)) for _ in range(30))
    for length in (1, 2, 3, 5, 8, 13, 21, 34):
        points = (below(0x110000 - 0x800) for _ in range(length))
        yield "".join(chr(point if point < 0xd800 else point + 0x800) for point in points)


def special_texts(special: list[str]) -> Iterator[str]:
    """The tokenizer's own special tokens inside text, whole and broken, and its ways to write blanks and bytes."""
    for token in special[:most_special_tokens]:
        yield f"before{token}after"
        yield f" {token} \n{token}{token}12{token[:-1]} {token[1:]}{token.upper()}"
    yield "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    yield "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    yield "<s>[INST] Hi [/INST] Hello</s><unk>"
    yield "<0x41><0x0A> \u2581\u2581a\u2581b \u0120a\u010ab"


def texts(special: list[str]) -> list[str]:
    made = [*marks, *scripts, *numbers, *contractions, *code, *blanks(), *around_odd_blanks(), *controls, *long_texts, *random_texts(),
            *special_texts(special)]
    return list(dict.fromkeys(made))


def special_tokens(tokenizer_json: pathlib.Path) -> list[str]:
    return [token["content"] for token in json.loads(tokenizer_json.read_text(encoding="utf-8"))["added_tokens"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the tokens that the library tokenizers gives for many texts, as JSON lines.")
    parser.add_argument("tokenizer", metavar="TOKENIZER.json", type=pathlib.Path)
    args = parser.parse_args()
    try:
        tokenizer = Tokenizer.from_file(str(args.tokenizer))
    except Exception as error:  # the library raises plain Exception
        parser.exit(2, f"tokenizer_cases.py: {args.tokenizer}: {error}\n")
    for text in texts(special_tokens(args.tokenizer)):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        print(json.dumps({"text": text, "ids": ids, "ids_special": tokenizer.encode(text, add_special_tokens=True).ids,
                          "decoded": tokenizer.decode(ids, skip_special_tokens=False)}))


if __name__ == "__main__":
    main()
