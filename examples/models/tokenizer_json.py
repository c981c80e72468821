#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a tokenizer.json of a vocabulary in another form. tokenizers.sh calls it.

    tokenizer_json.py llama3 tokenizer.model TOKENIZER.json        tiktoken's lines of base64 and rank, as Llama 3 has them
    tokenizer_json.py tekken tekken.json TOKENIZER.json            Mistral's JSON of the same
    tokenizer_json.py llama2 tokenizer.model TOKENIZER.json        SentencePiece's BPE; blanks by the normalizer, as Llama 2's file
    tokenizer_json.py metaspace tokenizer.model TOKENIZER.json     the same; blanks by the pre-tokenizer, as newer files
    tokenizer_json.py gpt2 encoder.json,vocab.bpe TOKENIZER.json   GPT-2's two files
    tokenizer_json.py copy tokenizer.json TOKENIZER.json           one that is there

With --check, the forms llama3, tekken, llama2 and metaspace are compared with tiktoken or sentencepiece on the texts of
tokenizer_cases.py. One line on stdout; exit code 1 when one text differs that should not.
"""
from __future__ import annotations

import argparse
import base64
import json
import pathlib
import sys
from typing import Any, Callable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tokenizer_cases import special_tokens, texts

llama3_pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
llama3_names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1", "finetune_right_pad_id", "step_id",
                "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag", "image"]
llama3_special_tokens = 256
llama2_blank = "\u2581"
# SentencePiece's kinds of pieces.
normal, unknown, control, user_defined = 1, 2, 3, 4

encoder = Callable[[str], list[int]]
reference = Callable[[], encoder]  # loads the library that the form comes from


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others are letters from U+0100 on."""
    shown = {*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)}
    hidden = [value for value in range(256) if value not in shown]
    return [chr(value) if value in shown else chr(0x100 + hidden.index(value)) for value in range(256)]


def merges_by(order: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """All ways to make a token of two, first those of the token whose order is lowest."""
    found = []
    for token in sorted(order, key=order.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in ids and token[cut:] in ids]
        found += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return found


def by_ranks(ranks: dict[bytes, int], first_id: int, special: dict[str, int], pattern: str, begin: str) -> tuple[Tokenizer, reference]:
    letters = byte_letters()
    written = {"".join(letters[value] for value in token): rank for token, rank in ranks.items()}
    ids = {token: rank + first_id for token, rank in written.items()}
    made = Tokenizer(models.BPE(vocab=ids, merges=merges_by(written, ids), ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    if first_id:  # special tokens come first, so they are part of the vocabulary
        made = with_vocabulary(made, special)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sorted(special, key=special.__getitem__)])
    begin_after(made, begin)

    def theirs() -> encoder:
        import tiktoken

        encoding = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        return lambda text: [token + first_id for token in encoding.encode(text)]

    return made, theirs


def with_vocabulary(made: Tokenizer, more: dict[str, int]) -> Tokenizer:
    contents = json.loads(made.to_str())
    contents["model"]["vocab"] = more | contents["model"]["vocab"]
    return Tokenizer.from_str(json.dumps(contents))


def begin_after(made: Tokenizer, begin: str) -> None:
    """Puts the token `begin` in front of a text."""
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1",
                                                        special_tokens=[(begin, made.token_to_id(begin))])


def llama3(file: pathlib.Path) -> tuple[Tokenizer, reference]:
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file.read_bytes().splitlines() if line)}
    names = llama3_names + [f"reserved_special_token_{2 + n}" for n in range(llama3_special_tokens - len(llama3_names))]
    special = {f"<|{name}|>": len(ranks) + n for n, name in enumerate(names)}
    return by_ranks(ranks, 0, special, llama3_pattern, "<|begin_of_text|>")


def tekken(file: pathlib.Path) -> tuple[Tokenizer, reference]:
    """Only the special tokens <unk>, <s> and </s> have their names, the others stand by number."""
    contents = json.loads(file.read_text(encoding="utf-8"))
    config = contents["config"]
    first_id = config["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in contents["vocab"]
             if entry["rank"] < config["default_vocab_size"] - first_id}
    special = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *(f"<SPECIAL_{n}>" for n in range(3, first_id))])}
    return by_ranks(ranks, first_id, special, config["pattern"], "<s>")


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of the fields of a protocol buffer's message."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            at, value, shift, last = at + 1, value | (data[at] & 0x7f) << shift, shift + 7, data[at] < 0x80
            if last:
                return value

    while at < len(data):
        key = number()
        if (kind := key & 7) == 0:
            yield key >> 3, number()
            continue
        length = number() if kind == 2 else {1: 8, 5: 4}[kind]
        yield key >> 3, data[at:at + length]
        at += length


def pieces_of(file: pathlib.Path) -> list[tuple[str, float, int]]:
    """Text, score and kind of SentencePiece's pieces. What would change the text before the pieces are looked for is refused."""
    pieces = []
    for number, value in fields(file.read_bytes()):
        message = dict(fields(value)) if isinstance(value, bytes) else {}
        if number == 1:
            pieces.append((message[1].decode(), float(memoryview(message[2]).cast("f")[0]), message.get(3, normal)))
        elif number == 2 and message.get(3, 1) != 2:
            sys.exit(f"tokenizer_json.py: {file}: model_type {message.get(3, 1)} is not supported (only 2, BPE)")
        elif number == 3 and (message.get(2) or message.get(4, 1)):
            sys.exit(f"tokenizer_json.py: {file}: normalizer {message.get(1)!r} that changes the text is not supported")
    return pieces


def sentencepiece(file: pathlib.Path, metaspace: bool) -> tuple[Tokenizer, reference]:
    pieces = pieces_of(file)
    ids = {text: n for n, (text, _, _) in enumerate(pieces)}
    order = {text: -score for text, score, kind in pieces if kind == normal}
    unknown_text = next(text for text, _, kind in pieces if kind == unknown)
    merges = merges_by(order, {text: ids[text] for text in order})
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown_text, fuse_unk=True, byte_fallback=True))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(llama2_blank, prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(llama2_blank), normalizers.Replace(" ", llama2_blank)])
    made.decoder = decoders.Sequence([decoders.Replace(llama2_blank, " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text, _, kind in pieces if kind in (unknown, control)])
    made.add_tokens([AddedToken(text, normalized=False) for text, _, kind in pieces if kind == user_defined])
    begin_after(made, "<s>")

    def theirs() -> encoder:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_file=str(file)).encode

    return made, theirs


def gpt2(files: str) -> Tokenizer:
    vocabulary, merges = map(pathlib.Path, files.split(","))
    ids = json.loads(vocabulary.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").split("\n")[1:]  # the first is a comment
    made = Tokenizer(models.BPE(vocab=ids, merges=[tuple(line.split()) for line in lines if line]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return made


def differing(made: Tokenizer, theirs: encoder, special: list[str], metaspace: bool) -> tuple[int, list[str]]:
    """Texts without special tokens, of which each form has its own ways: how many, and those whose tokens differ.

    Under Metaspace a text that begins with a blank gets no other in front of it; SentencePiece puts one. Such texts are left out."""
    cases = [text for text in texts([]) if text and not any(token in text for token in special)]
    if metaspace:
        cases = [text for text in cases if not text.startswith((" ", llama2_blank))]
    return len(cases), [text for text in cases if made.encode(text, add_special_tokens=False).ids != theirs(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a tokenizer.json of a vocabulary in another form.")
    parser.add_argument("form", choices=["llama3", "tekken", "llama2", "metaspace", "gpt2", "copy"])
    parser.add_argument("source", help="a file; for gpt2 two, separated by a comma")
    parser.add_argument("out", metavar="TOKENIZER.json", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    theirs, file = None, pathlib.Path(args.source)
    if args.form == "gpt2":
        made = gpt2(args.source)
    elif args.form == "copy":
        made = Tokenizer.from_file(args.source)
    elif args.form in ("llama2", "metaspace"):
        made, theirs = sentencepiece(file, args.form == "metaspace")
    else:
        made, theirs = {"llama3": llama3, "tekken": tekken}[args.form](file)
    if args.form == "copy":
        args.out.write_bytes(file.read_bytes())  # as it is: the library writes what it reads in its own way
    else:
        made.save(str(args.out), pretty=False)
    special = special_tokens(args.out)
    line = f"{made.get_vocab_size(with_added_tokens=True)} tokens, {len(special)} of them added"
    wrong: list[str] = []
    if args.check and theirs:
        count, wrong = differing(made, theirs(), special, args.form == "metaspace")
        line += f"; {count - len(wrong)} of {count} texts as its own library has them"
    print(line)
    for text in wrong:
        print(f"    differs: {text!a}"[:136])
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
