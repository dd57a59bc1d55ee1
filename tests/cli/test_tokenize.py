"""sluice tokenize: ids and only ids, exactly the bytes back, from all three places."""
import json
import os
import random
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from tests.cli.helper import N_VOCAB, ROOT, SLUICE, SPECIAL, Case, checkpoint, model, scratch, sluice, tokenizer

VOCAB = tokenizer()["model"]["vocab"]


def run(*args, **more):
    return sluice("tokenize", "-m", model(), *args, **more)


def encode(data):
    out = run(stdin=data, check=0).stdout
    assert out.endswith(b"\n") and out.count(b"\n") == 1, out
    return [int(t) for t in out[:-1].split(b" ")] if out != b"\n" else []


def decode(ids):
    return run("--decode", stdin=" ".join(map(str, ids)).encode(), check=0).stdout


class Tokenize(Case):
    def test_ids(self):
        the, space_the = VOCAB["the"], VOCAB["Ġthe"]
        self.assertEqual(encode(b"the the"), [the, space_the])
        self.assertEqual(run("-p", "the the", check=0).stdout, b"%d %d\n" % (the, space_the))
        result = run("-p", "", check=0)
        self.assertEqual((result.stdout, result.stderr), (b"\n", b""))
        self.assertEqual(run(check=0).stdout, b"\n")

    def test_nothing_added_or_stripped(self):
        for data in (b"\n", b"the\n", b" ", b"\r\n the \r\n", b"\xef\xbb\xbfthe", b"\0", b"a\0b", b"\x1a",
                     b"the\n\n\n"):
            self.assertEqual(decode(encode(data)), data)

    def test_special(self):
        text = SPECIAL[1] + "user\nthe" + SPECIAL[2]
        ids = encode(text.encode())
        self.assertEqual((ids[0], ids[-1]), (1, 2))
        self.assertEqual(decode(ids), text.encode())
        self.assertEqual(decode([0, 2]), (SPECIAL[0] + SPECIAL[2]).encode())

    def test_three_places(self):
        data = bytes(range(256)) * 2 + "naïve 日本 🦙\r\n".encode()
        path = scratch() / "text"
        path.write_bytes(data)
        ids = run("-f", path, check=0).stdout
        self.assertEqual(ids, run("-f", "-", stdin=data, check=0).stdout)
        self.assertEqual(ids, run(stdin=data, check=0).stdout)
        path.write_bytes(ids)
        self.assertEqual(run("--decode", "-f", path, check=0).stdout, data)
        self.assertEqual(run("--decode", stdin=ids, check=0).stdout, data)
        self.assertEqual(run("--decode", "-p", ids, check=0).stdout, data)
        argument = data.replace(b"\0", b"")
        self.assertEqual(decode(map(int, run("-p", argument, check=0).stdout.split())), argument)

    def test_random_bytes(self):
        rng = random.Random(2)
        for _ in range(20):
            data = bytes(rng.choice((rng.randrange(256), 0x20, 0xE2, 0x96, 0x81, 0xF0, 0x27))
                         for _ in range(rng.randrange(200)))
            self.assertEqual(decode(encode(data)), data)

    def test_separators(self):
        for ids in (b"3,4,5", b"3 4 5", b" 3\n4\r\n5\n", b"3,\t4 , 5,"):
            self.assertEqual(run("--decode", stdin=ids, check=0).stdout, decode([3, 4, 5]))
        for ids in (b"", b"\n", b" ,"):
            self.assertEqual(run("--decode", stdin=ids, check=0).stdout, b"")

    def test_bad_ids(self):
        for bad in (b"-1", b"%d" % N_VOCAB, b"99999999999999999999", b"x", b"1.5", b"3 4 x", b"0x1", b"1;2",
                    b"\xff", b"1\0"):
            self.assert_error(run("--decode", stdin=bad), 1)

    def test_llama_kind(self):
        """The space that this kind puts before a text is not part of it, and is gone after decoding."""
        fixture = json.loads((ROOT / "tests/unit/tokenizers/llama2.json").read_text())
        folder = checkpoint(vocab_size=500)
        (folder / "tokenizer.json").write_text(json.dumps(fixture["tokenizer"]))
        path = scratch() / "llama-kind.slu"
        sluice("convert", folder, path, check=0)
        for data in (b"", b"a", b" a", b"  ", b"</s>a</s> b", "é日\n ".encode(), b"\xff \xe2\x96",
                     bytes(range(256))):
            ids = sluice("tokenize", "-m", path, stdin=data, check=0).stdout
            self.assertEqual(sluice("tokenize", "-m", path, "--decode", stdin=ids, check=0).stdout, data)
        self.assertIn(b"BPE with byte fallback,", sluice("info", "-m", path, check=0).stdout)
        self.assertIn(b"byte-level BPE,", sluice("info", "-m", model(), check=0).stdout)

    def test_not_quadratic(self):
        for data in (b"a", b" ", b"\n", b"9", b"\xff", b"the", b"!"):
            data = (data * (1 << 18))[:1 << 18]
            start = time.monotonic()
            self.assertEqual(decode(encode(data)), data)
            self.assertLess(time.monotonic() - start, 20)  # a fraction of a second where nothing else runs

    def test_stages_that_multiply(self):
        """Each character a word, and a mark before each word, 15 times over: 32,768 times the text."""
        stages = [stage for mark in "xyxyxyxyxyxyxyx" for stage in (
            {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
            {"type": "Metaspace", "replacement": mark, "prepend_scheme": "always", "split": False})]
        stages.append({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
        folder, out = checkpoint(), Path(tempfile.mkdtemp(dir=scratch())) / "many.slu"
        changed = {**tokenizer(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": stages}}
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        sluice("convert", folder, out, check=0)
        result = sluice("tokenize", "-m", out, stdin=b"z" * 100_000)
        self.assert_error(result, 1, "pre-tokenizer", "bytes")

    def test_errors(self):
        self.assert_error(run("-p", "a", "-f", "b"), 2, "-p", "-f")
        self.assert_error(run("-f", scratch() / "none"), 1, "none")
        self.assert_error(run("-f", scratch()), 1)
        self.assert_error(run("-x"), 2, "-x")
        self.assert_error(run("the"), 2, "the")
        bare = model(text=False)
        self.assert_error(sluice("tokenize", "-m", bare, "-p", "a"), 1, "tokenizer")
        self.assert_error(sluice("tokenize", "-m", bare, "--decode", "-p", "1"), 1, "tokenizer")

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_failed_write(self):
        command = [SLUICE, "tokenize", "-m", model(), "-p", "the"]
        with open("/dev/full", "wb") as full:
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        self.assert_error_line(result.stderr)


if __name__ == "__main__":
    unittest.main()
