#!/usr/bin/env python3
"""Draws the curves of docs/results.md from logs of train.py and results of evaluate.py: PNGs, and curves.json.

Curves of names that are in OUT/curves.json and not given again are drawn from there."""
import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def curve(path, window=25):
    """Training loss as means over windows, and every validation."""
    records = {r["step"]: r for r in map(json.loads, open(path))}  # a resumed run repeats steps: the last counts
    records = [records[s] for s in sorted(records)]
    chunks = [records[i:i + window] for i in range(0, len(records) - window // 2, window)]
    mean = lambda c, key: float(np.mean([r[key] for r in c]))
    train = [{"tokens": c[-1]["tokens"], "loss": round(mean(c, "loss"), 4), "lr": c[-1]["lr"],
              "deep": np.mean([r["deep"] for r in c], 0).round(3).tolist()} for c in chunks]
    val = [{"tokens": r["tokens"], **{k: round(v, 4) for k, v in r["val"].items()}} for r in records if "val" in r]
    return {"train": train, "val": val}


def figure(path, xlabel, ylabel="loss, nats a token"):
    """Yields axes; saves the figure when the caller is done with them."""
    fig, axes = plt.subplots(figsize=(6.4, 4), constrained_layout=True)
    yield axes
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", action="append", default=[], metavar="NAME=log.jsonl")
    parser.add_argument("--eval", action="append", default=[], metavar="NAME=eval.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "curves.json"
    curves = json.loads(kept.read_text()) if kept.exists() else {}
    curves.update({name: curve(path) for name, path in (a.split("=") for a in args.log)})
    results = {name: json.loads(Path(path).read_text()) for name, path in (a.split("=") for a in args.eval)}
    kept.write_text(json.dumps(curves) + "\n")
    for axes in figure(args.out / "loss.png", "tokens seen, millions"):
        axes.set_ylim(2.8, 5)  # what comes before is the same for all
        for name, c in curves.items():
            axes.plot([p["tokens"] / 1e6 for p in c["train"]], [p["loss"] for p in c["train"]], label=name)
    for axes in figure(args.out / "position.png", "position in the row"):
        axes.set_xscale("log", base=2)
        for name, r in results.items():
            axes.plot([p["to"] for p in r["by_position"]], [p["loss"] for p in r["by_position"]], "o-", label=name)


if __name__ == "__main__":
    main()
