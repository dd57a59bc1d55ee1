"""The Bridge model in plain PyTorch: the reference that the engine and the trainer are measured against.

Every formula is written as in docs/bridge.md, one function per pathway, in whatever type the weights have
(float64 for fixtures). Two forms with one meaning: `forward` runs layer by layer over a whole sequence,
`step` runs token by token over an explicit state. Neither is fast; the trainer has its own forward.

  python tools/reference/bridge.py CHECKPOINT     compares with CHECKPOINT/logits*.npy and routing.json
"""
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass
class Config:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    head_dim: int
    state_size: int
    intermediate_size: int
    inner_size: int = 0  # 0: hidden_size
    n_groups: int = 1
    conv_kernel: int = 4
    gate_block: int = 64
    rms_norm_eps: float = 1e-5
    ssm_type: object = "s6"
    shift_keys: bool = False
    routed_layers: list = field(default_factory=list)
    router_threshold: object = 0.5
    tie_word_embeddings: bool = False
    bos_token_id: object = None
    eos_token_id: object = None
    model_type: str = "bridge"

    def __post_init__(self):
        self.inner_size = self.inner_size or self.hidden_size
        layers = self.num_hidden_layers
        assert self.inner_size % self.head_dim == 0 and self.inner_size % self.gate_block == 0
        assert self.heads % self.n_groups == 0 and self.conv_kernel >= 1
        assert all(0 <= i < layers and self.kind(i) == "s6" for i in self.routed_layers)

    @property
    def heads(self):
        return self.inner_size // self.head_dim

    def kind(self, layer):
        return self.ssm_type if isinstance(self.ssm_type, str) else self.ssm_type[layer]

    def tau(self, layer):
        return self.router_threshold[layer] if isinstance(self.router_threshold, list) else self.router_threshold

    @classmethod
    def load(cls, path):
        raw = json.loads(Path(path).read_text())
        return cls(**{k: v for k, v in raw.items() if k in cls.__dataclass_fields__})

    def save(self, path):
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")


class Weights(nn.Module):
    """Named parameters of given shapes; nested so that state_dict() has the names of the checkpoint layout."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            if isinstance(child, nn.Module):
                self.add_module(name, child)
            else:
                self.register_parameter(name, nn.Parameter(torch.zeros(child)))


def layer_weights(c, layer):
    d, e, f, h = c.hidden_size, c.inner_size, c.intermediate_size, c.heads
    blocks, m = (e // c.gate_block, c.gate_block, c.gate_block), c.state_size // 2
    parts = {
        "norm_mix": Weights(weight=(d,)),
        "norm_mlp": Weights(weight=(d,)),
        "conv": Weights(**{"in": Weights(weight=(3 * e, d)), "kernel": Weights(weight=(e, 1, c.conv_kernel), bias=(e,)),
                           "norm": Weights(weight=(e,))}),
        "bridge": Weights(input_gate=Weights(weight=blocks, bias=(e,)), recurrence_gate=Weights(weight=blocks, bias=(e,)),
                          Lambda=(e,), kappa=(e,), omega=(e,), gamma=(e,)),
        "out": Weights(weight=(d, e)),
        "mlp": Weights(gate=Weights(weight=(f, d)), up=Weights(weight=(f, d)), down=Weights(weight=(d, f))),
    }
    if layer in c.routed_layers:
        parts["router"] = Weights(weight=(d,), bias=(1,))
    if c.kind(layer) == "s6":
        rows = 2 * e + 2 * c.n_groups * c.state_size + h
        parts["ssm"] = Weights(**{"in": Weights(weight=(rows, d)), "A_log": (h,), "dt_bias": (h,)},
                               D=(e,), norm=Weights(weight=(e,)))
    else:
        parts["ssm"] = Weights(**{"in": Weights(weight=(2 * e, d))}, log_dt=(e,), log_A_real=(e, m), A_imag=(e, m),
                               C=(e, m, 2), D=(e,), norm=Weights(weight=(e,)))
    return Weights(**parts)


def softplus(x):
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def head_norm(x, weight, head_dim, eps):
    y = x.unflatten(-1, (-1, head_dim))
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight


def block_diagonal(x, gate):
    """[..., e] through blocks [e/b, b(out), b(in)]."""
    y = x.unflatten(-1, (gate.weight.shape[0], -1))
    return torch.einsum("...gi,goi->...go", y, gate.weight).flatten(-2) + gate.bias


def route(u, router, tau):
    """rho, the depth of each token: 0 is light. Written so that it is exact near tau = 1."""
    logit = u @ router.weight + router.bias[0]
    return torch.zeros_like(logit) if tau == 1 else (1 - torch.sigmoid(-logit) / (1 - tau)).clamp(min=0)


def s4d_constants(w, dtype):
    """A_bar, A_bar - 1 and C (A_bar - 1) / A, in float64."""
    a = torch.complex(-torch.exp(w.log_A_real.double()), w.A_imag.double())
    x = torch.exp(w.log_dt.double())[:, None] * a
    half = torch.sin(x.imag / 2)  # expm1(x + iy) = expm1(x) cos y - 2 sin^2(y/2) + i exp(x) sin y
    grow = torch.complex(torch.expm1(x.real) * torch.cos(x.imag) - 2 * half * half, torch.exp(x.real) * torch.sin(x.imag))
    c = torch.view_as_complex(w.C.double().contiguous())
    complex_type = torch.complex128 if dtype == torch.float64 else torch.complex64
    return (grow + 1).to(complex_type), (c * grow / a).to(complex_type)


def s6_project(c, weight, u, before):
    """W_ssm u; with shifted keys the rows of B read u of the token before."""
    projected = u @ weight.T
    if not c.shift_keys:
        return projected
    keys = slice(2 * c.inner_size, 2 * c.inner_size + c.n_groups * c.state_size)
    return torch.cat([projected[..., :keys.start], before @ weight[keys].T, projected[..., keys.stop:]], -1)


def s6_parts(c, w, projected, rho):
    """Splits W_ssm u and forms Delta and log a; head h reads group h / (H/G)."""
    e, gn, h = c.inner_size, c.n_groups * c.state_size, c.heads
    g, r, b, cc, delta = projected.split([e, e, gn, gn, h], -1)
    spread = lambda x: x.unflatten(-1, (c.n_groups, -1)).repeat_interleave(h // c.n_groups, dim=-2)
    delta = rho[..., None] * softplus(delta + w.dt_bias)
    return g, r, spread(b), spread(cc), delta, -torch.exp(w.A_log) * delta


def bridge_gates(w, s):
    """log a and the gated input of the bridge's recurrence."""
    log_a = -8 * softplus(w.Lambda) * torch.sigmoid(block_diagonal(s, w.recurrence_gate))
    gated = torch.sqrt(-torch.expm1(2 * log_a)) * torch.sigmoid(block_diagonal(s, w.input_gate)) * s
    return log_a, gated


class Bridge(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        d = c.hidden_size
        layers = nn.ModuleList(layer_weights(c, i) for i in range(c.num_hidden_layers))
        self.model = Weights(embed=Weights(weight=(c.vocab_size, d)), layers=layers, norm=Weights(weight=(d,)))
        if not c.tie_word_embeddings:
            self.lm_head = Weights(weight=(c.vocab_size, d))

    @classmethod
    def load(cls, folder, dtype=torch.float32):
        folder = Path(folder)
        model = cls(Config.load(folder / "config.json"))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.to(dtype)

    def save(self, folder, dtype=torch.float32):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder / "config.json")
        tensors = {k: v.detach().to(dtype).contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @torch.no_grad()
    def initialize(self, seed=0):
        """The initial weights of docs/bridge.md."""
        torch.manual_seed(seed)
        c = self.config
        for name, p in self.named_parameters():
            leaf = ".".join(name.split(".")[-2:])
            if leaf == "kernel.weight":
                p.normal_(0, c.conv_kernel ** -0.5)
            elif leaf.endswith(".A_log"):
                p.copy_(torch.empty_like(p).uniform_(1, 16).log())
            elif leaf.endswith(".dt_bias"):
                dt = torch.exp(torch.empty_like(p).uniform_(np.log(1e-3), np.log(1e-1)))
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif leaf.endswith(".Lambda"):
                decay = torch.empty_like(p).uniform_(0.9, 0.999)
                rate = -decay.log() / 4  # log a = -8 softplus(Lambda) f at f = 1/2
                p.copy_(rate + torch.log(-torch.expm1(-rate)))
            elif leaf.endswith(".omega"):
                p.normal_(0, 0.5)
            elif leaf.endswith(".log_dt"):
                p.uniform_(np.log(1e-3), np.log(1e-1))
            elif leaf.endswith(".A_imag"):
                p.copy_(np.pi * torch.arange(p.shape[1]).expand_as(p))
            elif leaf.endswith(".C"):
                p.normal_(0, 0.5 ** 0.5)
            else:
                constant = {"kappa": 0.1, "D": 1.0, "log_A_real": float(np.log(0.5)), "gamma": 0.0}.get(leaf.split(".")[-1])
                if leaf == "router.bias":
                    constant = 2.0  # start deep
                elif leaf.startswith("norm") or leaf == "norm.weight":
                    constant = 0.1 if ".conv." in name else 1.0
                elif leaf.endswith(".bias"):
                    constant = 0.0
                if constant is not None:
                    p.fill_(constant)
                else:
                    p.normal_(0, 0.02)
                if leaf in ("out.weight", "down.weight"):
                    p.div_((2 * c.num_hidden_layers) ** 0.5)
        return self

    def head(self, x):
        x = rms_norm(x, self.model.norm.weight, self.config.rms_norm_eps)
        weight = self.model.embed.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return x @ weight.T

    def depth(self, layer, w, u, tau):
        if layer not in self.config.routed_layers:
            return torch.ones(u.shape[:-1], dtype=u.dtype)
        return route(u, w.router, self.config.tau(layer) if tau is None else tau)

    def forward(self, tokens, tau=None, routing=None):
        """Logits [B, T, V] of tokens [B, T]. tau replaces every threshold; routing collects rho per routed layer."""
        x = self.model.embed.weight[tokens]
        for layer, w in enumerate(self.model.layers):
            x, rho = self.layer(layer, w, x, tau)
            if routing is not None and layer in self.config.routed_layers:
                routing[layer] = rho
        return self.head(x)

    def layer(self, layer, w, x, tau):
        c, eps = self.config, self.config.rms_norm_eps
        u = rms_norm(x, w.norm_mix.weight, eps)
        rho = self.depth(layer, w, u, tau)
        s, q = self.convolution(w.conv, u)
        m = self.ssm(layer, w.ssm, u, s, rho)
        log_a, gated = bridge_gates(w.bridge, s)
        h, states = torch.zeros_like(s[:, 0]), []
        for t in range(s.shape[1]):
            h = h + torch.expm1(log_a[:, t]) * h + gated[:, t]
            states.append(h)
        x = x + self.mix(w, s, q, torch.stack(states, 1), m, rho)
        return x + self.mlp(w, x, rho), rho

    def convolution(self, w, u):
        p, q, v = (u @ getattr(w, "in").weight.T).chunk(3, -1)
        k = self.config.conv_kernel
        z = F.pad(p * v, (0, 0, k - 1, 0))
        s = sum(z[:, j:z.shape[1] - k + 1 + j] * w.kernel.weight[:, 0, j] for j in range(k)) + w.kernel.bias
        return head_norm(s, w.norm.weight, self.config.head_dim, self.config.rms_norm_eps), q

    def ssm(self, layer, w, u, s, rho):
        c, weight, out = self.config, getattr(w, "in").weight, []
        if c.kind(layer) == "s6":
            projected = s6_project(c, weight, u, F.pad(u, (0, 0, 1, 0))[:, :-1])
            g, r, b, cc, delta, log_a = s6_parts(c, w, projected, rho)
            r = F.silu(r + s)
            rows, state = r.unflatten(-1, (c.heads, -1)), 0
            for t in range(u.shape[1]):
                drive = (delta[:, t, :, None] * rows[:, t])[..., None] * b[:, t, :, None, :]
                state = torch.exp(log_a[:, t])[..., None, None] * state + drive
                out.append((state * cc[:, t, :, None, :]).sum(-1).flatten(-2))
        else:
            g, r = (u @ weight.T).chunk(2, -1)
            r = F.silu(r + s)
            decay, weight = s4d_constants(w, u.dtype)
            state = 0
            for t in range(u.shape[1]):
                state = decay * state + r[:, t, :, None]
                out.append(2 * (weight * state).sum(-1).real)
        return self.ssm_out(w, torch.stack(out, 1) + w.D * r, g, rho)

    def ssm_out(self, w, y, g, rho):
        m = head_norm(y * F.silu(g), w.norm.weight, self.config.head_dim, self.config.rms_norm_eps)
        return m * (rho > 0)[..., None]

    def mix(self, w, s, q, h, m, rho):
        beta = torch.sigmoid(w.bridge.omega * h + w.bridge.gamma)
        o = (1 - beta) * q * (s + w.bridge.kappa * h) + beta * rho[..., None] * m
        return o @ w.out.weight.T

    def mlp(self, w, x, rho):
        n = rms_norm(x, w.norm_mlp.weight, self.config.rms_norm_eps)
        return rho[..., None] * ((F.silu(n @ w.mlp.gate.weight.T) * (n @ w.mlp.up.weight.T)) @ w.mlp.down.weight.T)

    # Step form: one token at a time over an explicit state, as the engine decodes.

    def new_state(self, dtype):
        c, e = self.config, self.config.inner_size
        complex_type = torch.complex128 if dtype == torch.float64 else torch.complex64
        return [{
            "z": torch.zeros(c.conv_kernel - 1, e, dtype=dtype),  # oldest first
            "s": torch.zeros(c.heads, c.head_dim, c.state_size, dtype=dtype) if c.kind(i) == "s6"
            else torch.zeros(e, c.state_size // 2, dtype=complex_type),
            "h": torch.zeros(e, dtype=dtype),
            "u": torch.zeros(c.hidden_size, dtype=dtype),  # of the token before: read with shifted keys only
        } for i in range(c.num_hidden_layers)]

    def step(self, token, state, tau=None):
        """Logits [V] of one token; advances the state in place."""
        x = self.model.embed.weight[token]
        for layer, (w, st) in enumerate(zip(self.model.layers, state)):
            u = rms_norm(x, w.norm_mix.weight, self.config.rms_norm_eps)
            rho = self.depth(layer, w, u, tau)
            s, q = self.step_convolution(w.conv, u, st)
            m = self.step_ssm(layer, w.ssm, u, s, rho, st)
            log_a, gated = bridge_gates(w.bridge, s)
            st["h"] = st["h"] + torch.expm1(log_a) * st["h"] + gated
            x = x + self.mix(w, s, q, st["h"], m, rho)
            x = x + self.mlp(w, x, rho)
        return self.head(x)

    def step_convolution(self, w, u, st):
        p, q, v = (getattr(w, "in").weight @ u).chunk(3, -1)
        window = torch.cat([st["z"], (p * v)[None]])
        st["z"] = window[1:]
        s = (window * w.kernel.weight[:, 0].T).sum(0) + w.kernel.bias
        return head_norm(s, w.norm.weight, self.config.head_dim, self.config.rms_norm_eps), q

    def step_ssm(self, layer, w, u, s, rho, st):
        c, weight = self.config, getattr(w, "in").weight
        if c.kind(layer) == "s6":
            before, st["u"] = st["u"], u
            if rho == 0:
                return torch.zeros_like(s)  # a light token leaves the state untouched
            projected = s6_project(c, weight, u, before)
            g, r, b, cc, delta, log_a = s6_parts(c, w, projected, rho)
            r = F.silu(r + s)
            drive = (delta[:, None] * r.unflatten(-1, (c.heads, -1)))[..., None] * b[:, None, :]
            st["s"] = torch.exp(log_a)[:, None, None] * st["s"] + drive
            y = (st["s"] * cc[:, None, :]).sum(-1).flatten()
        else:
            g, r = (weight @ u).chunk(2, -1)
            r = F.silu(r + s)
            decay, weight = s4d_constants(w, u.dtype)
            st["s"] = decay * st["s"] + r[:, None]
            y = 2 * (weight * st["s"]).sum(-1).real
        return self.ssm_out(w, y + w.D * r, g, rho)


@torch.no_grad()
def compare(folder):
    """Largest difference to the recorded logits, relative to their range, of both forms in both types."""
    folder, worst = Path(folder), 0.0
    tokens = torch.tensor(json.loads((folder / "tokens.json").read_text()))
    for dtype in (torch.float64, torch.float32):
        model = Bridge.load(folder, dtype)
        for path in sorted(folder.glob("logits*.npy")):
            tau = float(path.stem[len("logits_tau"):]) if "_tau" in path.stem else None
            expected = torch.from_numpy(np.load(path)).double()
            routing, state = {}, model.new_state(dtype)
            forms = {"forward": model(tokens[None], tau, routing)[0],
                     "step": torch.stack([model.step(t, state, tau) for t in tokens])}
            for form, logits in forms.items():
                diff = float((logits.double() - expected).abs().max() / (expected.max() - expected.min()))
                worst = max(worst, diff)
                print(f"{folder.name:20} {path.name:18} {str(dtype):14} {form:8} {diff:.1e} of range")
            if tau is None and (folder / "routing.json").exists():
                recorded = json.loads((folder / "routing.json").read_text())
                ours = {str(k): (v[0] > 0).int().tolist() for k, v in routing.items()}
                assert ours == {str(k): v for k, v in recorded.items()}, "routing differs"
    return worst


if __name__ == "__main__":
    limit = 2e-5
    results = [compare(folder) for folder in sys.argv[1:]]
    sys.exit(not results or max(results) > limit)
