#!/usr/bin/env python3
"""Hostile files, each made from a sound one by one change, with a piece of the line that must refuse it.

slu_files(sound, folder, seal) and folders(sound, folder) yield (name, path, expected text). Run by itself,
make.py writes all of them: make.py SOUND.slu SOUND_FOLDER SEAL OUT
"""
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

HEADER, DIR_ENTRY, NAME = 48, 160, 96


# ---- .slu -------------------------------------------------------------------------------------------

class Slu:
    """A .slu in memory: where its parts are, and its metadata as a dictionary of byte ranges."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.n_meta, self.n_tensor = struct.unpack_from("<II", data, 12)
        self.meta_bytes, self.file_bytes = struct.unpack_from("<QQ", data, 24)
        self.directory = HEADER + self.meta_bytes
        self.data_at = -(-(self.directory + DIR_ENTRY * self.n_tensor) // 4096) * 4096
        self.values, self.keys, at = {}, {}, HEADER
        for _ in range(self.n_meta):
            n_key, kind, _, count = struct.unpack_from("<IBBxxQ", data, at)
            key = data[at + 16:at + 16 + n_key].decode()
            self.keys[key] = at
            at += 16 + n_key // 8 * 8 + 8
            self.values[key] = at
            for _ in range(count):
                n = struct.unpack_from("<Q", data, at)[0]
                at += 8 if kind < 3 else 8 + n // 8 * 8 + 8

    def entry(self, i):
        return self.directory + DIR_ENTRY * i

    def tensor(self, name):
        for i in range(self.n_tensor):
            if self.data[self.entry(i):self.entry(i) + NAME].rstrip(b"\0").decode() == name:
                return self.entry(i)
        raise KeyError(name)

    def put(self, at, fmt, *values):
        struct.pack_into("<" + fmt, self.data, at, *values)
        return self


    def replace(self, key, kind, is_list, values):
        """The file with an entry put in the place of another, or added: values as in docs/format.md."""
        def text(raw):
            return raw + bytes(8 - len(raw) % 8)
        meta, n_meta = bytearray(), 0
        starts = sorted(self.keys.values()) + [self.directory]
        for name, at in self.keys.items():
            if name != key:
                meta += self.data[at:starts[starts.index(at) + 1]]
                n_meta += 1
        meta += struct.pack("<IBBxxQ", len(key), kind, is_list, len(values)) + text(key.encode())
        if kind < 3:
            meta += struct.pack(f"<{len(values)}{'Qqd'[kind]}", *values)
        else:
            meta += b"".join(struct.pack("<Q", len(v)) + text(v) for v in values)
        directory = self.data[self.directory:self.directory + DIR_ENTRY * self.n_tensor]
        data_at = -(-(HEADER + len(meta) + len(directory)) // 4096) * 4096
        for i in range(self.n_tensor):
            at = DIR_ENTRY * i + 136
            struct.pack_into("<Q", directory, at, struct.unpack_from("<Q", directory, at)[0] + data_at - self.data_at)
        head = self.data[:HEADER] + meta + directory
        data = self.data[self.data_at:]
        self.data = head + bytes(data_at - len(head)) + data
        return self.put(12, "I", n_meta + 1).put(24, "Q", len(meta)).put(32, "Q", len(self.data))


def json_keys(n):
    return b"{" + b",".join(b'"%x":1' % i for i in range(n)) + b"}"


def large_tokenizer(tokenizer, n_piece, n_merge, n_added):
    """A sound tokenizer of the size of the largest known ones: each merge a list of two texts."""
    model = tokenizer["model"]
    vocab, merges, letters = model["vocab"], [m.split(" ") for m in model["merges"]], "abcdefghijkl"
    words = list(letters)
    for word in words:  # grows while it is walked
        for letter in letters:
            if len(vocab) + n_added >= n_piece:
                break
            if word + letter not in vocab:
                vocab[word + letter] = len(vocab)
                merges.append([word, letter])
            words.append(word + letter)
        if len(vocab) + n_added >= n_piece:
            break
    once = len(merges)
    merges += [merges[i % once] for i in range(n_merge - once)]
    tokenizer["added_tokens"] += [{"id": len(vocab) + i, "content": f"<unused{i}>", "single_word": False, "lstrip": False,
                                   "rstrip": False, "normalized": False, "special": True} for i in range(n_added)]
    model["merges"] = merges


def large_changes(load):
    """Text and metadata that would take longer to read than there is time, and what else entries may say; sealed."""
    limit = "values and keys"
    yield "tokenizer-keys", load().replace("tokenizer", 3, 0, [json_keys(3_200_000)]), limit, True
    yield "tokenizer-lists", load().replace("tokenizer", 3, 0, [b"[" + b"[]," * 12_000_000 + b"1]"]), limit, True
    yield "tokenizer-numbers", load().replace("tokenizer", 3, 0, [b"[" + b"1," * 20_000_000 + b"1]"]), limit, True
    yield "tokenizer-bytes", load().replace("tokenizer", 3, 0, [b" " * 60_000_000]), "expected at most 50331648", True
    yield "meta-json-keys", load().replace("x", 4, 0, [json_keys(200_000)]), limit, True
    yield "meta-json-lists", load().replace("x", 4, 1, [b"[" + b"1," * 20_000 + b"1]"] * 20), limit, True
    yield "meta-json-large", load().replace("x", 4, 0, [json_keys(5_000_000)]), "at most 4194304", True
    yield "meta-text", load().replace("x", 3, 0, [b"\x01" * 60_000_000]), "at most 4194304", True
    yield "meta-texts", load().replace("x", 3, 1, [b""] * 1_000_000), "at most 4194304", True
    yield "meta-floats", load().replace("x", 2, 1, [0.1] * 7_500_000), "at most 4194304", True
    yield "meta-template", load().replace("chat_template", 3, 0, [b"a" * 5_000_000]), "at most 4194304", True
    for name, text, line in (("text", b"not json", "found"), ("number", b"3", "an object or a list"), ("nothing", b"", "ends"),
                             ("null", b"null", "an object or a list"), ("cut", b'{"a": 1', "ends"), ("twice", b'{"a":1,"a":2}', "duplicate"),
                             ("deep", b"[" * 100000, "deeper"), ("two", b"{}{}", "nothing after")):
        yield f"meta-json-{name}", load().replace("x", 4, 0, [text]), line, True
    for kind in (b"f16", b"bf16", b"q8", b"q4"):
        yield f"type-{kind.decode()}", load().replace("sluice.type", 3, 0, [kind]), "no matrix is of it", True


def slu_changes(load):
    """(name, Slu or bytes, text, sealed). load() gives a fresh copy of the sound file."""
    s = load()
    t0, t1 = s.entry(0), s.entry(1)
    last = s.entry(s.n_tensor - 1)
    plain = [
        ("empty", b"", "is empty"),
        ("one-byte", b"S", "not a .slu file"),
        ("text", b"once upon a time there was a model of the world", "not a .slu file"),
        ("gguf", b"GGUF" + bytes(60), "not a .slu file"),
        ("header-only", bytes(s.data[:HEADER]), "its header says"),
        ("cut-by-one", bytes(s.data[:-1]), "its header says"),
        ("cut-by-a-page", bytes(s.data[:-4096]), "its header says"),
        ("cut-in-directory", bytes(s.data[:s.directory + 10]), "its header says"),
        ("longer-by-one", bytes(s.data) + b"\0", "its header says"),
        ("longer-by-a-page", bytes(s.data) + bytes(4096), "its header says"),
        ("twice", bytes(s.data) * 2, "its header says"),
    ]
    for name, data, text in plain:
        yield name, data, text, False
    grown = load()
    grown.data += bytes(4096)
    yield "page-after-the-last-tensor", grown.put(32, "Q", len(grown.data)), "to the end of the last tensor", True
    fields = [
        ("magic", 0, "B", 0x20, "not a .slu file"),
        ("version-0", 8, "I", 0, "version 0"),
        ("version-2", 8, "I", 2, "version 2"),
        ("n-meta-0", 12, "I", 0, "left over"),
        ("n-meta-less", 12, "I", s.n_meta - 1, "left over"),
        ("n-meta-more", 12, "I", s.n_meta + 1, "metadata ends"),
        ("n-meta-max", 12, "I", 0xFFFFFFFF, "counts 4294967295"),
        ("n-tensor-0", 16, "I", 0, "counts 0 tensors"),
        ("n-tensor-less", 16, "I", s.n_tensor - 1, "expected"),
        ("n-tensor-more", 16, "I", s.n_tensor + 1, ""),
        ("n-tensor-many", 16, "I", 131072, "expected at least"),
        ("n-tensor-max", 16, "I", 0xFFFFFFFF, "counts 4294967295"),
        ("reserved", 20, "I", 7, "reserved"),
        ("meta-bytes-0", 24, "Q", 0, ""),
        ("meta-bytes-odd", 24, "Q", s.meta_bytes + 1, "multiple of 8"),
        ("meta-bytes-more", 24, "Q", s.meta_bytes + 8, "left over"),
        ("meta-bytes-huge", 24, "Q", 1 << 26, "expected at least"),
        ("meta-bytes-max", 24, "Q", (1 << 64) - 8, "bytes of metadata"),
        ("file-bytes", 32, "Q", s.file_bytes + 4096, "its header says"),
        ("key-bytes-0", HEADER, "I", 0, "key of 0 bytes"),
        ("key-bytes-max", HEADER, "I", 0xFFFFFFFF, "key of 4294967295 bytes"),
        ("key-kind", HEADER + 4, "B", 5, "is of kind 5"),
        ("key-count-0", HEADER + 8, "Q", 0, "has 0 values"),
        ("key-count-max", HEADER + 8, "Q", (1 << 64) - 1, "values, expected 1"),
        ("text-length-max", s.values["model_type"], "Q", (1 << 64) - 1, "is cut"),
        ("text-length-wrap", s.values["model_type"], "Q", (1 << 64) - 8, "is cut"),
        ("text-not-utf8", s.values["model_type"] + 8, "B", 0xFF, "not UTF-8"),
        ("list-count-max", s.keys["eos_token_id"] + 8, "Q", (1 << 61) + 1, "more than the metadata holds"),
        ("name-empty", t0, "B", 0, "name of tensor 0"),
        ("name-control", t0, "B", 7, "name of tensor 0"),
        ("name-long", t0, "96s", b"x" * 96, "name of tensor 0"),
        ("name-padding", t0 + NAME - 1, "B", 120, "name of tensor 0"),
        ("type", t0 + 96, "I", 5, "is of type 5"),
        ("n-dim-0", t0 + 100, "I", 0, "has 0 dimensions"),
        ("n-dim-5", t0 + 100, "I", 5, "has 5 dimensions"),
        ("shape-0", t0 + 104, "Q", 0, "dimension outside"),
        ("shape-2^31", t0 + 104, "Q", 1 << 31, "dimension outside"),
        ("shape-max", t0 + 104, "Q", (1 << 64) - 1, "dimension outside"),
        ("shape-product", t0 + 96, "IIQQQQ", 0, 4, *[(1 << 31) - 1] * 4, "too many elements"),
        ("shape-more", t0 + 104, "Q", struct.unpack_from("<Q", s.data, t0 + 104)[0] + 1, "bytes, expected"),
        ("shape-unused", t0 + 128, "Q", 1, "unused dimension"),
        ("offset-0", t0 + 136, "Q", 0, "is at offset 0"),
        ("offset-inside-header", t0 + 136, "Q", 4096, "is at offset"),
        ("offset-unaligned", t0 + 136, "Q", s.data_at + 4, "is at offset"),
        ("offset-max", t0 + 136, "Q", (1 << 64) - 1, "is at offset"),
        ("offset-overlap", t1 + 136, "Q", s.data_at, "is at offset"),
        ("bytes-0", t0 + 144, "Q", 0, "has 0 bytes"),
        ("bytes-max", t0 + 144, "Q", (1 << 64) - 1, "bytes, expected"),
        ("bytes-last", last + 144, "Q", 5, "has 5 bytes, expected"),
    ]
    for name, at, fmt, *values, text in fields:
        yield name, load().put(at, fmt, *values), text, False
    twice = load()
    twice.data[t1:t1 + NAME] = twice.data[t0:t0 + NAME]
    yield "name-twice", twice, "is there twice", True
    key = load()
    a, b = key.keys["bos_token_id"] + 16, key.keys["eos_token_id"] + 16
    key.data[b:b + 12] = key.data[a:a + 12]
    yield "key-twice", key, "twice", True
    yield "header-bit", load().put(s.data_at - 1, "B", 1), "header is damaged", False
    yield "checksum", load().put(40, "Q", 1), "header is damaged", False


def hyper_changes(load):
    """Sound containers whose hyperparameters do not fit; sealed. For verify, generate and info alike."""
    s = load()
    inf, nan = float("inf"), float("nan")
    changes = [
        ("hidden_size", "q", 0), ("hidden_size", "q", -8), ("hidden_size", "q", 16), ("hidden_size", "q", 1 << 40),
        ("hidden_size", "q", (1 << 63) - 1), ("vocab_size", "q", 7), ("vocab_size", "q", 0), ("vocab_size", "q", 1 << 31),
        ("num_hidden_layers", "q", 2), ("num_hidden_layers", "q", 0), ("num_hidden_layers", "q", 1024),
        ("num_hidden_layers", "q", 1 << 20), ("head_dim", "q", 3), ("head_dim", "q", 0), ("state_size", "q", 3),
        ("state_size", "q", -1), ("n_groups", "q", 3), ("conv_kernel", "q", 5), ("conv_kernel", "q", 1 << 30),
        ("gate_block", "q", 3), ("intermediate_size", "q", 9), ("rms_norm_eps", "d", 0.0), ("rms_norm_eps", "d", inf),
        ("rms_norm_eps", "d", nan), ("rms_norm_eps", "d", -1.0), ("router_threshold", "d", nan),
        ("router_threshold", "d", 1.5), ("router_threshold", "d", -inf), ("bos_token_id", "q", 1 << 20),
        ("bos_token_id", "q", -5), ("eos_token_id", "q", 1 << 40), ("routed_layers", "q", 3), ("routed_layers", "q", -1),
    ]
    for key, fmt, value in changes:
        yield f"hyper-{key}-{value}", load().put(s.values[key], fmt, value), "", True
    yield "hyper-tied", load().put(s.values["tie_word_embeddings"], "Q", 0), "lm_head.weight is missing", True
    yield "hyper-bool", load().put(s.values["tie_word_embeddings"], "Q", 2), "neither 0 nor 1", True
    yield "hyper-type-of-int", load().put(s.keys["hidden_size"] + 4, "B", 2), "hidden_size", True
    yield "hyper-model-type", load().put(s.values["model_type"] + 8, "6s", b"brodge"), "expected one of bridge", True
    yield "hyper-sluice-type", load().put(s.values["sluice.type"] + 8, "3s", b"f31"), "sluice.type", True
    renamed = load()
    at = renamed.tensor("model.norm.weight")
    yield "tensor-renamed", renamed.put(at, "17s", b"model.Norm.weight"), "model.Norm.weight", True
    at = s.tensor("model.norm.weight")
    n = struct.unpack_from("<Q", s.data, at + 104)[0]
    yield "tensor-axes", load().put(at + 100, "IQQ", 2, 1, n), "shape [1, 8], expected [8]", True
    yield "tensor-of-other-type", load().put(at + 96, "I", 1).put(at + 144, "Q", 2 * n), "is of type f16", True


def slu_files(sound, folder, seal):
    data = Path(sound).read_bytes()
    for changes in (slu_changes, hyper_changes, large_changes):
        for name, content, text, sealed in changes(lambda: Slu(data)):
            path = Path(folder) / f"{name}.slu"
            path.write_bytes(content if isinstance(content, bytes) else content.data)
            if sealed:
                subprocess.run([seal, path], check=True)
            yield name, path, text


# ---- checkpoint folders -----------------------------------------------------------------------------

def read_safetensors(path):
    data = Path(path).read_bytes()
    n = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8:8 + n]), data[8 + n:]


def write_safetensors(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


class Folder:
    """A copy of the sound folder (links where nothing is changed)."""

    def __init__(self, sound, path):
        self.path = Path(path)
        shutil.copytree(sound, self.path)

    def __truediv__(self, name):
        return self.path / name

    def config(self, **changes):
        config = json.loads((self / "config.json").read_text())
        config.update(changes)
        (self / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "DROP"}))

    def text(self, name, content):
        (self / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def edit(self, change):
        """change(header, data) returns both; header may be bytes."""
        write_safetensors(self / "model.safetensors", *change(*read_safetensors(self / "model.safetensors")))

    def retensor(self, name, **fields):
        def change(header, data):
            header[name].update(fields)
            return header, data
        self.edit(change)

    def shards(self, change=lambda weight_map: None, name="b.safetensors"):
        """Two shards and their index, which change may edit."""
        header, data = read_safetensors(self / "model.safetensors")
        (self / "model.safetensors").unlink()
        weight_map = {}
        names = sorted(header)
        for file, part in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
            out, body = {}, b""
            for key in part:
                begin, end = header[key]["data_offsets"]
                out[key] = {**header[key], "data_offsets": [len(body), len(body) + end - begin]}
                body += data[begin:end]
                weight_map[key] = file
            write_safetensors(self / file, out, body)
        index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
        replaced = change(weight_map)
        if isinstance(replaced, (bytes, str)):
            self.text("model.safetensors.index.json", replaced)
        else:
            self.text("model.safetensors.index.json", json.dumps(index))

    def tokenizer(self, change):
        tokenizer = json.loads((self / "tokenizer.json").read_text())
        change(tokenizer)
        self.text("tokenizer.json", json.dumps(tokenizer))

    def replace(self, name, make):
        (self / name).unlink()
        make(self / name)


def config_cases():
    keys = ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "state_size", "intermediate_size"]
    for key in keys:
        yield f"config-without-{key}", lambda f, k=key: f.config(**{k: "DROP"}), key
        yield f"config-null-{key}", lambda f, k=key: f.config(**{k: None}), key
        yield f"config-list-{key}", lambda f, k=key: f.config(**{k: [8, "x"]}), key
    numbers = keys[1:] + ["n_groups", "conv_kernel", "gate_block", "inner_size"]
    for key in numbers:
        for name, value in (("zero", 0), ("negative", -8), ("huge", 1 << 40), ("text", "8"), ("fraction", 8.0),
                            ("bool", True), ("object", {"a": 1})):
            yield f"config-{name}-{key}", lambda f, k=key, v=value: f.config(**{k: v}), key
    for key, value in (("head_dim", 3), ("n_groups", 3), ("gate_block", 3), ("rms_norm_eps", 0), ("rms_norm_eps", -1e-5),
                       ("rms_norm_eps", "small"), ("rms_norm_eps", {"a": 1}), ("ssm_type", "s5"), ("ssm_type", ["s6"] * 9),
                       ("ssm_type", [6]), ("ssm_type", ["s6", 4]), ("routed_layers", [99]), ("routed_layers", [-1]),
                       ("routed_layers", 1), ("routed_layers", [0.5]), ("routed_layers", ["0"]), ("routed_layers", {}),
                       ("router_threshold", 1.5), ("router_threshold", -0.1), ("router_threshold", [0.5] * 9),
                       ("router_threshold", "half"), ("router_threshold", [None]), ("tie_word_embeddings", 1),
                       ("tie_word_embeddings", "yes"), ("bos_token_id", 1 << 20), ("bos_token_id", "a"),
                       ("eos_token_id", [0, 1 << 20]), ("eos_token_id", -2), ("eos_token_id", 0.5)):
        yield f"config-{key}-{json.dumps(value)[:20].replace('/', '_')}", lambda f, k=key, v=value: f.config(**{k: v}), key
    yield "config-unknown-type", lambda f: f.config(model_type="brodge\n"), "brodge\\n"
    yield "config-known-types", lambda f: f.config(model_type="gpt2"), "expected one of bridge, llama, mistral"
    for name, text in (("empty", ""), ("spaces", "   "), ("list", "[]"), ("number", "3"), ("cut", '{"model_type": "bridge"'),
                       ("nan", '{"model_type": "bridge", "x": NaN}'), ("overflow", '{"x": 1e999}'),
                       ("infinity", '{"x": -Infinity}'), ("big-int", '{"x": 123456789012345678901234567890}'),
                       ("twice", '{"x": 1, "x": 2}'), ("zero-byte", b'{"x": "\\u0000"}'), ("not-utf8", b'{"x": "\xff"}'),
                       ("deep-list", "[" * 1000000), ("deep-object", '{"a":' * 1000000),
                       ("deep-closed", '{"x": ' + "[" * 200 + "]" * 200 + "}"), ("binary", bytes(range(256)) * 16),
                       ("bom", b'\xef\xbb\xbf{}'), ("large", b" " * (9 << 20)),
                       ("keys", json_keys(700_000)), ("lists", b'{"x":[' + b"[]," * 2_500_000 + b"1]}"),
                       ("members", '{"a":{"b":"%s",' % ("z" * 100000) * 60 + '"c":1' + "}}" * 60),
                       ("many-keys", json.dumps({f"k{i}": i for i in range(100000)}))):
        yield f"config-{name}", lambda f, t=text: f.text("config.json", t), "config.json"


def safetensors_cases():
    norm, embed = "model.norm.weight", "model.embed.weight"

    def raw(header):
        return lambda f: f.edit(lambda h, d: (header(h), d))

    def swap(h):
        a, b = h[norm]["data_offsets"], h["model.layers.0.norm_mix.weight"]["data_offsets"]
        h[norm]["data_offsets"] = b
        return h

    def drop_range(h, d):
        end = max(t["data_offsets"][1] for t in h.values())
        return h, d[:end - 4]

    def surplus(h, d):
        h["extra\x07"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(d), len(d) + 4]}
        return h, d + bytes(4)

    def poison(word):
        def change(h, d):
            at = h[norm]["data_offsets"][0]
            return h, d[:at] + word + d[at + 4:]
        return change

    yield "weights-none", lambda f: (f / "model.safetensors").unlink(), "model.safetensors"
    for name, data, text in (("empty", b"", "at least 8"), ("four-bytes", b"abcd", "at least 8"), ("zeros", bytes(64), "'{'"),
                             ("length-max", b"\xff" * 16, "at most 100000000"), ("length-over", struct.pack("<Q", 100) + b"{}", "only"),
                             ("length-0", bytes(8), "'{'"), ("html", b"<!DOCTYPE html><html></html>", "header has"),
                             ("list", struct.pack("<Q", 2) + b"[]", "'{'"), ("deep", struct.pack("<Q", 100000) + b'{"a":' * 20000, "field a is unknown")):
        yield f"weights-{name}", lambda f, d=data: f.text("model.safetensors", d), text
    yield "weights-header-over-100-MB", lambda f: sparse(f / "model.safetensors", struct.pack("<Q", 150000000) + b"{", 200000000), "at most 100000000"
    yield "weights-cut", lambda f: f.edit(drop_range), "bytes of data"
    yield "weights-longer", lambda f: f.edit(lambda h, d: (h, d + b"\0\0\0\0")), "the tensors end before"
    yield "weights-hole", lambda f: f.edit(lambda h, d: ({k: {**t, "data_offsets": [x + 4 for x in t["data_offsets"]]} for k, t in h.items()}, bytes(4) + d)), "hole"
    yield "weights-overlap", raw(swap), "data_offsets begin at"
    yield "weights-key-twice", lambda f: f.edit(lambda h, d: ((json.dumps(h)[:-1] + f', "{norm}": ' + json.dumps(h[norm]) + "}").encode(), d)), norm
    yield "weights-comma", raw(lambda h: json.dumps(h).encode()[:-1] + b",}"), "broken"
    yield "weights-after-header", raw(lambda h: json.dumps(h).encode() + b"x"), "nothing after"
    yield "weights-metadata", raw(lambda h: {"__metadata__": {"a": 1}, **h}), "broken"
    for dtype in ("F64", "I64", "U8", "F8_E4M3", "f32", "", "X" * 500):
        yield f"weights-dtype-{dtype[:8]}", lambda f, t=dtype: f.retensor(norm, dtype=t), "F32, F16 or BF16"
    for name, shape, text in (("missing-axis", [], norm), ("more-axes", [1, 8], "[1, 8]"), ("many-axes", [1] * 9 + [8], "too long"),
                              ("negative", [-8], "integer"), ("fraction", [8.0], "integer"), ("other", [9], "bytes"),
                              ("zero", [0], "bytes"), ("wrap", [1 << 62, 1 << 62], "bytes"), ("text", "8", "integers"), ("null", None, "integers")):
        yield f"weights-shape-{name}", lambda f, s=shape: f.retensor(norm, shape=s), text
    for name, offsets in (("backwards", [8, 0]), ("over", [0, 1 << 40]), ("max", [(1 << 63) - 1] * 2), ("one", [0]), ("three", [0, 32, 32]),
                          ("negative", [-1, 31]), ("huge", [0, 1 << 64])):
        yield f"weights-offsets-{name}", lambda f, o=offsets: f.retensor(norm, data_offsets=o), ""
    yield "weights-empty-tensor", lambda f: f.edit(lambda h, d: ({**h, "nothing": {"dtype": "F32", "shape": [0, 4], "data_offsets": [len(d)] * 2}}, d)), "nothing"
    yield "weights-surplus", lambda f: f.edit(surplus), "extra\\x07"
    yield "weights-surplus-long-name", lambda f: f.edit(lambda h, d: ({**h, "n" * 5000: {"dtype": "F32", "shape": [1], "data_offsets": [len(d), len(d) + 4]}}, d + bytes(4))), "nnn..."
    yield "weights-nan", lambda f: f.edit(poison(struct.pack("<f", float("nan")))), "model.norm.weight holds NaN"
    yield "weights-infinite", lambda f: f.edit(poison(struct.pack("<f", float("-inf")))), "model.norm.weight holds an infinite"
    yield "weights-head-of-tied", lambda f: f.edit(lambda h, d: ({**h, "lm_head.weight": {**h[embed], "data_offsets": [len(d), len(d) + h[embed]["data_offsets"][1] - h[embed]["data_offsets"][0]]}}, d + bytes(h[embed]["data_offsets"][1] - h[embed]["data_offsets"][0]))), "lm_head.weight"
    yield "weights-untied-without-head", lambda f: f.config(tie_word_embeddings=False), "lm_head.weight is missing"


def index_cases():
    first = "model.embed.weight"
    yield "index-broken", lambda f: f.shards(lambda m: "{"), "index.json"
    yield "index-empty", lambda f: f.shards(lambda m: ""), "index.json"
    yield "index-list", lambda f: f.shards(lambda m: "[]"), "weight_map"
    yield "index-without-map", lambda f: f.shards(lambda m: "{}"), "weight_map"
    yield "index-map-list", lambda f: f.shards(lambda m: '{"weight_map": []}'), "weight_map"
    yield "index-empty-map", lambda f: f.shards(lambda m: m.clear()), "weight_map"
    yield "index-keys", lambda f: f.shards(lambda m: json_keys(1_500_000)), "values and keys"
    yield "index-lists", lambda f: f.shards(lambda m: b"[" + b"[]," * 5_000_000 + b"1]"), "values and keys"
    yield "index-deep", lambda f: f.shards(lambda m: '{"a":' * 100000), "index.json"
    yield "index-twice", lambda f: f.shards(lambda m: '{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'), "duplicate"
    for name, value in (("number", 3), ("up", "../a.safetensors"), ("absolute", "/etc/passwd"), ("inside", "x/a.safetensors"),
                        ("dots", ".."), ("dot", "."), ("empty", ""), ("backslash", "..\\a"), ("control", "a\n.safetensors")):
        yield f"index-name-{name}", lambda f, v=value: f.shards(lambda m: m.update({first: v})), "weight_map"
    yield "index-no-such-shard", lambda f: f.shards(lambda m: m.update({first: "c.safetensors"})), "c.safetensors"
    yield "index-other-shard", lambda f: f.shards(lambda m: m.update({first: "b.safetensors"})), "weight_map says"
    yield "index-listed-but-absent", lambda f: f.shards(lambda m: m.update(ghost="a.safetensors")), "ghost is not in"
    yield "index-unlisted", lambda f: f.shards(lambda m: m.pop(first) and None), "not listed"
    yield "index-shard-missing", lambda f: (f.shards(), (f / "b.safetensors").unlink()), "b.safetensors"
    yield "index-shard-folder", lambda f: (f.shards(), (f / "b.safetensors").unlink(), (f / "b.safetensors").mkdir()), "a folder"
    yield "index-shard-twice", lambda f: (f.shards(), shutil.copy(f / "a.safetensors", f / "c.safetensors"),
                                          rewrite_map(f, lambda m: m.update({"x": "c.safetensors"}))), "two shards"
    yield "index-and-single", lambda f: (f.shards(), shutil.copy(f / "a.safetensors", f / "model.safetensors")), "does not name"


def rewrite_map(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def tokenizer_cases():
    yield "tokenizer-empty", lambda f: f.text("tokenizer.json", ""), "tokenizer.json"
    yield "tokenizer-broken", lambda f: f.text("tokenizer.json", "{"), "tokenizer.json"
    yield "tokenizer-list", lambda f: f.text("tokenizer.json", "[]"), "tokenizer.json"
    yield "tokenizer-deep", lambda f: f.text("tokenizer.json", '{"model":' * 100000), "tokenizer.json"
    yield "tokenizer-not-utf8", lambda f: f.text("tokenizer.json", b'{"\xff": 1}'), "tokenizer.json"
    yield "tokenizer-nan", lambda f: f.text("tokenizer.json", '{"x": NaN}'), "tokenizer.json"
    for kind in ("Unigram", "WordPiece", "WordLevel"):
        yield f"tokenizer-{kind}", lambda f, k=kind: f.tokenizer(lambda t: t["model"].update(type=k)), kind
    for name, text in (("none", ""), ("two", "ab"), ("long", " " * 1024)):
        yield f"tokenizer-metaspace-{name}", lambda f, x=text: f.tokenizer(
            lambda t: t.update(pre_tokenizer={"type": "Metaspace", "replacement": x})), "replacement of Metaspace"
    yield "tokenizer-id-twice", lambda f: f.tokenizer(lambda t: t["model"]["vocab"].update({"!": 4})), "tokenizer.json"
    yield "tokenizer-id-too-large", lambda f: f.tokenizer(lambda t: t["model"]["vocab"].update({"!": 1 << 20})), "tokenizer.json"
    yield "tokenizer-id-negative", lambda f: f.tokenizer(lambda t: t["model"]["vocab"].update({"!": -1})), "tokenizer.json"
    yield "tokenizer-id-fraction", lambda f: f.tokenizer(lambda t: t["model"]["vocab"].update({"!": 3.5})), "tokenizer.json"
    yield "tokenizer-merge-unknown", lambda f: f.tokenizer(lambda t: t["model"]["merges"].append("zz yy")), "tokenizer.json"
    yield "tokenizer-merge-number", lambda f: f.tokenizer(lambda t: t["model"]["merges"].append(3)), "tokenizer.json"
    for name in ("tokenizer.model", "vocab.txt", "spiece.model", "vocab.json"):
        yield f"tokenizer-only-{name}", lambda f, n=name: ((f / "tokenizer.json").rename(f / n)), name
    limit = "values and keys"
    yield "tokenizer-keys", lambda f: f.text("tokenizer.json", json_keys(3_200_000)), limit
    yield "tokenizer-lists", lambda f: f.text("tokenizer.json", b"[" + b"[]," * 12_000_000 + b"1]"), limit
    yield "tokenizer-numbers", lambda f: f.text("tokenizer.json", b"[" + b"1," * 20_000_000 + b"1]"), limit
    yield "tokenizer-slow-normalizer", lambda f: f.tokenizer(slow_normalizer), "normalizers pass"
    yield "template-keys", lambda f: f.text("tokenizer_config.json", json_keys(1_500_000)), limit
    yield "template-lists", lambda f: f.text("tokenizer_config.json", b"[" + b"[]," * 5_000_000 + b"1]"), limit
    yield "template-broken", lambda f: f.text("tokenizer_config.json", "{"), "tokenizer_config.json"
    yield "template-deep", lambda f: f.text("tokenizer_config.json", "[" * 100000), "tokenizer_config.json"
    yield "template-not-utf8", lambda f: f.text("chat_template.jinja", b"\xff\xfe"), "chat_template.jinja"
    yield "template-zero-byte", lambda f: f.text("chat_template.jinja", b"a\0b"), "chat_template.jinja"
    yield "template-large", lambda f: f.text("chat_template.jinja", b"a" * (2 << 20)), "chat_template.jinja"


def slow_normalizer(tokenizer):
    """Rules that blow each added token up and make it short again; 250 tokens that were pieces."""
    vocab = tokenizer["model"]["vocab"]
    pieces = [p for p in list(vocab)[3:] if not set(p) & set("yz")][:250]
    tokenizer["model"]["merges"] = []
    for piece in pieces:
        tokenizer["added_tokens"].append({"id": vocab.pop(piece), "content": piece + "z" * 15, "normalized": True})
    rules = [("z", "y" * 1000)] + [("yy", "yy")] * 14 + [("yy", "")]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in rules]}


def sparse(path, head, size):
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)


def kind_cases():
    """Folders, pipes and devices in the place of files."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        yield f"folder-for-{name}", lambda f, n=name: f.replace(n, lambda p: p.mkdir()), "a folder"
        yield f"pipe-for-{name}", lambda f, n=name: f.replace(n, os.mkfifo), "a pipe"
        yield f"device-for-{name}", lambda f, n=name: f.replace(n, lambda p: p.symlink_to("/dev/zero")), "a device"
        yield f"loop-for-{name}", lambda f, n=name: f.replace(n, lambda p: p.symlink_to(p.name)), ""
        yield f"sparse-{name}", lambda f, n=name: f.replace(n, lambda p: sparse(p, b"", 1 << 40)), ""


def folders(sound, folder):
    for cases in (config_cases, safetensors_cases, index_cases, tokenizer_cases, kind_cases):
        for i, (name, change, text) in enumerate(cases()):
            made = Folder(sound, Path(folder) / f"{cases.__name__}-{i}")
            change(made)
            yield name, made.path, text


if __name__ == "__main__":
    sound_slu, sound_folder, seal_program, out = sys.argv[1:]
    Path(out).mkdir(parents=True)
    for case in slu_files(sound_slu, out, seal_program):
        print(*case, sep="\t")
    for case in folders(sound_folder, out):
        print(*case, sep="\t")
