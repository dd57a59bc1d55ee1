"""AdamW for everything, or Muon for the layers' matrices and AdamW for the rest.

Muon replaces a matrix's momentum by its nearest orthogonal matrix (five Newton-Schulz steps, bf16), scaled to
the size of an AdamW update, so that both share one learning rate and one weight decay.
"""
import torch

import ops

SLOW = 0.1  # share of the rate for logarithms of time: at the full rate a head's memory collapses in a few steps
STEPS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


def orthogonalize(x):
    """[rows, cols] f32, rows >= cols. One matrix at a time: here mm is twice as fast as bmm."""
    a, b, c = COEFFICIENTS
    x = x / (x.norm() + 1e-7)
    x = x.bfloat16() if ops.BF16 else x
    for _ in range(STEPS):
        gram = x.T @ x
        x = torch.addmm(x, x, torch.addmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return x.float()


class Muon:
    def __init__(self, params, momentum=0.95):
        """params: (parameter, sections): a parameter of several stacked matrices, (rows, share of the rate) each, is
        orthogonalised one by one. This matters: in a stack the rows with small gradients (B and C beside g and r)
        would hardly move."""
        self.params, self.momentum = params, momentum
        self.buffers = [torch.zeros_like(p) for p, _ in params]

    @torch.no_grad()
    def step(self, lr, decay):
        for (p, sections), m in zip(self.params, self.buffers):
            m.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(m, self.momentum)
            p.mul_(1 - lr * decay)
            rows = lambda x: x.flatten(0, -2).split([n for n, _ in sections])
            for part, u, (_, share) in zip(rows(p), rows(update), sections):
                tall = u.shape[0] >= u.shape[1]
                step = orthogonalize(u if tall else u.T)
                part.add_(step if tall else step.T, alpha=-lr * share * 0.2 * max(u.shape) ** 0.5)

    def state_dict(self):
        return self.buffers

    def load_state_dict(self, buffers):
        for mine, saved in zip(self.buffers, buffers):
            mine.copy_(saved)


class Optimizer:
    def __init__(self, model, muon, decay=0.1):
        self.decay, matrices, others, plain, slow = decay, [], [], [], []
        for name, p in model.named_parameters():
            is_gate = "_gate.weight" in name
            if muon and ".layers." in name and name.endswith("weight") and (p.ndim == 2 or is_gate):
                matrices.append((p, model.sections(name, p)))
            elif name.endswith((".A_log", ".dt_bias")):
                slow.append(p)
            elif p.ndim >= 2 and "kernel" not in name and ".A_imag" not in name:
                others.append(p)
            else:
                plain.append(p)
        plain += model.training_only()
        groups = [{"params": others, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
        if slow:
            groups.append({"params": slow, "weight_decay": 0.0})
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.muon = Muon(matrices) if matrices else None
        self.params = others + plain + slow + [p for p, _ in matrices]

    def step(self, lr):
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for group, share in zip(self.adam.param_groups, (1, 1, SLOW)):
            group["lr"] = lr * share
        self.adam.step()
        if self.muon:
            self.muon.step(lr, self.decay)
        for p in self.params:
            p.grad = None
        return norm

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "muon": self.muon.state_dict() if self.muon else None}

    def load_state_dict(self, state):
        self.adam.load_state_dict(state["adam"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])
