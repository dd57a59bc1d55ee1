#!/usr/bin/env python3
"""How soon a small model learns to copy from its context: rows that say everything twice.

With --data FOLDER passages of text, 1,024 tokens a step in all, else 20 random ones of 64 pieces. Prints the loss on
each half; the second can be lower only by reading the first out of the state or by attention. A change of Bridge's
design or initial weights shows here within minutes, in text after millions of tokens. Text is the harder test: random
pieces have no grammar to learn first, and Bridge copies them with keys of either kind.
"""
import argparse
from pathlib import Path

import torch

import data
import model as models
from optim import Optimizer

PIECES = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=["bridge", "transformer"])
    parser.add_argument("--data", type=Path, help="token files of tokenizer.py")
    parser.add_argument("--passage", type=int, default=64, help="tokens of text said twice; the longer, the harder")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--closed", action="store_true", help="Bridge without its constant")
    parser.add_argument("--unshifted", action="store_true", help="Bridge with keys of the token itself")
    parser.add_argument("--apart", action="store_true", help="Bridge with B and C drawn apart, not equal at the start")
    return parser.parse_args()


def passages(args):
    """An endless stream of blocks [rows, length]."""
    text = data.Rows(args.data) if args.data else None
    step = 0
    while True:
        yield text.batch(step, 1024 // args.passage, args.passage, False)[0] if text else torch.randint(PIECES, (32, 20))
        step += 1


def make(args):
    if not args.data:
        models.BRIDGE.update(vocab_size=PIECES)
        models.TRANSFORMER.update(vocab_size=PIECES)
    models.BRIDGE.update(num_hidden_layers=args.layers, routed_layers=[], shift_keys=not args.unshifted)
    models.TRANSFORMER.update(num_hidden_layers=args.layers)
    model = models.build(args.model, twin=False).initialize(1)
    if args.closed:
        for w in model.model.layers:
            getattr(w.ssm, "in").weight.data[:, 0] = 0
    if args.apart:
        for w in model.model.layers:
            queries = getattr(w.ssm, "in").weight.data[model.keys].chunk(2)[1]
            queries.copy_(queries[torch.randperm(len(queries))])
    return model


@torch.no_grad()
def halves(model, row):
    """Mean loss on the first and on the second time, after the step's update."""
    features = model.features(row[:, :-1].contiguous())["features"]
    logits = models.linear(features, model.head_weight)
    losses = torch.nn.functional.cross_entropy(logits.float(), row[:, 1:].flatten(), reduction="none").view(len(row), -1)
    half = row.shape[1] // 2
    return losses[:, :half - 1].mean().item(), losses[:, half:].mean().item()


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, rows = make(args), passages(args)
    optimizer = Optimizer(model, muon=True)
    for step in range(1, args.steps + 1):
        half = next(rows)
        row = torch.cat([half, half], 1)
        loss = model.losses(row[:, :-1].contiguous(), row[:, 1:].contiguous(), 0.0)["loss"]
        loss.backward()
        optimizer.step(args.lr * min(1.0, step / 40))
        model.constrain()
        if step % 25 == 0:
            first, again = halves(model, row)
            print(f"step {step} first {first:.3f} again {again:.3f}", flush=True)


if __name__ == "__main__":
    main()
