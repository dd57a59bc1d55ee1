"""What the command-line tests share: the program, and tiny models made on the spot.

The models have random weights (a fixed seed) and a byte-level BPE tokenizer with a few merges and chat
tokens, so that they say nonsense, quickly and always the same. They are written as a checkpoint folder in
pure Python and go through `sluice convert`.
"""
import atexit
import contextlib
import functools
import json
import math
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
import unittest
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLUICE = os.path.abspath(os.environ.get("SLUICE", ROOT / "build/sluice"))
DATA = ROOT.parent / "shared/data"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # many short runs on busy processors: do not spin

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ġ a", "i n", "e r", "o n", "Ġ w", "u s", "us er"]
CHATML = ("{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
BRIDGE = {"model_type": "bridge", "hidden_size": 32, "num_hidden_layers": 3, "head_dim": 8, "state_size": 8,
          "n_groups": 2, "gate_block": 8, "intermediate_size": 48, "routed_layers": [1],
          "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": [0, 2]}
LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "max_position_embeddings": 96, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": [0, 2]}


@functools.lru_cache
def scratch():
    """A folder for the whole test run."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# ---- running the program ----------------------------------------------------------------------------

def sluice(*args, stdin=b"", check=None, timeout=120, **more):
    """Runs `sluice args`; output as bytes. check: the exit code it must have."""
    command = [SLUICE, *(a if isinstance(a, bytes) else str(a) for a in args)]
    result = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, **more)
    if check is not None and result.returncode != check:
        raise AssertionError(f"exit {result.returncode}, expected {check}: {command}\n{result.stderr[:2000]}")
    return result


def writes_in(process, folder):
    """Waits until the process has a file of the folder open, which may have no name yet."""
    for _ in range(5000):
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.dirname(os.readlink(fd)) == str(folder):
                    return
        time.sleep(0.001)
    raise AssertionError(f"no file open in {folder}")


def has_nameless_files(folder):
    with contextlib.suppress(OSError):
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
        return True
    return False


class Case(unittest.TestCase):
    def assert_error(self, result, code, *texts):
        """One clean line on stderr, nothing on stdout, and the texts (bytes or str) in the line."""
        line = result.stderr
        self.assertEqual(result.returncode, code, line)
        self.assertEqual(result.stdout, b"")
        self.assert_error_line(line, *texts)

    def assert_error_line(self, line, *texts):
        self.assertTrue(line.startswith(b"sluice: ") and line.endswith(b"\n") and line.count(b"\n") == 1, line)
        self.assertLessEqual(len(line), 600)
        self.assertFalse([b for b in line[:-1] if b < 32 or b == 127], line)
        for text in texts:
            self.assertIn(text.encode() if isinstance(text, str) else text, line)


# ---- tiny models ------------------------------------------------------------------------------------

def byte_characters():
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(other)}}


def tokenizer():
    pieces = SPECIAL + [c for _, c in sorted(byte_characters().items())] + [m.replace(" ", "") for m in MERGES]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, s in enumerate(SPECIAL)],
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {p: i for i, p in enumerate(pieces)}, "merges": MERGES},
    }


N_VOCAB = len(SPECIAL) + 256 + len(MERGES)


def bridge_tensors(c):
    d, e = c["hidden_size"], c.get("inner_size", c["hidden_size"])
    n, g, k, b, f = c["state_size"], c["n_groups"], 4, c["gate_block"], c["intermediate_size"]
    h = e // c["head_dim"]
    yield "model.embed.weight", (c["vocab_size"], d), 0.5
    yield "model.norm.weight", (d,), None
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name in ("norm_mix", "norm_mlp"):
            yield f"{p}{name}.weight", (d,), None
        if i in c["routed_layers"]:
            yield f"{p}router.weight", (d,), 0.3
            yield f"{p}router.bias", (1,), 0.3
        yield f"{p}conv.in.weight", (3 * e, d), 0.3
        yield f"{p}conv.kernel.weight", (e, 1, k), 0.5
        yield f"{p}conv.kernel.bias", (e,), 0.1
        yield f"{p}conv.norm.weight", (e,), None
        yield f"{p}ssm.in.weight", (2 * e + 2 * g * n + h, d), 0.3
        for name in ("A_log", "dt_bias"):
            yield f"{p}ssm.{name}", (h,), 0.5
        yield f"{p}ssm.D", (e,), None
        yield f"{p}ssm.norm.weight", (e,), None
        for gate in ("input_gate", "recurrence_gate"):
            yield f"{p}bridge.{gate}.weight", (e // b, b, b), 0.3
            yield f"{p}bridge.{gate}.bias", (e,), 0.1
        for name in ("Lambda", "kappa", "omega", "gamma"):
            yield f"{p}bridge.{name}", (e,), 0.5
        yield f"{p}out.weight", (d, e), 0.3
        for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            yield f"{p}mlp.{name}.weight", shape, 0.3


def llama_tensors(c):
    d, f = c["hidden_size"], c["intermediate_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d), 0.5
    yield "model.norm.weight", (d,), None
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{p}{name}.weight", (d,), None
        for name, shape in (("q", (d, d)), ("k", (kv, d)), ("v", (kv, d)), ("o", (d, d))):
            yield f"{p}self_attn.{name}_proj.weight", shape, 0.3
        for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            yield f"{p}mlp.{name}_proj.weight", shape, 0.3


def write_safetensors(path, tensors, seed):
    """tensors: (name, shape, spread of the random values or None for ones)."""
    rng, header, data = random.Random(seed), {}, bytearray()
    for name, shape, spread in tensors:
        n = math.prod(shape)
        values = array("f", [rng.gauss(0, spread) for _ in range(n)] if spread else [1.0] * n)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * n]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@functools.lru_cache
def checkpoint(kind="bridge", text=True, seed=1, template=CHATML, **changes):
    """A checkpoint folder: kind "bridge" or "llama"; text: with tokenizer, and with a chat template unless
    that is None; changes to config.json (None removes a key)."""
    base = {"bridge": BRIDGE, "llama": LLAMA}[kind]
    config = {k: v for k, v in {**base, "vocab_size": N_VOCAB, **changes}.items() if v is not None}
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    (folder / "config.json").write_text(json.dumps(config))
    tensors = bridge_tensors(config) if kind == "bridge" else llama_tensors(config)
    write_safetensors(folder / "model.safetensors", tensors, seed)
    if text:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
        settings = {"chat_template": template} if template else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@functools.lru_cache
def model(kind="bridge", text=True, seed=1, type="f32", template=CHATML, **changes):
    """The same as a .slu file."""
    path = Path(tempfile.mkdtemp(dir=scratch())) / f"{kind}.slu"
    sluice("convert", checkpoint(kind, text, seed, template, **changes), path, "--type", type, check=0)
    return path
