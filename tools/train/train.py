#!/usr/bin/env python3
"""Trains Bridge or its transformer twin on one or two CPU cores.

Learning rate: warm-up, constant, linear decay to zero over the last --decay-share of the run. The decay begins at
the step in RUN/decay_at if that file exists (write it at any time before), else where --tokens puts it; RUN/stable.pt
is saved just before, so that a longer run can go on from the constant phase. RUN/last.pt resumes exactly.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import data
import model as models
from optim import Optimizer


class Team:
    """Processes that share the rows of a step: one of one thread each is faster than one of two threads."""

    def __init__(self, args):
        self.rank, self.size = args.rank, args.processes
        if self.size > 1:
            dist.init_process_group("gloo", f"file://{(args.run / 'meeting').resolve()}", rank=self.rank, world_size=self.size)

    def mine(self, rows):
        return rows[self.rank::self.size].contiguous()

    def agree(self, number):
        """The first process's number: a file that is read by each might change in between."""
        box = [number]
        if self.size > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]

    def average(self, tensors):
        if self.size > 1:
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
            flat /= self.size
            for t, mean in zip(tensors, flat.split([t.numel() for t in tensors])):
                t.copy_(mean.view_as(t))


class Schedule:
    """When the decay begins and the run ends, and the learning rate of each step."""

    def __init__(self, args, team):
        self.args, self.team, self.per_step = args, team, args.rows * args.length
        self.file = args.run / "decay_at"
        self.read()

    def read(self):
        planned = int(self.args.tokens / self.per_step * (1 - self.args.decay_share))
        self.start = self.team.agree(int(self.file.read_text()) if self.file.exists() else planned)

    def decay_at(self):
        return self.start

    def total(self):
        return round(self.decay_at() / (1 - self.args.decay_share))

    def lr(self, step):
        start, end = self.args.cool_from or self.decay_at(), self.total()
        warm = min(1.0, (step + 1) / self.args.warmup)
        return self.args.lr * warm * min(1.0, (end - step) / max(1, end - start))


def save(path, model, optimizer, rows, step):
    twin = [t.state_dict() for t in getattr(model, "twin", [])]
    state = {"step": step, "model": model.state_dict(), "twin": twin, "optimizer": optimizer.state_dict(),
             "rows": rows.state(), "random": torch.get_rng_state()}
    torch.save(state, f"{path}.part")
    os.replace(f"{path}.part", path)


def resume(path, model, optimizer, rows):
    state = torch.load(path, weights_only=False)
    model.load_state_dict(state["model"])
    for twin, saved in zip(getattr(model, "twin", []), state["twin"]):
        twin.load_state_dict(saved)
    optimizer.load_state_dict(state["optimizer"])
    rows.restore(state["rows"])
    torch.set_rng_state(state["random"])
    return state["step"]


@torch.no_grad()
def validate(model, batches):
    """Mean loss per kind, at the final routing threshold."""
    model.eval()
    out = {}
    for kind, block in batches.items():
        losses = [model.losses(b[:, :-1].contiguous(), b[:, 1:].contiguous())["loss"] * len(b) for b in block.split(8)]
        out[kind] = float(sum(losses)) / len(block)
    model.train()
    return out


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["bridge", "transformer"])
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare.py and tokenizer.py")
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--tokens", type=float, default=20e6)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--decay-share", type=float, default=0.25)
    parser.add_argument("--cool-from", type=int, default=0, help="step at which the rate falls, before the decay's mix of text")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--no-twin", action="store_true", help="Bridge without its training-only twin")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--stop", type=int, default=0, help="stop after this many steps, whatever the schedule")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="start as many, each with its --rank")
    parser.add_argument("--rank", type=int, default=0)
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    team = Team(args)
    schedule = Schedule(args, team)
    torch.manual_seed(1)
    model = models.build(args.model, not args.no_twin).initialize(1)
    optimizer, rows = Optimizer(model, args.optimizer == "muon"), data.Rows(args.data)
    last = args.run / "last.pt"
    step = resume(last, model, optimizer, rows) if last.exists() else 0
    batches = data.validation(args.data, data.STABLE, args.length, 16)
    log = open(args.run / "log.jsonl" if team.rank == 0 else os.devnull, "a", buffering=1)
    began = clock = time.time()
    started, shown = step, []
    while step < schedule.total() and not (args.stop and step >= args.stop):
        schedule.read()
        decay_at = schedule.decay_at()
        if step == decay_at and team.rank == 0:
            save(args.run / "stable.pt", model, optimizer, rows, step)
        inputs, targets = rows.batch(step, args.rows, args.length, step >= decay_at)
        out = model.losses(team.mine(inputs), team.mine(targets), step * schedule.per_step / args.tokens)
        (out["loss"] + out.get("extra", 0)).backward()
        team.average([p.grad for p in optimizer.params] + [out["loss"].detach()])
        lr = schedule.lr(step)
        norm = optimizer.step(lr)
        model.constrain()
        step += 1
        now = time.time()
        record = {"step": step, "tokens": step * schedule.per_step, "loss": out["loss"].item(), "lr": lr, "norm": norm.item(),
                  "deep": [round(s, 4) for s in out.get("deep", [])], "seconds": round(now - clock, 3)}
        record.update({k: out[k].item() for k in ("match", "twin") if k in out})
        clock, shown = now, shown[-19:] + [record["loss"]]
        if team.rank == 0 and (step % args.validate_every == 0 or step == schedule.total()):
            record["val"] = validate(model, batches)
        log.write(json.dumps(record) + "\n")
        if team.rank == 0 and (step % 10 == 0 or "val" in record):
            rate = (step - started) * schedule.per_step / (now - began)
            eta = (schedule.total() - step) * schedule.per_step / rate / 60
            deep = " deep " + " ".join(f"{s:.2f}" for s in record["deep"]) if record["deep"] else ""
            val = " val " + " ".join(f"{k} {v:.3f}" for k, v in record["val"].items()) if "val" in record else ""
            print(f"step {step} tokens {record['tokens'] / 1e6:.2f}M loss {sum(shown) / len(shown):.3f} lr {lr:.2e} "
                  f"{rate:.0f} tok/s{deep} eta {eta:.0f} min{val}", flush=True)
        if team.rank == 0 and (step % args.save_every == 0 or step == schedule.total()):
            save(last, model, optimizer, rows, step)


if __name__ == "__main__":
    sys.exit(main())
