#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# rouge 1.0.1, which LongBench's summaries are scored with: a reply that says the same thing twenty times has the full score.
#
# Guess:  F scores count clipped n-grams, so that a reply of 20 times the length has a precision of about 1/20, as in rouge-score.
# Seen:   n-grams are sets, and ROUGE-L joins the subsequences of sentences (split at full stops) into a set too. The reference twenty times
#         over: ROUGE-1 and ROUGE-L 1.0, where rouge-score gives 0.10. All sentences in the opposite order: ROUGE-L 1.0, where it gives 0.12.
# Hurts:  comparisons of KV compression. A cache that has lost the prompt often makes a model repeat itself, and this score does not tell.
# Mend:   report rouge-score beside it, or the share of repeated n-grams of the replies. rouge-score knows Latin letters and digits alone, by
#         default: two equal texts in Cyrillic or Chinese have 0 there.
#
# Needs python3 with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install rouge==1.0.1 rouge-score==0.1.2 numpy==2.2.6 >/dev/null
cat >scores.py <<'PYTHON'
from rouge import Rouge
from rouge_score import rouge_scorer
reference = "the committee approved the budget after a long debate"
letters = "a. b. c. d. e. f. g. h."
for what, reply, wanted in (("equal", reference, reference), ("twenty times", " ".join([reference] * 20), reference),
                            ("each word three times", " ".join(f"{word} {word} {word}" for word in reference.split()), reference),
                            ("equal, in Cyrillic", "комитет принял бюджет", "комитет принял бюджет"),
                            ("sentences in the opposite order", " ".join(reversed(letters.split())), letters)):
    ours = Rouge().get_scores(reply, wanted)[0]
    other = rouge_scorer.RougeScorer(["rouge1", "rougeL"]).score(wanted, reply)
    print(f"{what}: rouge 1 {ours['rouge-1']['f']:.2f} L {ours['rouge-l']['f']:.2f}, "
          f"rouge-score 1 {other['rouge1'].fmeasure:.2f} L {other['rougeL'].fmeasure:.2f}")
PYTHON
seen=$(v/bin/python -B scores.py)
expected='equal: rouge 1 1.00 L 1.00, rouge-score 1 1.00 L 1.00
twenty times: rouge 1 1.00 L 1.00, rouge-score 1 0.10 L 0.10
each word three times: rouge 1 1.00 L 1.00, rouge-score 1 0.50 L 0.50
equal, in Cyrillic: rouge 1 1.00 L 1.00, rouge-score 1 0.00 L 0.00
sentences in the opposite order: rouge 1 1.00 L 1.00, rouge-score 1 1.00 L 0.12'
printf 'rouge 1.0.1, rouge-score 0.1.2:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
