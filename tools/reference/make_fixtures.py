#!/usr/bin/env python3
"""Writes the parity fixtures: tiny random checkpoints and the logits that they must give.

Bridge logits come from bridge.py in float64, the others from Hugging Face transformers in float64. Every
parameter is random (norm weights and biases too), so that a forgotten one shows. All weights are float16
values; the larger checkpoints are stored as F16, which loses nothing, and keeps them near 100 KB.

  python tools/reference/make_fixtures.py --out tests/parity/fixtures [--only NAME]
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch

import bridge

VOCAB = 101
STORED_F16 = {"bridge-mixed", "bridge-wide-kernel", "bridge-shape64"}
COMMON = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=[0, 2], gate_block=8)
BRIDGE = {
    # name: (config, thresholds to override with)
    "bridge-mixed": (dict(hidden_size=24, num_hidden_layers=3, head_dim=8, state_size=6, conv_kernel=4, intermediate_size=36,
                          ssm_type=["s6", "s4d", "s6"], routed_layers=[2], router_threshold=[0.9, 0.9, 0.5]), [0, 0.3, 1]),
    "bridge-groups": (dict(hidden_size=20, inner_size=32, num_hidden_layers=2, head_dim=4, state_size=7, n_groups=4, conv_kernel=1,
                           intermediate_size=28, tie_word_embeddings=True), []),
    "bridge-wide-kernel": (dict(hidden_size=28, inner_size=24, num_hidden_layers=3, head_dim=6, state_size=5, n_groups=2, conv_kernel=6,
                                intermediate_size=30, routed_layers=[0, 1, 2], router_threshold=[0.35, 0.5, 0.65],
                                rms_norm_eps=1e-6), [0, 0.62, 0.97, 1]),
    "bridge-s4d-short": (dict(hidden_size=24, inner_size=16, num_hidden_layers=2, head_dim=4, state_size=2, conv_kernel=2,
                              intermediate_size=20, ssm_type="s4d", tie_word_embeddings=True), []),
    "bridge-one-head": (dict(hidden_size=16, num_hidden_layers=2, head_dim=16, state_size=16, conv_kernel=3, intermediate_size=24,
                             routed_layers=[1], router_threshold=0.0, tie_word_embeddings=True, gate_block=16), [0.5, 1]),
    # B reads the token before: across light tokens, cuts and layers of both kinds.
    "bridge-shifted-keys": (dict(hidden_size=20, inner_size=24, num_hidden_layers=3, head_dim=6, state_size=10, n_groups=2,
                                 conv_kernel=3, intermediate_size=26, ssm_type=["s6", "s4d", "s6"], shift_keys=True,
                                 routed_layers=[2], tie_word_embeddings=True), [0, 0.7, 1]),
    # The presets' proportions, so that the tuned kernels (P 64, N 64, b 64) are met too.
    "bridge-shape64": (dict(hidden_size=64, num_hidden_layers=1, head_dim=64, state_size=64, conv_kernel=4, intermediate_size=32,
                            gate_block=64, tie_word_embeddings=True), []),
}


def rounded(p):
    return p.half().float()


@torch.no_grad()
def randomize(model):
    """Weights with a healthy spread of logits, gates away from saturation, decays of every length."""
    for name, p in model.named_parameters():
        leaf = name.split(".")[-1]
        if leaf in ("A_log", "log_A_real"):
            p.uniform_(-1, 2)
        elif leaf in ("dt_bias", "log_dt"):
            p.uniform_(-4, 0)
        elif leaf == "A_imag":
            p.uniform_(0, 6)
        elif leaf == "Lambda":
            p.uniform_(-6, 0)
        elif leaf in ("kappa", "omega", "gamma", "D", "bias"):
            p.normal_(0, 0.5)
        elif "norm" in name and p.ndim == 1:
            p.uniform_(0.5, 1.5)
        elif name.endswith("router.weight"):
            p.normal_(0, 2 * p.numel() ** -0.5)
        else:
            p.normal_(0, p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5)
        p.copy_(rounded(p))


def write(folder, tokens, logits):
    """logits: {suffix: [T, V]}."""
    (folder / "tokens.json").write_text(json.dumps(tokens.tolist()) + "\n")
    for suffix, values in logits.items():
        spread = float(values.std())
        assert 0.2 < spread < 30, (folder.name, spread)
        np.save(folder / f"logits{suffix}.npy", values.numpy().astype(np.float32))
    print(f"{folder.name:22} {sum(f.stat().st_size for f in folder.iterdir()) // 1024:4} KB, spread {spread:.2f}")


@torch.no_grad()
def make_bridge(name, out):
    settings, taus = BRIDGE[name]
    config = bridge.Config(**{**COMMON, **settings})
    model = bridge.Bridge(config)
    randomize(model)
    folder = out / name
    model.save(folder, torch.float16 if name in STORED_F16 else torch.float32)
    model = bridge.Bridge.load(folder, torch.float64)
    tokens, routing = torch.randint(VOCAB, (72,)), {}
    logits = {"": model(tokens[None], None, routing)[0]}
    for tau in taus:
        logits[f"_tau{tau}"] = model(tokens[None], tau)[0]
    write(folder, tokens, logits)
    deep = {str(k): (v[0] > 0).int().tolist() for k, v in routing.items()}
    for layer, flags in deep.items():
        assert config.tau(int(layer)) == 0 or 0.1 < np.mean(flags) < 0.9, (name, layer, np.mean(flags))
    (folder / "routing.json").write_text(json.dumps(deep) + "\n")
    assert bridge.compare(folder) < 2e-5


def hugging_face():
    """name: (class name, config); imported late, so that Bridge's fixtures need torch only."""
    small = dict(vocab_size=113, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=8, max_position_embeddings=512, bos_token_id=0, eos_token_id=2,
                 pad_token_id=None, use_cache=False)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}
    yarn = {"rope_type": "yarn", "factor": 16.0, "mscale": 1.3, "mscale_all_dim": 0.7, "truncate": False,
            "original_max_position_embeddings": 32, "beta_fast": 8.0}
    return {
        "llama-rope3-bias": ("Llama", dict(small, rope_theta=500000.0, rope_scaling=llama3, attention_bias=True, mlp_bias=True,
                                           tie_word_embeddings=True)),
        "llama-linear-rope": ("Llama", dict(small, rope_scaling={"rope_type": "linear", "factor": 2.5}, num_key_value_heads=1)),
        "llama-yarn": ("Llama", dict(small, head_dim=16, rope_scaling=yarn)),
        "mistral-window": ("Mistral", dict(small, sliding_window=19)),
        "qwen2": ("Qwen2", dict(small, rope_theta=1000000.0, rms_norm_eps=1e-6, head_dim=None)),
        "qwen3": ("Qwen3", dict(small, rope_theta=1000000.0, head_dim=12, tie_word_embeddings=True)),
    }


@torch.no_grad()
def make_hugging_face(name, out):
    import transformers
    family, settings = hugging_face()[name]
    settings = {k: v for k, v in settings.items() if v is not None}
    config = getattr(transformers, f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for key, p in model.named_parameters():
        if "norm" in key:
            p.uniform_(0.5, 1.5)
        else:
            p.normal_(0, 0.3 if p.ndim == 1 else 1.5 * p.shape[-1] ** -0.5)
        p.copy_(rounded(p))
    folder = out / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(config.vocab_size, (80,))
    write(folder, tokens, {"": model.double()(tokens[None]).logits[0]})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="one fixture, by name")
    args = parser.parse_args()
    makers = {name: make_bridge for name in BRIDGE} | {name: make_hugging_face for name in hugging_face()}
    for name, make in makers.items():
        if args.only in (None, name):
            torch.manual_seed(sum(name.encode()))
            make(name, args.out)


if __name__ == "__main__":
    main()
