#!/usr/bin/env python3
"""What fewer bits cost: makes copies of a model with `flash-moe quantize`, evaluates each with `flash-moe eval` on the
same texts and requests, and writes bench/results/quality.json, from which scripts/pictures.py draws the front.

    python3 scripts/quality.py MODEL EVAL WORK [--flash-moe PROGRAM] [--only NAME ..] [--limit N] [--threads N]

MODEL is the checkpoint in bf16, EVAL a directory with texts (story.jsonl and so on) and requests (tool_calls.jsonl,
json.jsonl, sums.jsonl), WORK a directory for copies, calibration, results and the reference's predictions. What is
there already is not made again, so an interrupted run goes on; remove a file or directory to have it made anew. All
texts come first, then all requests. The table of copies is below. Needs nothing but Python and the program.
"""
import argparse
import json
import math
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench/results/quality.json"
TEXTS = ("story", "tale", "answer", "skill", "mixed", "tool")
# Written by a teacher model; the other sources come from templates and flatter.
TAUGHT = ("tale", "answer")
REQUESTS = ("tool_calls", "json", "sums")
# Every run multiplies with activations in 32-bit floats, so that it shows what the weights' bits cost alone.
PRECISE = ["--device", "cpu", "--precise"]
BITS = (4, 3, 2)


def calibrated(work):
    """Options of a recipe with calibration: WORK/calibration.jsonl where it is, else text that the model writes itself."""
    text = work / "calibration.jsonl"
    source = ["--calibrate", str(text), "--calibration-tokens", "56000"] if text.exists() else ["--calibrate", "self"]
    return [*source, "--method", "refine", "--calibration-dir", str(work / "calibration")]


def copies(work, expert_bytes):
    """Each copy as (name, method, bits, options of `quantize`). `expert_bytes` tells what the experts of a copy take,
    so that mixed widths can be given the same."""
    for bits in BITS:
        yield f"round-{bits}", "plain rounding", bits, ["--recipe", f"experts-{bits}bit", "--method", "round"]
    for bits in BITS:
        yield f"calibrated-{bits}", "calibrated", bits, ["--recipe", f"experts-{bits}bit", *calibrated(work)]
    for bits in (3, 2):
        size = lambda bits=bits: ["--recipe", f"experts-{bits}bit", "--size", str(expert_bytes(f"round-{bits}"))]
        yield f"mixed-{bits}", "calibrated, mixed widths", bits, lambda size=size: [*size(), *calibrated(work)]


def run(command):
    print("$", " ".join(str(part) for part in command), flush=True)
    if subprocess.run(command).returncode != 0:
        sys.exit(f"failed: {' '.join(str(part) for part in command)}")


def estimate(value, digits=6):
    """A number with its interval, shorter than JSON has it."""
    return [round(value["value"], digits), round(value["interval"]["low"], digits), round(value["interval"]["high"], digits)]


def bootstrap(strata, value):
    """The interval of `value(sums)` by a bootstrap over whole documents within each stratum, as `eval` has it; sums are
    those of a document's numbers."""
    draw, found = random.Random(0), []
    for _ in range(2000):
        sums = [0.0] * len(strata[0][0])
        for documents in strata:
            for document in draw.choices(documents, k=len(documents)):
                sums = [total + one for total, one in zip(sums, document)]
        found.append(value(sums))
    found.sort()
    return [round(found[round(1999 * share)], 5) for share in (0.025, 0.975)]


def taught(results):
    """The sources of the teacher together; `eval` has each and all."""
    strata = []
    for source in TAUGHT:
        units = [unit for unit in results["documents"] if unit["source"] == source]
        compared = lambda unit, what: (unit["compared"] or {}).get(what, 0.0)
        parts = [(u["loss"], u["counted"], compared(u, "loss"), compared(u, "divergence")) for u in units]
        strata += [parts] if parts else []
    if not strata:
        return None
    sums = [sum(column) for column in zip(*(part for parts in strata for part in parts))]
    values = {
        "perplexity": lambda s: math.exp(s[0] / s[1]),
        "change": lambda s: math.exp((s[0] - s[2]) / s[1]),
        "kl": lambda s: s[3] / s[1],
    }
    return {name: [round(value(sums), 5), *bootstrap(strata, value)] for name, value in values.items()}


def point(name, method, bits, texts, requests):
    """What quality.json says of a copy: the form is described in bench/results/README.md."""
    facts, summary = texts["facts"], texts["summary"]
    sources = {text["source"]: text for text in summary["texts"]}
    mean, cost = summary["texts"][-1], summary["text_cost"]

    def source(text):
        compared = text["compared"]
        return {
            "perplexity": estimate(text["perplexity"], 4),
            "change": estimate(compared["perplexity_ratio"], 5),
            "kl": estimate(compared["divergence"], 5),
            "same_best": estimate(compared["same_best"], 5),
        }

    def reply(calls):
        kind = "json" if calls["json"] else "number" if calls["number"] else "calls"
        one = {"group": calls["group"], "kind": kind, "replies": calls["way"], "n": calls["n"]}
        return one | {what: estimate(calls[what], 4) for what in ("well_formed", "valid", "exact") if calls[what]}

    return {
        "model": name,
        "bytes_per_token": round(cost["used_bytes"] / cost["tokens"]),
        "perplexity": round(mean["perplexity"]["value"], 4),
        "perplexity_ci": estimate(mean["perplexity"], 4)[1:],
        "note": f"{method}, {facts['device']}, flash-moe {facts['program']}, {facts['date'][:10]}",
        "method": method,
        "bits": bits,
        "expert_bytes": facts["expert_bytes"],
        "trunk_bytes_per_token": facts["trunk_bytes_per_token"],
        "tokens": mean["tokens"],
        "texts": {name: source(sources[name]) for name in (*TEXTS, "mean")} | {"taught": taught(texts)},
        "requests": [reply(calls) for calls in requests["summary"]["calls"]] if requests else [],
    }


def table(points):
    """The numbers as a table for docs/quantize.md."""
    share = lambda value: f"{100 * value[0]:.1f} %"
    change = lambda value: f"{100 * (value[0] - 1):+.2f} % [{100 * (value[1] - 1):+.2f}, {100 * (value[2] - 1):+.2f}]"

    def of(point, group, kind, replies, what):
        found = [r for r in point["requests"] if (r["group"], r["kind"], r["replies"]) == (group, kind, replies)]
        return share(found[0][what]) if found and what in found[0] else ""

    heads = ["experts at", "method", "MB of experts a token", "perplexity", "change", *TAUGHT, "change of both", "KL", "same best"]
    rows = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    for p in points:
        mean = p["texts"]["mean"]
        rows.append([
            "16" if p["bits"] == 16 else str(p["bits"]), p["method"], f"{p['bytes_per_token'] / 1e6:.3f}", f"{p['perplexity']:.3f}",
            change(mean["change"]) if "change" in mean else "",
            *(f"{p['texts'][s]['perplexity'][0]:.3f}" for s in TAUGHT if s in p["texts"]),
            change(p["texts"]["taught"]["change"]),
            f"{mean['kl'][0]:.4f}" if "kl" in mean else "", share(mean["same_best"]) if "same_best" in mean else "",
        ])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    heads = ["experts at", "method", "known: exact, free", "constrained", "valid, free", "constrained",
             "unseen: exact, free", "constrained", "JSON: exact, free", "constrained", "sums"]
    rows = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    for p in points:
        known, unseen = "known tools", "held-out tools"
        rows.append([
            str(p["bits"]), p["method"],
            of(p, known, "calls", "free", "exact"), of(p, known, "calls", "constrained", "exact"),
            of(p, known, "calls", "free", "valid"), of(p, known, "calls", "constrained", "valid"),
            of(p, unseen, "calls", "free", "exact"), of(p, unseen, "calls", "constrained", "exact"),
            of(p, "json", "json", "free", "exact"), of(p, "json", "json", "constrained", "exact"),
            of(p, "sums", "number", "free", "exact"),
        ])
    return "\n".join(lines + [""] + ["| " + " | ".join(row) + " |" for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("eval", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--flash-moe", default="flash-moe", help="the program")
    parser.add_argument("--only", nargs="+", default=[], help="names of copies, or bf16; the results of all others are left as they are")
    parser.add_argument("--limit", type=int, help="the first so many documents and requests of each file, for a trial")
    parser.add_argument("--texts", action="store_true", help="texts alone, no requests")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    work = args.work
    (work / "copies").mkdir(parents=True, exist_ok=True)
    (work / "results").mkdir(exist_ok=True)
    threads = ["--threads", str(args.threads)] if args.threads else []
    limit = ["--limit", str(args.limit)] if args.limit else []
    files = lambda names: [args.eval / f"{name}.jsonl" for name in names]
    reference = work / "reference"

    def results_of(name, part):
        return work / "results" / f"{name}.{part}.json"

    def evaluate(name, part, model, inputs):
        path = results_of(name, part)
        if not path.exists():
            run([args.flash_moe, "eval", model, *inputs, "--out", path, *PRECISE, *limit, *threads])
        return json.loads(path.read_text())

    def expert_bytes(name):
        if results_of(name, "texts").exists():
            return json.loads(results_of(name, "texts").read_text())["facts"]["expert_bytes"]
        return recorded[name]["expert_bytes"]

    recorded = {p["model"]: p for p in json.loads(args.out.read_text())} if args.out.exists() else {}
    table_of_copies = list(copies(work, expert_bytes))
    names = ["bf16", *(name for name, *_ in table_of_copies)]
    if unknown := set(args.only) - set(names):
        sys.exit(f"no copy is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    is_wanted = lambda name: not args.only or name in args.only
    # The model against itself writes the predictions with which all others are compared.
    texts = ["--text", *files(TEXTS), "--against"]
    of_texts = evaluate("bf16", "texts", args.model, [*texts, args.model, "--keep-reference", reference])
    done = [("bf16", "as trained", 16, of_texts)] if is_wanted("bf16") else []
    for name, method, bits, options in table_of_copies:
        if not is_wanted(name):
            continue
        copy = work / "copies" / name
        if not copy.exists():
            run([args.flash_moe, "quantize", args.model, copy, *(options() if callable(options) else options), *threads])
        done.append((name, method, bits, evaluate(name, "texts", copy, [*texts, reference])))
    points = recorded if args.only else {}
    for name, method, bits, of_texts in done:
        model = args.model if name == "bf16" else work / "copies" / name
        requests = None if args.texts else evaluate(name, "requests", model, ["--tools", *files(REQUESTS)])
        points[name] = point(name, method, bits, of_texts, requests)
    place = lambda name: names.index(name) if name in names else len(names)
    points = [points[name] for name in sorted(points, key=place)]
    args.out.write_text("[\n" + ",\n".join(json.dumps(p) for p in points) + "\n]\n")
    print(table(points))


main()
