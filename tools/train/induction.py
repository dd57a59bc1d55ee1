#!/usr/bin/env python3
"""How fast a small model learns to copy from its context: rows of random tokens, repeated once.

Prints the loss on the repeated half, which no model can lower without its state or its attention; chance is
log(64) = 4.16. A change of Bridge's initial weights shows here within two minutes, in text after millions
of tokens.
"""
import argparse
import math

import torch

import model as models
from optim import Optimizer

PIECES, HALF, ROWS = 64, 20, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=["bridge", "transformer"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--closed", action="store_true", help="Bridge without its constant")
    args = parser.parse_args()
    torch.set_num_threads(1)
    models.BRIDGE.update(vocab_size=PIECES, num_hidden_layers=args.layers, routed_layers=[])
    models.TRANSFORMER.update(vocab_size=PIECES, num_hidden_layers=args.layers)
    model = models.build(args.model, twin=False).initialize(1)
    if args.closed:
        for w in model.model.layers:
            getattr(w.ssm, "in").weight.data[:, 0] = 0
    optimizer, total = Optimizer(model, muon=True), 0.0
    for step in range(1, args.steps + 1):
        half = torch.randint(PIECES, (ROWS, HALF))
        row = torch.cat([half, half], 1)
        loss = model.losses(row[:, :-1].contiguous(), row[:, 1:].contiguous(), 0.0)["loss"]
        loss.backward()
        optimizer.step(args.lr * min(1.0, step / 20))
        model.constrain()
        # The first half is random: its share of the mean is at best log(PIECES) for each token.
        total += (loss.item() * (2 * HALF - 1) - math.log(PIECES) * (HALF - 1)) / HALF
        if step % 25 == 0:
            print(f"step {step} repeated half {total / 25:.3f}", flush=True)
            total = 0.0


if __name__ == "__main__":
    main()
