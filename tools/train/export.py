#!/usr/bin/env python3
"""Turns a training checkpoint into a model folder: config.json, model.safetensors (f32), tokenizer and hints.

The training-only twin stays behind.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch

import model as models

SAMPLING = {"bos_token_id": 0, "eos_token_id": [0, 2], "do_sample": True, "temperature": 0.7, "top_p": 0.9,
            "repetition_penalty": 1.1, "max_new_tokens": 200}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=["bridge", "transformer"])
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, weights_only=False)
    model = models.build(args.model, twin=False)
    model.load_state_dict(state["model"])
    model.save(args.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(args.data / name, args.out / name)
    (args.out / "generation_config.json").write_text(json.dumps(SAMPLING, indent=2) + "\n")
    print(f"{args.out}: {args.model} after {state['step']} steps, {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
