"""sluice logits and perplexity: arrays in any chunking, and a perplexity that follows from them."""
import ast
import math
import signal
import struct
import subprocess
import unittest
from array import array

from tests.cli.helper import N_VOCAB, SLUICE, Case, model, scratch, sluice, writes_in

IDS = [0, 265, 40, 41, 3, 258, 99, 7, 7, 7, 130, 0, 2, 200, 268, 12]


def read_npy(path):
    data = path.read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    size = struct.unpack_from("<H", data, 8)[0]
    header = ast.literal_eval(data[10:10 + size].decode("latin1"))
    assert header["descr"] == "<f4" and header["fortran_order"] is False and (10 + size) % 64 == 0
    values = array("f", data[10 + size:])
    n, width = header["shape"]
    assert len(values) == n * width
    return [values[i * width:(i + 1) * width] for i in range(n)]


def ids(tokens):
    return ",".join(map(str, tokens))


def logits(tokens, *args, kind="bridge", **more):
    path = scratch() / "logits.npy"
    command = ["logits", "-m", model(kind, text=False), "--tokens", ids(tokens), "-o", path, *args]
    result = sluice(*command, check=0, **more)
    assert (result.stdout, result.stderr) == (b"", b"")
    return read_npy(path)


def surprise(row, token):
    top = max(row)
    return top + math.log(sum(math.exp(x - top) for x in row)) - row[token]


class Logits(Case):
    def test_same_bits_in_any_chunking(self):
        for kind in ("bridge", "llama"):
            whole = logits(IDS, kind=kind)
            self.assertEqual((len(whole), len(whole[0])), (len(IDS), N_VOCAB))
            self.assertTrue(all(math.isfinite(x) for row in whole for x in row))
            for flags in (["--chunk", "1"], ["--chunk", "3"], ["--chunk", "1000"], ["-b", "5"], ["-t", "1"]):
                with self.subTest(kind=kind, flags=flags):
                    self.assertEqual(logits(IDS, *flags, kind=kind), whole)

    def test_past_does_not_see_the_future(self):
        self.assertEqual(logits(IDS)[:5], logits(IDS[:5]))
        self.assertNotEqual(logits(IDS)[5], logits(IDS[:5] + [1])[5])

    def test_threshold(self):
        self.assertNotEqual(logits(IDS, "--route-threshold", "0"), logits(IDS, "--route-threshold", "1"))

    def test_text_adds_no_token(self):
        path = scratch() / "text.npy"
        sluice("logits", "-m", model(), "-p", "on", "-o", path, check=0)
        self.assertEqual(read_npy(path), logits([265]))
        source = scratch() / "text.txt"
        source.write_bytes(b"on\n")
        sluice("logits", "-m", model(), "-f", source, "-o", path, check=0)
        self.assertEqual(len(read_npy(path)), 2)

    def test_summary(self):
        lines = sluice("logits", "-m", model(), "--tokens", ids(IDS), check=0).stdout.decode().splitlines()
        last = logits(IDS)[-1]
        best = sorted(range(N_VOCAB), key=lambda i: -last[i])[:10]
        self.assertEqual([int(line.split()[0]) for line in lines], best)
        for line, i in zip(lines, best):
            self.assertAlmostEqual(float(line.split()[1]), last[i], places=4)

    def test_errors(self):
        m = ["logits", "-m", model(text=False)]
        self.assert_error(sluice(*m, "--tokens", "1,2,x"), 2, "'x'")
        self.assert_error(sluice(*m, "--tokens", f"1,{N_VOCAB}"), 2, f"'{N_VOCAB}'", str(N_VOCAB - 1))
        self.assert_error(sluice(*m, "--tokens", ""), 1, "no tokens")
        self.assert_error(sluice(*m, "-p", "x"), 1, "tokenizer")
        nowhere = "/no/such/folder/x.npy"
        self.assert_error(sluice(*m, "--tokens", "1", "-o", nowhere), 1, nowhere)
        llama = ["logits", "-m", model("llama", text=False), "--tokens"]
        sluice(*llama, ids([1] * 96), check=0)
        self.assert_error(sluice(*llama, ids([1] * 97)), 1, "97", "96")

    def test_failure_leaves_the_old_file(self):
        path = scratch() / "kept.npy"
        path.write_bytes(b"old")
        sluice("logits", "-m", model(text=False), "--tokens", "1,x", "-o", path, check=2)
        self.assertEqual(path.read_bytes(), b"old")
        self.assertEqual([p.name for p in scratch().iterdir() if p.name.startswith("kept")], ["kept.npy"])

    def test_interrupted_leaves_nothing(self):
        folder = scratch() / "interrupted"
        folder.mkdir(exist_ok=True)
        text = scratch() / "long.txt"
        text.write_bytes(b"x" * 100000)
        process = subprocess.Popen([SLUICE, "logits", "-m", model(), "-f", text, "--chunk", "1", "-t", "1",
                                    "-o", folder / "x.npy"], stderr=subprocess.PIPE)
        writes_in(process, folder)
        process.send_signal(signal.SIGINT)
        self.assertEqual((process.communicate(timeout=60)[1], process.returncode), (b"", 130))
        self.assertEqual(list(folder.iterdir()), [])


class Perplexity(Case):
    TEXT = bytes(range(3, 120)) * 3

    def setUp(self):
        self.path = scratch() / "text.bin"
        self.path.write_bytes(self.TEXT)
        tokens = sluice("tokenize", "-m", model(), "-f", self.path, check=0).stdout.split()
        self.tokens = [int(t) for t in tokens]

    def measure(self, *args, **changes):
        kind = changes.pop("kind", "bridge")
        result = sluice("perplexity", "-m", model(kind, **changes), "-f", self.path, *args, check=0)
        self.assertEqual(result.stderr, b"")
        self.assertRegex(result.stdout, rb"(^|\n)perplexity: \d+\.\d+ \+/- \d+\.\d+ \(\d+ tokens\)\n$")
        words = result.stdout.splitlines()[-1].split()
        return float(words[1]), float(words[3]), int(words[4][1:])

    def expected(self, windows, kind="bridge"):
        """windows: lists of tokens; all but the first of each are scored."""
        scores = []
        for tokens in windows:
            rows = logits(tokens[:-1], kind=kind)
            scores += [surprise(row, token) for row, token in zip(rows, tokens[1:])]
        mean = sum(scores) / len(scores)
        variance = sum(x * x for x in scores) / len(scores) - mean * mean
        return math.exp(mean), math.exp(mean) * math.sqrt(variance / (len(scores) - 1)), len(scores)

    def assert_close(self, got, expected):
        self.assertAlmostEqual(got[0] / expected[0], 1, places=4)
        self.assertAlmostEqual(got[1] / expected[1], 1, places=3)
        self.assertEqual(got[2], expected[2])

    def test_whole_text(self):
        self.assert_close(self.measure(), self.expected([[0, *self.tokens]]))
        self.assertEqual(self.measure(), self.measure("-b", "7", "-t", "1"))

    def test_windows(self):
        n = len(self.tokens)
        windows = [[0, *self.tokens[i:i + 50]] for i in range(0, n, 50)]
        self.assert_close(self.measure("--ctx", "50"), self.expected(windows))

    def test_without_begin_token(self):
        n = len(self.tokens)
        windows = [self.tokens[i:i + 51] for i in range(0, n - 1, 50)]
        self.assert_close(self.measure("--ctx", "50", bos_token_id=None), self.expected(windows))
        self.assert_close(self.measure(bos_token_id=None), self.expected([self.tokens]))

    def test_transformer_takes_windows_of_its_context(self):
        windows = [[0, *self.tokens[i:i + 96]] for i in range(0, len(self.tokens), 96)]
        self.assert_close(self.measure(kind="llama"), self.expected(windows, kind="llama"))
        result = sluice("perplexity", "-m", model("llama"), "-f", self.path, "--ctx", "97")
        self.assert_error(result, 1, "97", "96")

    def test_too_short(self):
        self.path.write_bytes(b"")
        self.assert_error(sluice("perplexity", "-m", model(), "-f", self.path), 1, "0 tokens")


if __name__ == "__main__":
    unittest.main()
