#!/usr/bin/env python3
"""Makes tests/unit/tokenizers/*.json: small tokenizers of every kind, with texts and their ids from the PyPI
package `tokenizers` (0.23.3).

Each file holds {"tokenizer": tokenizer.json, "cases": [{"text", "ids", "plain"}]}: ids with special tokens
recognised, plain with them as ordinary text (absent where it is the same). Texts mix scripts, all kinds of
white space, marks out of order, digits of other scripts, emoji and random code points.
"""
import json
import random
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Punctuation, Sequence, Split

FOLDER = Path(__file__).resolve().parents[2] / "tests/unit/tokenizers"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
HAN = r"[一-龥\u3040-ゟ゠-ヿ]+|\p{Thai}"
POOLS = [
    "abcdefghij ABC  '  \n\t.,!?0123456789", " \u00a0\u3000\u2003\u180e\u0085\n\r\t \u200b",
    "éüñÀŌ\u0301\u0323\u0327e\u030aſ\u212a", "日本語中文한국어กขค", "🦙🚀👩‍👧½²³①Ⅳ٣५", "'s'S'T're'VE'ſ'll'LL'd ",
    "()[]{}<>@#$%^&*-_=+/\\\"`~|…—“”",
]
PHRASES = [*SPECIAL, "<pad>", " <pad> ", "foo bar  ", "  ", "hello", " world", "the", "▁", "word", " word "]
rng = random.Random(7)


def text(n):
    out = []
    while len(out) < n:
        kind = rng.random()
        if kind < 0.1:
            c = chr(rng.randrange(0x30000))
            out += [c] if unicodedata.category(c) not in ("Cs", "Cn") else []
        elif kind < 0.3:
            out.append(rng.choice(PHRASES))
        else:
            pool = rng.choice(POOLS)
            out += [rng.choice(pool) for _ in range(rng.randrange(1, 6))]
    return "".join(out).replace("\0", "")


CORPUS = [text(300) for _ in range(60)] + ["the hello world of words and the word the world " * 20]
TEXTS = ["", "Hello world", " a", "x  \n\n  y"] + [text(rng.choice([5, 15, 40])) for _ in range(26)]


def byte_level(pre, normalizer=None, added=(), **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=ByteLevel.alphabet(), show_progress=False))
    for token in added:
        tokenizer.add_tokens([token])
    return tokenizer


def byte_fallback(pre=None, normalizer=None, added=()):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if pre:
        tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator((line for part in CORPUS for line in part.split("\n")), trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>"] + bytes_, limit_alphabet=60, show_progress=False))
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    for token in added:
        tokenizer.add_tokens([token])
    return tokenizer


def split(pattern):
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


def kinds():
    plain = ByteLevel(add_prefix_space=False)
    yield "gpt2", byte_level(plain)
    yield "prefix", byte_level(ByteLevel(add_prefix_space=True))
    yield "llama3", byte_level(split(LLAMA3), ignore_merges=True)
    yield "qwen2", byte_level(split(QWEN2), normalizers.NFC())
    yield "tekken", byte_level(split(TEKKEN))
    yield "han", byte_level(Sequence([Split(Regex(HAN), "isolated"), plain]), normalizers.NFKC())
    yield "falcon", byte_level(Sequence([Punctuation("contiguous"), plain, Digits(False),
                                         Split(Regex("[0-9][0-9][0-9]"), "isolated")]))
    yield "merged", byte_level(Sequence([Split(Regex(r"\s|[aeio]"), "merged_with_previous"),
                                         Split(Regex("[a-z]+"), "merged_with_next", invert=True),
                                         Split("b", "contiguous"), plain]))
    yield "added", byte_level(plain, normalizers.NFD(), [
        AddedToken("<pad>", lstrip=True, rstrip=True, special=True), AddedToken("word", single_word=True),
        AddedToken("foo bar", rstrip=True, normalized=True), AddedToken("é", normalized=True), "   "])
    llama2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "llama2", byte_fallback(None, llama2, [AddedToken("foo bar", normalized=True)])
    yield "metaspace", byte_fallback(Metaspace(prepend_scheme="first"))
    yield "gemma", byte_fallback(Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁"))


def encode(tokenizer, string, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(string, add_special_tokens=False).ids


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, tokenizer in kinds():
        cases = []
        for string in TEXTS:
            case = {"text": string, "ids": encode(tokenizer, string, True)}
            plain = encode(tokenizer, string, False)
            cases.append(case if plain == case["ids"] else {**case, "plain": plain})
        parts = {"tokenizer": json.loads(tokenizer.to_str()), "cases": cases}
        line = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        (FOLDER / f"{name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
