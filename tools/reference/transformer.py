"""The transformer that Bridge is compared with: a plain Llama (RMSNorm, RoPE, GQA, SwiGLU), Hugging Face
tensor names and config, so that every tool that reads Llama checkpoints reads it.

  python tools/reference/transformer.py CHECKPOINT    compares with CHECKPOINT/logits.npy
"""
import json
import sys
from dataclasses import asdict, dataclass
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
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = False
    bos_token_id: object = None
    eos_token_id: object = None
    model_type: str = "llama"
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def load(cls, path):
        raw = json.loads(Path(path).read_text())
        return cls(**{k: v for k, v in raw.items() if k in cls.__dataclass_fields__})

    def save(self, path):
        Path(path).write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **asdict(self)}, indent=2) + "\n")


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary(length, head_dim, theta, dtype):
    """cos and sin [T, head_dim/2] of the half-split rotation."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        project = lambda i, o: nn.Linear(i, o, bias=False)
        self.q_proj = project(c.hidden_size, c.num_attention_heads * c.head_dim)
        self.k_proj = project(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = project(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = project(c.num_attention_heads * c.head_dim, c.hidden_size)

    def forward(self, x, cos, sin):
        c = self.config
        split = lambda y: y.unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
        q, k = rotate(split(self.q_proj(x)), cos, sin), rotate(split(self.k_proj(x)), cos, sin)
        v = split(self.v_proj(x))
        groups = c.num_attention_heads // c.num_key_value_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mlp(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self):
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden(self, tokens):
        x = self.model.embed_tokens(tokens)
        cos, sin = rotary(tokens.shape[1], self.config.head_dim, self.config.rope_theta, x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def forward(self, tokens):
        """Logits [B, T, V] of tokens [B, T]."""
        return self.hidden(tokens) @ self.head_weight.T

    @torch.no_grad()
    def initialize(self, seed=0):
        torch.manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                p.normal_(0, 0.02)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    p.div_((2 * self.config.num_hidden_layers) ** 0.5)
        return self

    @classmethod
    def load(cls, folder, dtype=torch.float32):
        folder = Path(folder)
        model = cls(Config.load(folder / "config.json"))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.to(dtype)

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder / "config.json")
        tensors = {k: v.detach().float().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def compare(folder):
    """Largest difference to the recorded logits, relative to their range."""
    folder = Path(folder)
    tokens = torch.tensor(json.loads((folder / "tokens.json").read_text()))
    expected = torch.from_numpy(np.load(folder / "logits.npy"))
    diff = float((Transformer.load(folder)(tokens[None])[0] - expected).abs().max() / (expected.max() - expected.min()))
    print(f"{folder.name:20} {diff:.1e} of range")
    return diff


if __name__ == "__main__":
    results = [compare(folder) for folder in sys.argv[1:]]
    sys.exit(not results or max(results) > 2e-5)
