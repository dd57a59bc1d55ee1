"""sluice generate: text, stops, any bytes, interruption, and the same text as batch."""
import json
import os
import pty
import select
import signal
import subprocess
import time
import unittest

from tests.cli.helper import SLUICE, Case, model, scratch, sluice

LONG = ["-n", "64", "--ignore-eos", "--temp", "1"]


def text_of(*args, **more):
    result = sluice("generate", *args, check=0, **more)
    assert result.stdout.endswith(b"\n"), result.stdout
    return result.stdout[:-1]


def read_terminal(master, process):
    """All that the program writes to a pseudo-terminal until it ends."""
    data = b""
    while True:
        if select.select([master], [], [], 0.05)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:
                piece = b""
            if not piece:
                return data
            data += piece
        elif process.poll() is not None:
            return data


def on_terminal(*args):
    """All that a command, which must succeed, writes to a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen([SLUICE, *map(str, args)], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    data = read_terminal(master, process)
    os.close(master)
    assert process.wait() == 0, data
    return data


class Text(Case):
    def setUp(self):
        self.m = ["-m", model()]

    def test_text_and_statistics(self):
        result = sluice("generate", *self.m, "-p", "the other", *LONG, check=0)
        self.assertTrue(result.stdout.endswith(b"\n"))
        self.assertGreater(len(result.stdout), 30)
        self.assertRegex(result.stderr, rb"^prompt \d+ tokens, .* generated 64 tokens, [^\n]*\n$")
        self.assertFalse(result.stdout.startswith(b"the other"))

    def test_quiet(self):
        self.assertEqual(sluice("generate", *self.m, "-p", "x", "-q", check=0).stderr, b"")

    def test_deterministic(self):
        one = text_of(*self.m, "-p", "the", *LONG)
        self.assertEqual(one, text_of(*self.m, "-p", "the", *LONG))
        self.assertEqual(one, text_of(*self.m, "-p", "the", *LONG, "-t", "1"))
        self.assertEqual(one, text_of(*self.m, "-p", "the", *LONG, "-b", "1"))
        self.assertEqual(one, text_of(*self.m, "-p", "the", *LONG, "-s", "0"))
        self.assertNotEqual(one, text_of(*self.m, "-p", "the", *LONG, "-s", "1"))
        self.assertNotEqual(one, text_of(*self.m, "-p", "on", *LONG))

    def test_random_seed(self):
        texts = {text_of(*self.m, "-p", "the", *LONG, "-s", "-1") for _ in range(3)}
        self.assertGreater(len(texts), 1)

    def test_sampling_flags_matter(self):
        base = text_of(*self.m, "-p", "the", *LONG)
        greedy = text_of(*self.m, "-p", "the", "-n", "64", "--ignore-eos", "--temp", "0")
        self.assertEqual(greedy, text_of(*self.m, "-p", "the", *LONG, "--top-k", "1"))
        for flags in (["--repeat-penalty", "1.8"], ["--top-p", "0.3"], ["--min-p", "0.6"], ["--temp", "5"]):
            self.assertNotEqual(base, text_of(*self.m, "-p", "the", *LONG, *flags), flags)

    def test_route_threshold(self):
        texts = {text_of(*self.m, "-p", "the", *LONG, "--route-threshold", x) for x in ("0", "0.5", "1")}
        self.assertGreater(len(texts), 1)
        llama = ["-m", model("llama"), "-p", "x", "-n", "9"]
        self.assertEqual(text_of(*llama), text_of(*llama, "--route-threshold", "0.3"))

    def test_length(self):
        for n in (0, 1, 7):
            text = text_of("-m", model(text=False), "--tokens", "5,6", "-n", n, "--ignore-eos")
            self.assertEqual(len(text.split()), n)

    def test_echo(self):
        plain = text_of(*self.m, "-p", "the on\xe9", *LONG)
        self.assertEqual(text_of(*self.m, "-p", "the on\xe9", *LONG, "--echo"), "the on\xe9".encode() + plain)

    def test_file_is_taken_exactly(self):
        path = scratch() / "prompt.txt"
        path.write_bytes(b"the on\n\n")
        from_file = text_of(*self.m, "-f", path, *LONG, "--echo")
        self.assertTrue(from_file.startswith(b"the on\n\n"))
        self.assertEqual(from_file, text_of(*self.m, "-p", "the on\n\n", *LONG, "--echo"))
        self.assertEqual(from_file, text_of(*self.m, "-f", "-", *LONG, "--echo", stdin=b"the on\n\n"))

    def test_any_bytes(self):
        for prompt in (b"", b"\xff\xfe\x80", b"\x00\x01\r\n", "\u00e9\u4e2d\U0001f600".encode(), b"\xf0\x9f",
                       b" " * 500, b"<|im_start|>user\n", bytes(range(256))):
            with self.subTest(prompt=prompt[:20]):
                text = text_of(*self.m, "-f", "-", "-n", "5", "--echo", stdin=prompt)
                self.assertTrue(text.startswith(prompt))

    def test_standard_input_is_not_read(self):
        self.assertEqual(text_of(*self.m, *LONG), text_of(*self.m, *LONG, stdin=b"something"))
        self.assertEqual(text_of(*self.m, *LONG), text_of(*self.m, *LONG, "-p", ""))

    def test_begin_token(self):
        """An empty prompt is the begin token, else the end token; a text comes after the begin token."""
        ids = ["-m", model(), *LONG, "--tokens"]
        self.assertEqual(text_of(*self.m, *LONG), text_of(*ids, "0"))
        self.assertEqual(text_of(*self.m, *LONG, "-p", "on"), text_of(*ids, "0,265"))
        self.assertEqual(text_of(*self.m, *LONG, "-p", "<|endoftext|>on"), text_of(*ids, "0,265"))
        plain = ["-m", model(bos_token_id=None), *LONG]
        self.assertEqual(text_of(*plain), text_of(*plain, "--tokens", "0"))
        self.assertEqual(text_of(*plain, "-p", "on"), text_of(*plain, "--tokens", "265"))
        bare = ["-m", model(bos_token_id=None, eos_token_id=None, template=None), *LONG]
        self.assert_error(sluice("generate", *bare), 1, "empty")

    def test_token_ids(self):
        ids = ["-m", model(text=False)]
        text = text_of(*ids, "--tokens", "5, 6 7", *LONG)
        self.assertRegex(text, rb"^\d+( \d+){63}$")
        text = text_of(*ids, "--tokens", "5,6", "-n", "2", "--ignore-eos", "--echo")
        self.assertRegex(text, rb"^5 6 \d+ \d+$")
        self.assert_error(sluice("generate", *ids, "-p", "x"), 1, "tokenizer")
        for bad in ("1,x", "269", "-1", "1,99999999999999999999", "1.5"):
            with self.subTest(bad=bad):
                self.assert_error(sluice("generate", *ids, "--tokens", bad), 2, "'" + bad.split(",")[-1] + "'")


class Stops(Case):
    def test_stop_anywhere(self):
        m = ["-m", model(), "-p", "the", *LONG]
        text = text_of(*m)
        for start in range(0, 40, 3):
            for n in (1, 2, 5):
                stop = text[start:start + n]
                if b"\0" in stop or len(stop) < n:
                    continue
                with self.subTest(stop=stop):
                    expected = text[:text.index(stop)]
                    self.assertEqual(text_of(*m, "--stop", os.fsdecode(stop)), expected)

    def test_first_of_several(self):
        m = ["-m", model(), "-p", "the", *LONG]
        text = text_of(*m)
        stops = [s for s in (text[20:24], text[9:11]) if b"\0" not in s]
        first = min(text.index(s) for s in stops)
        flags = [x for s in stops for x in ("--stop", os.fsdecode(s))]
        self.assertEqual(text_of(*m, *flags, "--stop", "no such text"), text[:first])

    def test_unfinished_stop_is_written(self):
        m = ["-m", model(), "-p", "the", *LONG]
        text = text_of(*m)
        self.assertEqual(text_of(*m, "--stop", os.fsdecode(text[-3:]).replace("\0", "") + "x"), text)


class Context(Case):
    """A transformer with room for 96 tokens."""

    def test_ends_at_the_limit(self):
        result = sluice("generate", "-m", model("llama", text=False), "--tokens", ",".join(["5"] * 90),
                        "-n", "-1", "--ignore-eos", check=0)
        self.assertEqual(len(result.stdout.split()), 7)
        self.assertIn(b"length", result.stderr)

    def test_prompt_too_long(self):
        m = ["-m", model("llama", text=False), "-n", "1", "--ignore-eos", "--tokens"]
        self.assertEqual(len(sluice("generate", *m, ",".join(["5"] * 96), check=0).stdout.split()), 1)
        self.assert_error(sluice("generate", *m, ",".join(["5"] * 97)), 1, "97", "96")

    def test_none_for_recurrent_models(self):
        m = ["-m", model(text=False), "-n", "1", "--ignore-eos", "--tokens"]
        sluice("generate", *m, ",".join(["5"] * 3000), check=0)


class Interrupt(Case):
    ENDLESS = ["generate", "-p", "the", "-n", "-1", "--ignore-eos"]

    def test_interrupted_by_signal(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen([SLUICE, *self.ENDLESS, "-m", model()], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE)
            first = process.stdout.read(20)
            process.send_signal(number)
            rest, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 130, errors)
            self.assertTrue((first + rest).endswith(b"\n"))
            self.assertNotIn(b"sluice: ", errors)

    def test_interrupted_while_it_reads(self):
        process = subprocess.Popen([SLUICE, "generate", "-m", model(), "-f", "-"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        process.stdin.write(b"x" * 300000)  # more than a pipe holds: some of it has been read
        process.send_signal(signal.SIGINT)
        self.assertEqual((*process.communicate(timeout=60), process.returncode), (b"", b"", 130))

    def test_flushed_as_it_comes(self):
        process = subprocess.Popen([SLUICE, *self.ENDLESS, "-m", model()], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        pieces = set()
        for _ in range(8):
            self.assertTrue(select.select([process.stdout], [], [], 20)[0])
            pieces.add(len(os.read(process.stdout.fileno(), 65536)))
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.assertLess(min(pieces), 512)


class WholeCharacters(Case):
    """Random weights begin characters all the time. A pipe gets the bytes, a terminal U+FFFD for what becomes no
    character, as batch writes it."""
    FLAGS = ["--ignore-eos", "--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0"]

    def setUp(self):
        self.m = ["-m", model(), *self.FLAGS]

    def assert_whole(self, *args):
        text = text_of(*args)
        shown = on_terminal("generate", "-q", *args)
        self.assertEqual(shown, (text.decode("utf-8", "replace") + "\n").replace("\n", "\r\n").encode())
        return text

    def test_in_the_middle(self):
        text = self.assert_whole(*self.m, "-p", "the", "-n", "120")
        self.assertRegex(text, rb"[\xc2-\xf4][\x00-\x7f]")

    def test_at_the_end(self):
        for n in range(1, 60):
            if 0xC2 <= text_of(*self.m, "-p", "the", "-n", n)[-1] <= 0xF4:
                self.assert_whole(*self.m, "-p", "the", "-n", n)
                return
        self.fail("no text ends in half a character")

    def test_prompt_that_ends_in_half_a_character(self):
        path = scratch() / "half.txt"
        path.write_bytes(b"on \xc3")
        echo = [*self.m, "-f", path, "--echo", "-n"]
        self.assert_whole(*echo, "0")
        for seed in range(200):  # until the text goes on with the other half
            text = text_of(*echo, "1", "-s", seed)
            if 0x80 <= text[4] <= 0xBF:
                self.assert_whole(*echo, "1", "-s", seed)
                return
        self.fail("no text completes the character")

    def test_ids(self):
        self.assert_whole(*self.m, "--tokens", "196,198,97,198", "--echo", "-n", "3")


class SameAsBatch(Case):
    def test_same_text(self):
        prompts = ["the", "", "on \u00e9", "<|im_start|>user\nin", "a" * 700]
        source, out = scratch() / "same.jsonl", scratch() / "same.out.jsonl"
        source.write_text("".join(json.dumps({"prompt": p, "max_tokens": 20}) + "\n" for p in prompts))
        sluice("batch", "-m", model(), "-i", source, "-o", out, "--parallel", "3", check=0)
        answers = {line["index"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}
        for i, prompt in enumerate(prompts):
            text = text_of("-m", model(), "-p", prompt, "-n", "20")
            self.assertEqual(answers[i], text.decode("utf-8", "replace"), prompt)


if __name__ == "__main__":
    unittest.main()
