"""The training forms of both models: the reference's parameters, a fast forward in bf16, and Bridge's
training-only parts (twin bridge, routing load).

  python tools/train/model.py     compares losses and gradients with the reference models
"""
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
import bridge as reference_bridge  # noqa: E402
import transformer as reference_transformer  # noqa: E402
import ops  # noqa: E402
from optim import SLOW  # noqa: E402

VOCAB = 4096
CONSTANT, SPREAD = 1.2, 0.08  # channel 0 of Bridge's residual stream; standard deviation of its embedding
KEY_GAIN = 4  # size of B's and C's first rows: a match must stand out of some hundred tokens in between
TOKENS = {"bos_token_id": 0, "eos_token_id": [0, 2]}
# 128 state columns, keys for two heads each: the wider a key, the farther back it is found (docs/results.md).
BRIDGE = dict(vocab_size=VOCAB, hidden_size=256, num_hidden_layers=6, head_dim=64, state_size=128, n_groups=2,
              intermediate_size=384, routed_layers=[1, 2, 3, 4], shift_keys=True, tie_word_embeddings=True, **TOKENS)
# Eight layers, and a width of the MLP that brings the parameter count within 0.5 % of Bridge's.
TRANSFORMER = dict(vocab_size=VOCAB, hidden_size=256, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
                   head_dim=64, intermediate_size=496, tie_word_embeddings=True, **TOKENS)


def linear(x, weight):
    return ops.product(F.linear, x, weight.bfloat16())


class TrainTransformer(reference_transformer.Transformer):
    def losses(self, tokens, targets, progress=1.0):
        x = self.features(tokens)["features"]
        return {"loss": ops.HeadLoss.apply(x, self.head_weight.bfloat16(), targets.reshape(-1))}

    def features(self, tokens):
        """What the head reads, [tokens, d] bf16."""
        c = self.config
        rows, length = tokens.shape
        x = self.model.embed_tokens(tokens).view(-1, c.hidden_size)
        cos, sin = (t.bfloat16()[None, None] for t in self.rotary(length))
        for layer in self.model.layers:
            u = ops.Norm.apply(x, layer.input_layernorm.weight, c.rms_norm_eps)
            heads = lambda y: y.view(rows, length, -1, c.head_dim).transpose(1, 2)
            rotate = lambda y: reference_transformer.rotate(y, cos, sin)
            a = layer.self_attn
            q, k = rotate(heads(linear(u, a.q_proj.weight))), rotate(heads(linear(u, a.k_proj.weight)))
            v = heads(linear(u, a.v_proj.weight))
            y = ops.CausalAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
            y = y.view(rows, -1, length, c.head_dim).transpose(1, 2).reshape(rows * length, -1)
            x = x + linear(y, a.o_proj.weight)
            n = ops.Norm.apply(x, layer.post_attention_layernorm.weight, c.rms_norm_eps)
            h = ops.SwiGlu.apply(linear(n, layer.mlp.gate_proj.weight), linear(n, layer.mlp.up_proj.weight))
            x = x + linear(h, layer.mlp.down_proj.weight)
        return {"features": ops.Norm.apply(x, self.model.norm.weight, c.rms_norm_eps)}

    def rotary(self, length):
        return reference_transformer.rotary(length, self.config.head_dim, self.config.rope_theta, torch.float32)

    def training_only(self):
        return []

    def constrain(self):
        pass

    def sections(self, name, p):
        return [(p.shape[0], 1)]


def bridge_params(w):
    """The vectors of the bridge as the operator takes them: [8, e]."""
    rows = [w.input_gate.bias, w.recurrence_gate.bias, 8 * F.softplus(w.Lambda), w.kappa, w.omega, w.gamma]
    return torch.stack(rows + [torch.zeros_like(w.gamma)] * 2)


def bridge_gates(w, s):
    """Block-diagonal products [blocks, n, 2b] of both gates at once."""
    blocks, b = w.input_gate.weight.shape[:2]
    weight = torch.cat([w.input_gate.weight, w.recurrence_gate.weight], 1).bfloat16()
    return ops.product(torch.bmm, s.view(-1, blocks, b).transpose(0, 1), weight.transpose(1, 2))


class Twin(nn.Module):
    """The bridge's twin: the same recurrence from right to left over the embeddings of later tokens. Its state
    h'_{t+1} predicts x_t through a head of its own; the forward state h_t is trained to match it."""

    SAMPLE = 8  # both losses see every eighth token: a full second head would cost 15 % of the time

    def __init__(self, config):
        super().__init__()
        e, d, b = config.inner_size, config.hidden_size, config.gate_block
        weights = reference_bridge.Weights
        gate = lambda: weights(weight=(e // b, b, b), bias=(e,))
        self.project, self.head = weights(weight=(e, d)), weights(weight=(d, e))
        self.bridge = weights(input_gate=gate(), recurrence_gate=gate(), Lambda=(e,), kappa=(e,), omega=(e,), gamma=(e,))
        self.match = weights(weight=(e, e), bias=(e,))

    @torch.no_grad()
    def initialize(self):
        for p in (self.project.weight, self.head.weight, self.match.weight):
            p.normal_(0, p.shape[1] ** -0.5)
        for gate in (self.bridge.input_gate, self.bridge.recurrence_gate):
            gate.weight.normal_(0, 0.02)
        rate = -torch.empty_like(self.bridge.Lambda).uniform_(0.9, 0.999).log() / 4
        self.bridge.Lambda.copy_(rate + torch.log(-torch.expm1(-rate)))

    def losses(self, h, tokens, embedding):
        """Matching error and cross-entropy of the head. h: forward states [B, T, e]."""
        table = embedding.detach()
        x = F.rms_norm(table[tokens.flip(1)], table.shape[1:])
        s = linear(x.bfloat16(), self.project.weight)
        zero = torch.zeros_like(s)
        _, later = ops.BridgeMix.apply(s, bridge_gates(self.bridge, s), zero, zero, bridge_params(self.bridge))
        later = later.flip(1)[:, 1:]  # h'_{t+1} at place t
        some = slice(int(torch.randint(self.SAMPLE, ())), None, self.SAMPLE)
        h, later, tokens = h[:, :-1][:, some], later[:, some], tokens[:, :-1][:, some]
        match = (h @ self.match.weight.T + self.match.bias - later.detach()).square().mean()
        y = linear(later.bfloat16(), self.head.weight).flatten(0, 1)
        head = ops.HeadLoss.apply(y, table.bfloat16(), tokens.reshape(-1))
        return match, head


class TrainBridge(reference_bridge.Bridge):
    TARGET, LOAD_WEIGHT, TWIN_WEIGHT = 0.5, 0.1, 0.1

    def __init__(self, config, twin=True):
        super().__init__(config)
        self.twin = [Twin(config)] if twin else []  # a list: kept out of state_dict(), thus out of weight files

    @torch.no_grad()
    def initialize(self, seed=0):
        """The reference's initial weights, but for what lets the state be read from the start.

        A token is written under B of the token before it and found by C of the present one: C starts equal to B, so
        that equal tokens match from the first step. Drawn apart, the two have to find one another before anything can
        be copied (docs/results.md).

        Without biases the gate silu(g) has a random sign: what a layer copies out of its state averages to nothing, and
        so does the gradient that would teach it to. One channel of the residual stream therefore holds a constant,
        which opens the gates as a bias would; p and q likewise. D starts small, the memory of the heads in one layer
        reaches from about 200 to about 2,000 tokens.
        """
        super().initialize(seed)
        c, e = self.config, self.config.inner_size
        self.model.embed.weight.mul_(SPREAD / 0.02)  # about its size after training: the constant is large from the start
        self.model.norm.weight.fill_(0.02 / SPREAD)  # and the head starts as flat as before
        seen = CONSTANT / (CONSTANT ** 2 / c.hidden_size + SPREAD ** 2) ** 0.5  # the constant after the first norm
        for w in self.model.layers:
            getattr(w.conv, "in").weight[:2 * e, 0] = 1 / seen
            w.conv.norm.weight.fill_(0.5)
            inner = getattr(w.ssm, "in").weight
            inner[:e, 0] = 1.5 / seen
            keys, queries = inner[self.keys].chunk(2)
            keys.mul_(KEY_GAIN)
            keys[:, 0] = 0
            queries.copy_(keys)
            w.ssm.A_log.uniform_(0.07, 0.14).log_()
            step = torch.exp(torch.linspace(math.log(0.005), math.log(0.05), c.heads))
            w.ssm.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
            w.ssm.D.fill_(0.1)
        self.constrain()
        for twin in self.twin:
            twin.initialize()
        return self

    @torch.no_grad()
    def constrain(self):
        """After each step: keeps the constant channel constant. The head does not read it."""
        self.model.embed.weight[:, 0] = CONSTANT
        self.model.norm.weight[0] = 0
        for w in self.model.layers:
            w.out.weight[0] = 0
            w.mlp.down.weight[0] = 0

    @property
    def keys(self):
        """The rows of W_ssm that make B and C, a slice."""
        e, width = self.config.inner_size, self.config.n_groups * self.config.state_size
        return slice(2 * e, 2 * e + 2 * width)

    def training_only(self):
        return [p for twin in self.twin for p in twin.parameters()]

    def sections(self, name, p):
        """The matrices stacked in one parameter: rows, and share of the learning rate."""
        c = self.config
        if "_gate.weight" in name:
            return p.shape[0] * [(c.gate_block, 1)]
        if name.endswith("conv.in.weight"):
            return 3 * [(c.inner_size, 1)]
        if name.endswith("ssm.in.weight"):
            return 2 * [(c.inner_size, 1)] + 2 * [(c.n_groups * c.state_size, 1)] + [(c.heads, SLOW)]
        return [(p.shape[0], 1)]

    def schedule(self, progress):
        """tau and the load's weight: all deep while the layers learn to read their states, then raised to the end value."""
        ramp = min(max((progress - 0.15) / 0.15, 0.0), 1.0)
        return ramp, self.LOAD_WEIGHT * ramp

    @property
    def head_weight(self):
        return self.model.embed.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def losses(self, tokens, targets, progress=1.0):
        ramp, load_weight = self.schedule(progress)
        f = self.features(tokens, ramp)
        out = {"loss": ops.HeadLoss.apply(f["features"], self.head_weight.bfloat16(), targets.reshape(-1)),
               "deep": f["deep"], "extra": load_weight * f["load"]}
        if self.twin and self.training:
            out["match"], out["twin"] = self.twin[0].losses(f["h"], tokens, self.model.embed.weight)
            out["extra"] = out["extra"] + self.TWIN_WEIGHT * (out["match"] + out["twin"])
        return out

    def features(self, tokens, ramp=1.0, tau=None):
        """What the head reads, the deep shares, the load loss and the last layer's bridge states."""
        c = self.config
        x = self.model.embed.weight[tokens].view(-1, c.hidden_size)
        load, shares = 0.0, []
        for i, w in enumerate(self.model.layers):
            u = ops.Norm.apply(x, w.norm_mix.weight, c.rms_norm_eps)
            rho, where, share, pi_mean = self.route(i, w, u, ramp * c.tau(i) if tau is None else tau)
            if pi_mean is not None:
                # The hard share, with the gradient of the mean of pi.
                load = load + (share + pi_mean - pi_mean.detach() - self.TARGET).square()
                shares.append(share)
            x, h = self.mixer(i, w, x, u, rho, where, tokens.shape)
            x = self.deep_mlp(w, x, rho, where)
        return {"features": ops.Norm.apply(x, self.model.norm.weight, c.rms_norm_eps), "deep": shares, "load": load, "h": h}

    def route(self, i, w, u, tau):
        """rho of the deep tokens, their places (None: all), their share, and mean(pi)."""
        n = u.shape[0]
        if i not in self.config.routed_layers:
            return torch.ones(n), None, None, None
        logit = torch.mv(u.float(), w.router.weight) + w.router.bias
        pi_mean = torch.sigmoid(logit).mean()
        if tau == 1:
            rho = torch.zeros_like(logit)
        else:
            rho = (1 - torch.sigmoid(-logit) / (1 - tau)).clamp(min=0)
        where = (rho.detach() > 0).nonzero().squeeze(1)
        if len(where) == n:
            return rho, None, 1.0, pi_mean
        return rho[where], where, len(where) / n, pi_mean

    def mixer(self, i, w, x, u, rho, where, shape):
        c = self.config
        rows, length = shape
        dense = lambda y: y.view(rows, length, -1)
        p, q, v = (linear(u, part) for part in getattr(w.conv, "in").weight.chunk(3))
        kernel = w.conv.kernel.weight[:, 0].T.contiguous()
        s = ops.Convolution.apply(dense(p), dense(v), kernel, w.conv.kernel.bias, w.conv.norm.weight, c.head_dim, c.rms_norm_eps)
        m = self.deep_ssm(w.ssm, u, s, rho, where, shape)
        o, h = ops.BridgeMix.apply(s, bridge_gates(w.bridge, s), dense(q), dense(m), bridge_params(w.bridge))
        return x + linear(o.flatten(0, 1), w.out.weight), h

    def deep_ssm(self, w, u, s, rho, where, shape):
        n = u.shape[0]
        places = torch.arange(n) if where is None else where
        pick = lambda x: x if where is None else x[where]
        first = torch.searchsorted(places, torch.arange(shape[0] + 1) * shape[1])
        projected = self.project(getattr(w, "in").weight, u, pick, shape)
        return ops.S6.apply(projected, s.flatten(0, 1), rho, places, first, w.A_log.exp(), w.dt_bias, w.D, w.norm.weight,
                            self.config.n_groups, self.config.rms_norm_eps)

    def project(self, weight, u, pick, shape):
        """W_ssm u of the deep tokens; with shifted keys the rows of B read u of the token before."""
        c, deep = self.config, pick(u)
        if not c.shift_keys:
            return linear(deep, weight)
        before = F.pad(u.view(*shape, -1), (0, 0, 1, 0))[:, :-1].reshape(u.shape)
        keys = slice(self.keys.start, self.keys.start + c.n_groups * c.state_size)
        parts = [(deep, weight[:keys.start]), (pick(before), weight[keys]), (deep, weight[keys.stop:])]
        return torch.cat([linear(x, part) for x, part in parts], 1)

    def deep_mlp(self, w, x, rho, where):
        deep = x if where is None else x[where]
        n = ops.Norm.apply(deep, w.norm_mlp.weight, self.config.rms_norm_eps)
        h = ops.SwiGlu.apply(linear(n, w.mlp.gate.weight), linear(n, w.mlp.up.weight))
        y = linear(h, w.mlp.down.weight) * rho[:, None]
        return x + y if where is None else x.index_add(0, where, y)


def build(name, twin=True):
    if name == "bridge":
        return TrainBridge(reference_bridge.Config(**BRIDGE), twin)
    return TrainTransformer(reference_transformer.Config(**TRANSFORMER))


def check(name):
    """Loss and gradients against the reference's autograd; bf16 leaves about one per cent, more
    where a parameter acts through the routing decisions."""
    model = build(name, twin=False).initialize(1)
    plain = reference_bridge.Bridge(model.config) if name == "bridge" else reference_transformer.Transformer(model.config)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():  # livelier than the initial weights, so that every path carries a signal
        for p, r in zip(model.parameters(), plain.parameters()):
            p.add_(0.1 * p.abs().mean().clamp(min=0.01) * torch.randn_like(p))
            r.copy_(p)
            if name == "bridge" and p.shape == (1,):
                r.copy_(p.fill_(0.0))  # half the tokens light
    tokens = torch.randint(VOCAB, (2, 201))
    model.losses(tokens[:, :-1], tokens[:, 1:], 1.0)["loss"].backward()
    loss = F.cross_entropy(plain(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].reshape(-1))
    loss.backward()
    worst = 0.0
    for (key, p), r in zip(model.named_parameters(), plain.parameters()):
        if p.numel() == 1:
            continue  # a router's bias: a sum of many signs, where bf16 tells nothing
        if name == "bridge" and key == "model.norm.weight":
            p.grad[0] = r.grad[0]  # the constant channel, which is not trained: a sum that cancels
        error = float((p.grad - r.grad).norm() / r.grad.norm())
        worst = max(worst, error)
        if error > 0.03:
            print(f"  {key}: relative error of the gradient {error:.3f}")
    print(f"{name}: loss {loss.item():.4f}, largest relative error of a gradient {worst:.3f}")
    return worst


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(max(check("bridge"), check("transformer")) > 0.2)
