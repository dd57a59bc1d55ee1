#!/usr/bin/env python3
"""What weight files (.slu) read from their context, and what they know by heart.

Loss of each target by how much of what ends with it stands earlier in its row of 512 tokens: not the token itself
(new), the token, after the same token as here (pair), after the same two (triple). Of held-out text and of text seen in
training: the difference is what was learned by heart. Uses `sluice logits`, so it needs no PyTorch.
"""
import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

KINDS = ["tale", "novel", "story", "storychat", "dialogue", "instruct"]
SEEN, LENGTH = ["new", "token", "pair", "triple"], 512


def longest_seen(row):
    """An index into SEEN for each target."""
    earlier, out = {(row[0],)}, []
    for t in range(1, len(row)):
        ends = [tuple(row[t - n:t + 1]) for n in range(min(3, t + 1))]
        out.append(max([len(end) for end in ends if end in earlier], default=0))
        earlier.update(ends)
    return np.array(out)


def losses(sluice, model, row, file):
    tokens = ",".join(map(str, row[:-1]))
    subprocess.run([sluice, "logits", "-m", model, "--tokens", tokens, "-o", file], check=True, stderr=subprocess.DEVNULL)
    logits = np.load(file).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(row) - 1), row[1:]]


def choose(tokens, count, scattered):
    """The first rows, or some from anywhere."""
    count = min(count, (len(tokens) - 1) // LENGTH)
    starts = np.random.default_rng(5).integers(0, len(tokens) - LENGTH, count) if scattered else np.arange(count) * LENGTH
    return [tokens[a:a + LENGTH + 1].astype(int).tolist() for a in starts]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="FILE.slu with the tokenizer of the data")
    parser.add_argument("--data", type=Path, required=True, help="token files of tokenizer.py")
    parser.add_argument("--sluice", default="build/sluice")
    parser.add_argument("--rows", type=int, default=24, help="of each kind and part")
    args = parser.parse_args()
    print("| kind | | tokens | " + " | ".join(Path(m).stem for m in args.model) + " |")
    print("| --- " * (3 + len(args.model)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for part in ("train", "val"):
                rows = choose(np.load(args.data / f"{part}.{kind}.npy"), args.rows, part == "train")
                found = [np.concatenate([losses(args.sluice, m, row, f"{folder}/logits.npy") for row in rows]) for m in args.model]
                show = lambda name, some: print(f"| {kind} {part} | {name} | {some.sum()} | " +
                                                " | ".join(f"{loss[some].mean():.3f}" for loss in found) + " |", flush=True)
                seen = np.concatenate([longest_seen(row) for row in rows])
                show("all", seen >= 0)
                for n, name in enumerate(SEEN if part == "val" else []):
                    show(name, seen == n)


if __name__ == "__main__":
    main()
