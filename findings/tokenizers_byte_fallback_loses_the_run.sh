#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tokenizers: an answer cut inside a character that is spelled in byte tokens loses the whole characters in front of it too.
#
# Guess:  the bytes that are whole characters are decoded, and only the unfinished one becomes a replacement character, as with the
#         byte-level decoder of the same package, Python's bytes.decode and sentencepiece.
# Seen:   the decoder ByteFallback of 0.23.3 takes a run of byte tokens as one piece: if all of it is not valid, each of its bytes becomes a
#         replacement character. Five of six bytes of two characters give five of them and no character. The more rare characters stand
#         side by side, the more of the answer is gone. DecodeStream is right.
# Hurts:  answers that end at a limit of tokens, and loops that decode the answer so far to look for a stop string or to print what is
#         new: text that was there is gone a token later. Vocabularies with byte fallback, as those of Llama 2, Mistral and Gemma.
# Mend:   DecodeStream; or decode without the last tokens that are bytes, until the result has no replacement character at its end.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: tokenizers==0.23.3 sentencepiece==0.2.3
cd "$folder"
seen=$(PYTHONIOENCODING=utf-8 venv/bin/python 2>/dev/null - <<'PYTHON'
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

text = "日本"
bytes_only = Tokenizer(models.BPE({f"<0x{i:02X}>": i for i in range(256)}, [], byte_fallback=True))
bytes_only.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
level = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
level.decoder = decoders.ByteLevel()
with open("text.txt", "w") as file:
    file.write("a few plain words to learn letters from\n" * 50)
sentencepiece.SentencePieceTrainer.train(input="text.txt", model_prefix="model", vocab_size=300, model_type="bpe", byte_fallback=True,
                                         hard_vocab_limit=False, add_dummy_prefix=False, minloglevel=2)
pieces = sentencepiece.SentencePieceProcessor(model_file="model.model")
ids = {"ByteFallback": bytes_only.encode(text).ids, "ByteLevel": level.encode(text).ids, "sentencepiece": pieces.encode(text)}
assert all(len(x) == 6 for x in ids.values())
stream = decoders.DecodeStream(skip_special_tokens=False)
streamed = ""
for n in range(1, 7):
    streamed += stream.step(bytes_only, ids["ByteFallback"][n - 1]) or ""
    found = [bytes_only.decode(ids["ByteFallback"][:n]), level.decode(ids["ByteLevel"][:n]), pieces.decode(ids["sentencepiece"][:n])]
    print(f"{n} of 6 bytes: ByteFallback {found[0]}, ByteLevel {found[1]}, sentencepiece {found[2]}, DecodeStream {streamed}")
PYTHON
)
expected='1 of 6 bytes: ByteFallback �, ByteLevel �, sentencepiece �, DecodeStream 
2 of 6 bytes: ByteFallback ��, ByteLevel �, sentencepiece ��, DecodeStream 
3 of 6 bytes: ByteFallback 日, ByteLevel 日, sentencepiece 日, DecodeStream 日
4 of 6 bytes: ByteFallback ����, ByteLevel 日�, sentencepiece 日�, DecodeStream 日
5 of 6 bytes: ByteFallback �����, ByteLevel 日�, sentencepiece 日��, DecodeStream 日
6 of 6 bytes: ByteFallback 日本, ByteLevel 日本, sentencepiece 日本, DecodeStream 日本'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
