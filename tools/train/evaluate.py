#!/usr/bin/env python3
"""Validation of a model folder: loss per kind of text, by position, on repeated text, and Bridge's dial.

Works on exported folders (export.py), hence on the weights that ship. Writes one JSON file. Rows do not overlap
and start anywhere in a document, so early positions have little to go by: the curve shows what context is worth.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch

import data
import model as models
import ops

TAUS = [0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1]
EDGES = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]


def load(folder):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    cls = models.TrainBridge if kind == "bridge" else models.TrainTransformer
    model = cls.load(folder)
    return ("bridge" if kind == "bridge" else "transformer"), model.eval()


@torch.no_grad()
def row_losses(model, block, tau=None):
    """Losses [rows, length], and the deep share of each routed layer."""
    out, shares = [], []
    for rows in block.split(4):
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].reshape(-1)
        f = model.features(tokens) if tau is None else model.features(tokens, tau=tau)
        logits = models.linear(f["features"], model.head_weight)
        out.append(ops.cpp.cross_entropy_(logits, targets).view(tokens.shape))
        shares.append(f.get("deep", []))
    return torch.cat(out), np.mean(shares, 0).round(4).tolist()


def by_position(losses):
    """Mean loss between neighbouring edges."""
    return [{"from": a, "to": min(b, losses.shape[1]), "loss": round(losses[:, a:b].mean().item(), 4)}
            for a, b in zip(EDGES, EDGES[1:]) if a < losses.shape[1]]


def repeated(model, block, half=128):
    """Loss on a passage and on the same passage read once more at once: what the model can copy from its context."""
    passage = block[:, :half]
    losses, _ = row_losses(model, torch.cat([passage, passage], 1))
    return {"length": half, "first": round(losses[:, :half - 1].mean().item(), 4), "again": round(losses[:, half:].mean().item(), 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=64, help="at most this many rows of each kind")
    parser.add_argument("--dial", action="store_true", help="Bridge: loss and deep share at other thresholds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name, model = load(args.folder)
    result = {"model": name, "parameters": sum(p.numel() for p in model.parameters()), "length": args.length, "kinds": {}}
    blocks = data.validation(args.data, data.STABLE, args.length, args.rows)
    losses = {}
    for kind, block in blocks.items():
        if len(block):
            losses[kind], deep = row_losses(model, block)
            result["kinds"][kind] = {"tokens": losses[kind].numel(), "loss": round(losses[kind].mean().item(), 4), "deep": deep}
    every = torch.cat(list(losses.values()))
    block = torch.cat([blocks[k] for k in losses])
    result.update(tokens=every.numel(), loss=round(every.mean().item(), 4), by_position=by_position(every),
                  repeated=[repeated(model, blocks["tale"], half) for half in (32, 128)])
    if args.dial and name == "bridge":
        result["dial"] = []
        for tau in TAUS:
            at, deep = row_losses(model, block, tau)
            result["dial"].append({"tau": tau, "loss": round(at.mean().item(), 4), "deep": round(float(np.mean(deep)), 4),
                                   "deep_by_layer": deep})
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("by_position", "dial", "repeated")}))


if __name__ == "__main__":
    main()
