#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables of a laboratory's results in Markdown: its report, and those of docs/quality.md, which stand between two marks.

    tables.py quality.json PAGE [--check]     writes them into PAGE; --check compares instead, exit code 1 when they differ

A table of PAGE stands between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`; a name is one of `tables`.
"""
from __future__ import annotations

import argparse
import pathlib
import re
import sys
from typing import Any, Callable

from intervals import percent, sign_test
from kept_runs import read_json, refuse, write_whole

Records = list[dict[str, Any]]
names = {"pq 4x8": "pq, 4 x 8 bits", "pq 8x8": "pq, 8 x 8 bits", "oracle": "exact top-k (oracle)", "full": "dense attention", "streaming": "streaming: sinks and window"}
families = {"needles": "needles in text", "list": "key-value lists", "numbers": "numbers in text"}
# Of settings: what has them without being asked to.
marked = {"weighted axes, over attended, 8-bit rows": " (the library's defaults over `quantized_rows`, shown queries)",
          "rotary axes, over attended, 8-bit rows": " (the same, shown none)"}
goals = {10: 0.0, 20: 0.1, 40: 0.4}  # of answers that are kept: the share by which they should be more than exact top-k's
left_out = ("full", "oracle")  # of who is best: they read every key


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)])


def in_order(records: Records, name: str) -> list[Any]:
    """The values of a field, each once, as they come."""
    return list(dict.fromkeys(record[name] for record in records))


def length_name(length: int) -> str:
    for unit in (1024, 1000):
        if length % unit == 0:
            return f"{length // unit} K"
    return str(length)


def best_of_family(records: Records, family: str, one_in: int) -> tuple[int, list[str]]:
    """The most right answers that a selector has there, and which ones have them; the exact top-k, which reads every key, left out."""
    own = [r for r in records if (r["family"], r["one_in"]) == (family, one_in) and r["policy"] not in left_out]
    most = max(r["right"] for r in own)
    return most, [r["policy"] for r in own if r["right"] == most]


def selectors(records: Records) -> str:
    """Right answers by family and budget, with what they cost; the best of a column, the oracle left out, in bold."""
    budgets = sorted(one_in for one_in in in_order(records, "one_in") if one_in != 1)
    columns = [(family, one_in) for family in in_order(records, "family") for one_in in budgets]
    asked = {family: next(r["asked"] for r in records if r["family"] == family) for family in in_order(records, "family")}
    by_key = {(r["policy"], r["family"], r["one_in"]): r for r in records}
    rows = []
    for policy in in_order(records, "policy"):
        row = [names.get(policy, policy)]
        for family, one_in in columns:
            record = by_key[policy, family, 1 if policy == "full" else one_in]
            best = policy in best_of_family(records, family, one_in)[1]
            text = f"{record['right']} ({percent(record['right'], record['asked'])} %)"
            row.append(f"**{text}**" if best else text)
        for figure in ("tokens", "row_bytes", "ranking_bytes"):
            of = [by_key[policy, columns[0][0], 1 if policy == "full" else one_in][figure] for one_in in budgets]
            shown = [f"{value:.0f}" if figure == "tokens" else f"{value / 1000:.0f}" for value in of]
            row.append(shown[0] if policy == "full" else ", ".join(shown))
        rows.append(row)
    at = ", ".join(f"1/{one_in}" for one_in in budgets)
    head = ["selector", *(f"{families[family]}, of {asked[family]}, at 1/{one_in}" for family, one_in in columns), f"tokens at {at}",
            "rows, kB a token", "ranking, kB a token"]
    return table(head, rows)


def tasks(records: Records) -> str:
    """Expected texts found by task and budget, a column for each selector; the best of a row, the oracle left out, in bold."""
    policies = in_order(records, "policy")
    by_key = {(r["policy"], r["family"], r["one_in"]): r for r in records}
    rows = []
    for family in in_order(records, "family"):
        for one_in in sorted(set(in_order(records, "one_in")) - {1}):
            best = best_of_family(records, family, one_in)[1]
            cells = [by_key[policy, family, 1 if policy == "full" else one_in] for policy in policies]
            shown = [f"**{r['right']}**" if policy in best else str(r["right"]) for policy, r in zip(policies, cells)]
            rows.append([family, f"1/{one_in}", str(cells[0]["asked"]), *shown, ", ".join(f"{r['tokens']:.0f}" for r in cells[:2])])
    return table(["task", "at", "of", *(names.get(policy, policy) for policy in policies), "tokens: all, attended"], rows)


def fidelity(records: Records) -> str:
    """How near selections come to exact attention by head; over all families, which a selector's figures do not tell apart."""
    own = [r for r in records if r["family"] == records[0]["family"] and r["policy"] != "full"]
    figures = ("recall", "worst_recall", "mass", "worst_mass", "worst_retrieval_mass", "output_error", "worst_output_error",
               "worst_retrieval_output_error")
    rows = [[names.get(r["policy"], r["policy"]), f"1/{r['one_in']}", *("-" if (value := r.get(name)) is None else f"{value:.3f}" for name in figures)]
            for r in own]
    return table(["selector", "at", "recall", "worst head", "attention mass", "worst head", "worst retrieval head", "output error",
                  "worst head", "worst retrieval head"], rows)


def selectors_verdict(records: Records) -> str:
    """Where pq is the best selector and where it is not, in a sentence for each family."""
    lines = []
    by_key = {(r["policy"], r["family"], r["one_in"]): r for r in records}
    ours = next(policy for policy in in_order(records, "policy") if policy.startswith("pq"))  # what the others were compared with
    for family in in_order(records, "family"):
        for one_in in sorted(set(in_order(records, "one_in")) - {1}):
            most, best = best_of_family(records, family, one_in)
            own, of = by_key[ours, family, one_in]["right"], by_key[ours, family, one_in]["asked"]
            where = f"{families.get(family, family)} at 1/{one_in}"
            named = [policy for policy in best if policy.startswith("pq")]
            if named:
                others = [policy for policy in best if policy not in named]
                lines.append(f"- {where}: {' and '.join(named)} best with {most} of {of}" + (f", and {', '.join(others)} as good." if others else "."))
            else:
                rival = by_key[best[0], family, one_in]
                chance = sign_test(rival["better_than_pq"], rival["worse_than_pq"])
                lines.append(f"- {where}: **{', '.join(best)} is best with {most} of {of}**, {ours} has {own} "
                             f"(it loses {rival['better_than_pq']} to {best[0]} and gains {rival['worse_than_pq']}: p = {chance:.2f}).")
    return "\n".join(lines)


def answers(records: Records) -> str:
    """Kept answers by setting: a column for each length, and one for all of them."""
    budgets, lengths = sorted(in_order(records, "one_in")), sorted(in_order(records, "length"))
    by_key = {(r["setting"], r["length"], r["one_in"]): r for r in records}
    dense = {length: max(r["dense"] for r in records if r["length"] == length) for length in lengths}
    rows = []
    for setting in in_order(records, "setting"):
        own = [[by_key.get((setting, length, one_in)) for one_in in budgets] for length in lengths]
        cells = [", ".join(str(r["kept"]) for r in of) if all(of) else "-" for of in own]
        whole = all(all(of) for of in own)
        sums = [sum(of[i]["kept"] for of in own) for i in range(len(budgets))] if whole else []
        rows.append([setting, *cells, ", ".join(map(str, sums)) or "-", ", ".join(percent(s, sum(dense.values())) for s in sums) or "-"])
    head = ["at " + ", ".join(f"1/{one_in}" for one_in in budgets), *(f"{length_name(n)}, of {dense[n]}" for n in lengths),
            f"all, of {sum(dense.values())}", "interval, %"]
    return table(head, rows)


def more_answers(records: Records) -> str:
    """How many more answers each setting keeps than the first one, and which of the goals it meets; over the lengths that it was asked."""
    budgets, first = sorted(set(in_order(records, "one_in")) & set(goals)), in_order(records, "setting")[0]
    by_key = {(r["setting"], r["length"], r["one_in"]): r for r in records}
    rows = []
    for setting in in_order(records, "setting")[1:]:
        lengths = [n for n in sorted(in_order(records, "length")) if all((setting, n, b) in by_key for b in budgets)]
        if not lengths or not budgets:
            continue
        kept, wanted = ([sum(by_key[of, n, b]["kept"] for n in lengths) for b in budgets] for of in (setting, first))
        more = [(a - b) / b if b else 0.0 for a, b in zip(kept, wanted)]
        met = [f"1/{b}" for b, share in zip(budgets, more) if share >= goals[b]]
        rows.append([f"{setting}{marked.get(setting, '')}", ", ".join(map(str, kept)), ", ".join(map(str, wanted)),
                     ", ".join(f"{a - b:+d} ({100 * share:+.0f} %)" for a, b, share in zip(kept, wanted, more)), ", ".join(met) or "none",
                     str(sum(max(by_key[of, n, b]["dense"] for of in (setting, first) for b in budgets) for n in lengths))])
    at = ", ".join(f"1/{b}" for b in budgets)
    return table([f"at {at}", "kept", "exact top-k", "more", "goals met", "of"], rows)


def divergence_verdict(records: Records) -> str:
    """Where each setting has at most half of the first one's divergence."""
    budgets, first = sorted(in_order(records, "one_in")), in_order(records, "setting")[0]
    by_key = {(r["setting"], r["one_in"]): r["divergence"] for r in records}
    lines = []
    for setting in in_order(records, "setting")[1:]:
        own = [b for b in budgets if (setting, b) in by_key and (first, b) in by_key]
        met = [b for b in own if by_key[setting, b] <= by_key[first, b] / 2]
        said = "**at every budget**" if met == own else f"at {', '.join(f'1/{b}' for b in met)} only" if met else "at no budget"
        lines.append(f"- {setting}{marked.get(setting, '')}: {said}.")
    return "\n".join(lines)


def divergence(records: Records) -> str:
    """Mean and highest divergence by setting, and the mean's share of the first setting's."""
    budgets = sorted(in_order(records, "one_in"))
    by_key = {(r["setting"], r["one_in"]): r for r in records}
    first = in_order(records, "setting")[0]
    rows = [[setting, *(f"{by_key[setting, b]['divergence']:.4f} ({by_key[setting, b]['highest']:.4f})" for b in budgets),
             ", ".join(f"{by_key[setting, b]['divergence'] / by_key[first, b]['divergence']:.2f}" for b in budgets)]
            for setting in in_order(records, "setting") if all((setting, b) in by_key for b in budgets)]
    return table(["", *(f"1/{b}" for b in budgets), "of the first row"], rows)


def first_turn(records: Records) -> str:
    return "\n".join(["```", *(record["line"] for record in records), "```"])


tables: dict[str, tuple[str, Callable[[Records], str]]] = {
    "selectors": ("selectors", selectors),
    "selectors verdict": ("selectors", selectors_verdict),
    "selectors fidelity": ("selectors", fidelity),
    "real-selectors": ("real-selectors", selectors),
    "real-selectors verdict": ("real-selectors", selectors_verdict),
    "real-selectors fidelity": ("real-selectors", fidelity),
    "tasks": ("tasks", tasks),
    "tasks verdict": ("tasks", selectors_verdict),
    "answers": ("answers", answers),
    "answers verdict": ("answers", more_answers),
    "divergence": ("divergence", divergence),
    "divergence verdict": ("divergence", divergence_verdict),
    "first-turn": ("first-turn", first_turn),
}
titles = {
    "selectors": "Every selector, the example's own model",
    "real-selectors": "Every selector, the real model",
    "tasks": "Every selector on tasks whose prompt holds the question, the real model: expected texts found",
    "answers": "Answers of the real model that are kept, by settings",
    "divergence": "Divergence of the real model's next-token distributions, nats a token: mean of the texts, and the highest",
    "first-turn": "Sessions that begin short",
}


def report(document: dict[str, Any]) -> str:
    seeds = " ".join(map(str, document["seeds"])) if document["seeds"] else "the size's own"
    lines = ["# Quality", "", f"Size {document['size']}; seeds: {seeds}. Intervals are of 95 % (Wilson).", ""]
    for name, (part, make) in tables.items():
        if part in document["parts"]:
            lines += [*([f"## {titles[part]}", ""] if name == part else []), make(document["parts"][part]), ""]
    return "\n".join(lines)


def filled(page: str, document: dict[str, Any], of: pathlib.Path) -> str:
    """The page with every marked table made anew."""
    def made(match: re.Match[str]) -> str:
        name = match[1]
        if name not in tables:
            refuse("tables", f"{of}: begin {name}: no such table; known: {', '.join(tables)}")
        part, make = tables[name]
        if part not in document["parts"]:
            refuse("tables", f"{of}: begin {name}: the results have no part {part}")
        return f"<!-- begin {name} -->\n\n{make(document['parts'][part])}\n\n<!-- end {name} -->"
    return re.sub(r"<!-- begin ([^>]*?) -->\n.*?<!-- end \1 -->", made, page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, help="quality.json of a laboratory")
    parser.add_argument("page", type=pathlib.Path, help="Markdown with marked tables")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a table differs from the results")
    args = parser.parse_args()
    document, page = read_json("tables", args.results), args.page.read_text(encoding="utf-8")
    wanted = filled(page, document, args.page)
    if not args.check:
        write_whole(args.page, wanted)
    elif wanted != page:
        print(f"tables: {args.page}: its tables are not those of {args.results}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
