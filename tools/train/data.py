"""Rows of tokens in an order that depends only on the seed and the step, so that both models see the same text.

Each row is drawn from one kind of text, in proportion to the mix; within a kind the documents are shuffled
anew each epoch and read on row by row. State is a position per kind, so that a run resumes exactly.
"""
from pathlib import Path

import numpy as np
import torch

# Shares of the rows. The decay phase has more chat and the simplest stories: what the model should sound like.
STABLE = {"tale": 0.36, "novel": 0.16, "story": 0.06, "storychat": 0.04, "dialogue": 0.34, "instruct": 0.04}
DECAY = {"tale": 0.30, "novel": 0.04, "story": 0.12, "storychat": 0.10, "dialogue": 0.36, "instruct": 0.08}
END = 0  # <|endoftext|>


class Kind:
    """An endless stream over one kind's documents."""

    def __init__(self, path, seed):
        self.tokens = np.load(path)
        ends = np.flatnonzero(self.tokens == END) + 1
        self.documents = list(zip(np.concatenate([[0], ends[:-1]]), ends))
        self.seed, self.epoch, self.position = seed, -1, 0
        self.start_epoch(0)

    def start_epoch(self, epoch):
        order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.documents))
        self.stream = np.concatenate([self.tokens[a:b] for a, b in (self.documents[i] for i in order)])
        self.epoch, self.position = epoch, 0

    def take(self, n):
        if self.position + n > len(self.stream):
            self.start_epoch(self.epoch + 1)
        row = self.stream[self.position:self.position + n]
        self.position += n - 1  # the last token is the next row's first input
        return row


class Rows:
    def __init__(self, folder, seed=1):
        self.seed = seed
        self.kinds = {k: Kind(Path(folder) / f"train.{k}.npy", [seed, i]) for i, k in enumerate(STABLE)}

    def batch(self, step, rows, length, decay):
        """Inputs and targets [rows, length] of this step. Steps must be asked for in order."""
        mix = DECAY if decay else STABLE
        draw = np.random.default_rng([self.seed, 7, step]).choice(list(mix), size=rows, p=list(mix.values()))
        block = torch.from_numpy(np.stack([self.kinds[k].take(length + 1) for k in draw]).astype(np.int64))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def state(self):
        return {k: (v.epoch, v.position) for k, v in self.kinds.items()}

    def restore(self, state):
        for k, (epoch, position) in state.items():
            self.kinds[k].start_epoch(epoch)
            self.kinds[k].position = position


def validation(folder, kinds, length, rows):
    """The first rows of each kind's validation tokens: {kind: [rows, length + 1]}."""
    out = {}
    for kind in kinds:
        tokens = np.load(Path(folder) / f"val.{kind}.npy").astype(np.int64)
        count = min(rows, (len(tokens) - 1) // length)
        out[kind] = torch.from_numpy(np.stack([tokens[i * length:(i + 1) * length + 1] for i in range(count)]))
    return out
