#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer and turns the prepared documents into token files.

Writes to --dir (where prepare.py wrote train.jsonl and val.jsonl):
  tokenizer.json, tokenizer_config.json
  SPLIT.KIND.npy    uint16 tokens, documents in file order, each ending in <|endoftext|>
"""
import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": None,
    "unk_token": None,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1_000_000_000,
    "chat_template": CHAT_TEMPLATE,
}


def documents(path):
    with open(path) as file:
        for line in file:
            yield json.loads(line)


def train(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    # The special pieces never go through BPE: keep them out of the counts.
    tokenizer.train_from_iterator((t.replace("<|im_start|>", "").replace("<|im_end|>", "") for t in texts), trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    tokenizer = train((d["text"] for d in documents(args.dir / "train.jsonl")), args.vocab_size)
    tokenizer.save(str(args.dir / "tokenizer.json"))
    (args.dir / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    for split in ("train", "val"):
        by_kind = {}
        for document in documents(args.dir / f"{split}.jsonl"):
            by_kind.setdefault(document["kind"], []).append(document["text"] + SPECIAL[0])
        for kind, texts in by_kind.items():
            tokens = np.concatenate([np.array(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch(texts)])
            np.save(args.dir / f"{split}.{kind}.npy", tokens)
            chars = sum(len(t) for t in texts)
            print(f"{split:5} {kind:9} {len(tokens) / 1e6:6.3f} M tokens, {chars / len(tokens):.2f} chars a token")


if __name__ == "__main__":
    main()
