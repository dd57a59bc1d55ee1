"""sluice batch: what a line may say, results that depend on nothing else, and runs that are cut short."""
import json
import os
import pty
import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cli import helper
from tests.cli.helper import SLUICE, sluice

MIB = 1 << 20


def as_bytes(line):
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def results(path):
    """The lines of an output file by index; each must be whole."""
    data = Path(path).read_bytes()
    assert not data or data.endswith(b"\n")
    rows = [json.loads(line) for line in data.split(b"\n")[:-1]]
    assert len({row["index"] for row in rows}) == len(rows), "a line has two results"
    return {row["index"]: row for row in rows}


def read_some(master):
    """What a terminal shows next; empty: its other side is closed."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


class BatchCase(helper.Case):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=helper.scratch())
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.model = helper.model()
        self.out = self.folder / "out.jsonl"

    def write(self, lines, end=b"\n"):
        path = self.folder / "in.jsonl"
        path.write_bytes(b"\n".join(as_bytes(line) for line in lines) + end)
        return path

    def command(self, source, *flags, out=None):
        return ["batch", "-m", self.model, "-i", source, "-o", out or self.out, "-n", "8", *flags]

    def batch(self, lines, *flags, check=0, end=b"\n"):
        self.out.unlink(missing_ok=True)
        result = sluice(*self.command(self.write(lines, end), *flags), check=check)
        return results(self.out), result


class Lines(BatchCase):
    def test_fields_come_back(self):
        rows, run = self.batch([{"id": "a", "prompt": "the", "max_tokens": 3, "metadata": {"k": [1, None, "x"]}},
                                {"prompt": "user"}])
        self.assertEqual(run.stdout, b"")
        self.assertEqual(rows[0]["id"], "a")
        self.assertEqual(rows[0]["metadata"], {"k": [1, None, "x"]})
        self.assertIn(rows[0]["finish_reason"], ("stop", "length"))
        self.assertLessEqual(rows[0]["usage"]["completion_tokens"], 3)
        self.assertEqual(rows[0]["usage"]["prompt_tokens"], 2)  # begin, "the"
        self.assertNotIn("error", rows[0])
        self.assertEqual(rows[1]["id"], "2")
        self.assertIsNone(rows[1]["metadata"])

    def test_bad_lines(self):
        deep = b'{"prompt": "x", "metadata": {"a": ' + b"[" * 100000 + b"]" * 100000 + b"}}"
        good = {"prompt": "the", "max_tokens": 2}
        bad = [
            (b"", "empty"), (b"   ", "empty"), (b"{", "JSON"), (b"[1]", "list"), (b"3", "number"),
            (b'"x"', "text"), (b"null", "null"), (b'{"prompt": "x"} x', "JSON"), (b"\xef\xbb\xbf{}", "JSON"),
            (b'{"prompt": "\xff"}', "UTF-8"), (b'{"prompt": "\xed\xa0\x80"}', "UTF-8"), (b"\x00", "JSON"),
            (b'{"prompt": NaN}', "JSON"), (b'{"prompt": "x", "temperature": 1e999}', "JSON"),
            (b'{"prompt": "x", "temperature": Infinity}', "JSON"), (deep, "nested"), (b"[" * 1000000, "nested"),
            (b'{"prompt": "x", "prompt": "y"}', "JSON"), (b'{"prompt": "x",}', "JSON"),
            (b'{"prompt": "' + b"x" * (16 * MIB) + b'"}', "16 MiB"),
            ({"prompt": "x", "tempersture": 1}, 'tempersture'), ({"prompt": "x", "id": 3}, "id"),
            ({"prompt": "x", "id": None}, "id"), ({"prompt": 3}, "prompt"), ({"prompt": ["x"]}, "prompt"),
            ({}, "neither"), ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "messages"),
            ({"messages": []}, "messages"), ({"messages": "x"}, "messages"), ({"messages": [3]}, "message 1"),
            ({"messages": [{"role": "user"}]}, "content"), ({"messages": [{"content": "x"}]}, "role"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
            ({"messages": [{"role": "user", "content": 3}]}, "content"),
            ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "name"),
            ({"prompt": "x", "max_tokens": -1}, "-1"), ({"prompt": "x", "max_tokens": 1.5}, "1.5"),
            (b'{"prompt": "x", "max_tokens": 1.0}', "1.0"), (b'{"prompt": "x", "max_tokens": 1e1}', "1e1"),
            ({"prompt": "x", "max_tokens": "3"}, "max_tokens"), ({"prompt": "x", "max_tokens": True}, "true"),
            ({"prompt": "x", "max_tokens": 1 << 40}, "max_tokens"), ({"prompt": "x", "top_k": -1}, "top_k"),
            ({"prompt": "x", "temperature": -0.1}, "temperature"), ({"prompt": "x", "temperature": None}, "null"),
            ({"prompt": "x", "top_p": 1.1}, "top_p"), ({"prompt": "x", "min_p": -1}, "min_p"),
            ({"prompt": "x", "repeat_penalty": 0}, "repeat_penalty"), ({"prompt": "x", "seed": -1}, "seed"),
            ({"prompt": "x", "seed": 1 << 64}, "seed"), ({"prompt": "x", "seed": 0.5}, "seed"),
            ({"prompt": "x", "stop": "y"}, "stop"), ({"prompt": "x", "stop": [3]}, "stop"),
            ({"prompt": "x", "metadata": []}, "metadata"), ({"prompt": "x", "metadata": "y"}, "metadata"),
            ({"prompt": "x", "id": "twice"}, None), ({"prompt": "x", "id": "twice"}, "twice"),
        ]
        lines = [line for case, _ in bad for line in (case, good)]
        rows, run = self.batch(lines, "--parallel", "5", check=1)
        self.assertEqual(sorted(rows), list(range(len(lines))))
        self.assert_error_line(run.stderr, f"{len(bad) - 1} of {len(lines)}")
        for i, (_, text) in enumerate(bad):
            row, fine = rows[2 * i], rows[2 * i + 1]
            self.assertNotEqual(fine["finish_reason"], "error")
            self.assertEqual(fine["text"], rows[1]["text"])
            if text is None:
                self.assertNotEqual(row["finish_reason"], "error")
                continue
            self.assertEqual((row["finish_reason"], row["text"]), ("error", ""), row)
            self.assertIn(f"line {2 * i + 1}:", row["error"])
            self.assertIn(text, row["error"])
            self.assertLess(len(row["error"]), 700)

    def test_error_lines_keep_id_and_metadata(self):
        rows, _ = self.batch([{"id": "x", "metadata": {"n": 1}, "prompt": "a", "zoom": 1}, b"{"], check=1)
        self.assertEqual((rows[0]["id"], rows[0]["metadata"]), ("x", {"n": 1}))
        self.assertEqual(rows[1]["id"], "2")

    def test_legal_extremes(self):
        rows, _ = self.batch([
            {"prompt": ""}, {"prompt": "a\0b"}, {"prompt": "the", "max_tokens": 0}, {"prompt": "x", "seed": (1 << 64) - 1},
            {"prompt": "x", "stop": []}, {"prompt": "x", "temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0,
                                         "repeat_penalty": 1}, b' { "prompt" : "x" } \r', {"messages": [
                {"role": "system", "content": ""}, {"role": "user", "content": "the"}]},
            b'{"prompt": "x", "metadata": {"n": 123456789012345678901234567890, "e": 1.10}}',
        ], "--ignore-eos", end=b"")
        self.assertEqual(len(rows), 9)
        self.assertEqual(rows[2]["text"], "")
        self.assertEqual(rows[2]["finish_reason"], "length")
        self.assertEqual(rows[2]["usage"], {"prompt_tokens": 2, "completion_tokens": 0})
        self.assertEqual(rows[0]["usage"], {"prompt_tokens": 1, "completion_tokens": 8})
        self.assertEqual(rows[8]["metadata"], {"n": 123456789012345678901234567890, "e": 1.1})
        self.assertIn(b'"e":1.10', self.out.read_bytes())

    def test_metadata_is_one_line_for_every_reader(self):
        text = "a\u2028b\u2029c\u0085d\\\"e\x7f"
        line = json.dumps({"prompt": "x", "id": text, "metadata": {text: text}}, ensure_ascii=False).encode()
        rows, _ = self.batch([line.replace(b": ", b":\r ")])
        self.assertEqual(rows[0]["metadata"], {text: text})
        self.assertEqual(rows[0]["id"], text)
        self.assertEqual(len(self.out.read_text().splitlines()), 1)

    def test_id_behind_many_fields(self):
        rows, _ = self.batch([{**{f"x{i}": 1 for i in range(40)}, "id": "late"}], check=1)
        self.assertEqual(rows[0]["id"], "late")
        self.assertIn("x0", rows[0]["error"])

    def test_stop_ends_before_its_text(self):
        plain, _ = self.batch([{"prompt": "the", "max_tokens": 40}], "--ignore-eos")
        text = plain[0]["text"]
        inner = next(text[i:i + 3] for i in range(4, len(text)) if "\ufffd" not in text[i:i + 3])
        rows, _ = self.batch([{"prompt": "the", "max_tokens": 40, "stop": ["\U0001F600", inner]}], "--ignore-eos")
        self.assertEqual(rows[0]["text"], text[:text.index(inner)])
        self.assertEqual(rows[0]["finish_reason"], "stop")

    def test_context_of_a_transformer(self):
        self.model = helper.model("llama")
        rows, _ = self.batch([{"prompt": "x" * 90, "max_tokens": 50}, {"prompt": "x" * 200}], "--ignore-eos", check=1)
        self.assertEqual(rows[0]["finish_reason"], "length")
        self.assertEqual(rows[0]["usage"], {"prompt_tokens": 91, "completion_tokens": 6})
        self.assertIn("96", rows[1]["error"])


class Same(BatchCase):
    """A result depends on its line alone."""

    def setUp(self):
        super().setUp()
        rng = random.Random(5)
        self.lines = [{"id": f"id-{i}", "prompt": " ".join(rng.choices(["the", "user", "on", "é", "\n"], k=rng.randrange(40))),
                       "seed": i % 7, "max_tokens": rng.randrange(30), "temperature": rng.choice([0, 0.7, 1.5]),
                       "top_k": rng.choice([0, 5, 40]), "repeat_penalty": rng.choice([1, 1.3])} for i in range(40)]
        for i in range(0, 40, 8):
            self.lines[i]["messages"] = [{"role": "user", "content": self.lines[i].pop("prompt")}]

    def by_id(self, rows):
        return {row["id"]: (row["text"], row["finish_reason"], row["usage"]) for row in rows.values()}

    def test_parallel_and_order(self):
        one, _ = self.batch(self.lines, "--parallel", "1")
        self.assertEqual(list(one), list(range(40)))
        shuffled = random.Random(6).sample(self.lines, 40)
        for lines, flags in ((self.lines, ["--parallel", "8"]), (shuffled, ["--parallel", "64", "-b", "7"]),
                             (self.lines, ["--parallel", "3", "-b", "1", "-t", "2"])):
            rows, _ = self.batch(lines, *flags)
            self.assertEqual(self.by_id(rows), self.by_id(one))

    def test_generate_says_the_same(self):
        rows, _ = self.batch(self.lines, "--parallel", "8")
        for i in (1, 2, 3, 9, 17):
            line = self.lines[i]
            flags = {"-n": "max_tokens", "-s": "seed", "--temp": "temperature", "--top-k": "top_k",
                     "--repeat-penalty": "repeat_penalty"}
            run = sluice("generate", "-m", self.model, "-p", line["prompt"],
                         *(str(x) for flag, key in flags.items() for x in (flag, line[key])), check=0)
            self.assertEqual(run.stdout.decode(errors="replace"), rows[i]["text"] + "\n")

    def test_flags_are_the_defaults(self):
        rows, _ = self.batch([{"prompt": "the"}, {"prompt": "the", "seed": 3}], "-s", "3", "--temp", "1.5")
        self.assertEqual(rows[0]["text"], rows[1]["text"])
        other, _ = self.batch([{"prompt": "the"}], "-s", "4", "--temp", "1.5")
        self.assertNotEqual(other[0]["text"], rows[0]["text"])

    def test_many_lines(self):
        lines = [{"prompt": "a", "max_tokens": 1, "seed": i} for i in range(20000)]
        rows, _ = self.batch(lines, "--parallel", "64")
        self.assertEqual(len(rows), 20000)
        self.assertEqual({row["usage"]["completion_tokens"] for row in rows.values()} - {0, 1}, set())


class Files(BatchCase):
    lines = [{"prompt": "the", "max_tokens": 4, "seed": i} for i in range(6)] + [{"bad": 1}]

    def test_output_that_is_there(self):
        self.out.write_bytes(b'{"mine": 1}\n')
        source = self.write(self.lines)
        self.assert_error(sluice(*self.command(source)), 1, "out.jsonl", "--resume")
        self.assertEqual(self.out.read_bytes(), b'{"mine": 1}\n')
        self.out.write_bytes(b"")
        sluice(*self.command(source), check=1)
        self.assertEqual(len(results(self.out)), 7)

    def test_wrong_files(self):
        source = self.write(self.lines)
        self.assert_error(sluice(*self.command(source, out=source)), 1, "both")
        self.assert_error(sluice(*self.command(self.folder / "none")), 1, "none")
        self.assert_error(sluice(*self.command(self.folder)), 1, "folder")
        self.assert_error(sluice(*self.command(source, out=self.folder)), 1, "folder")
        self.assert_error(sluice(*self.command(source, out=self.folder / "no/out")), 1, "out")
        self.assert_error(sluice(*self.command(source, out="/dev/full")), 1, "/dev/full")
        self.assertFalse(self.out.exists())

    def test_misuse(self):
        source = self.write(self.lines)
        self.assert_error(sluice("batch", "-i", source), 2, "-o")
        self.assert_error(sluice("batch", "-o", self.out), 2, "-i")
        for value in ("0", "x", "-1", "1e9"):
            self.assert_error(sluice(*self.command(source, "--parallel", value)), 2, value)
        self.assertFalse(self.out.exists())

    def test_model_without_tokenizer(self):
        self.model = helper.model(text=False)
        self.assert_error(sluice(*self.command(self.write(self.lines))), 1, "tokenizer")
        self.assertFalse(self.out.exists())

    def test_empty_input(self):
        rows, _ = self.batch([], end=b"")
        self.assertEqual(rows, {})

    def test_pipe_as_input(self):
        run = sluice("batch", "-m", self.model, "-i", "/dev/stdin", "-o", self.out, "-n", "2",
                     stdin=b"\n".join(map(as_bytes, self.lines)), check=1)
        self.assertEqual(len(results(self.out)), 7)
        self.assert_error_line(run.stderr, "1 of 7")


class Progress(BatchCase):
    """The line on a terminal while answers are under way."""
    LINE = re.compile(rb"(\d+) answers, (\d+) tokens/s \[([#.]{20})\] +(\d+) %(?:  (\d+) s left)? \x1b\[K")

    def drawn(self, *flags):
        """(seconds since the start, share, answers, tokens/s, seconds left) of each line drawn; the whole run's seconds."""
        master, slave = pty.openpty()
        process = subprocess.Popen([SLUICE, *map(str, self.command(*flags))], stdin=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        start, rows = time.monotonic(), []
        while data := read_some(master):
            for piece in data.split(b"\r"):
                if match := self.LINE.fullmatch(piece):
                    answers, speed, _, share, left = match.groups()
                    rows.append((time.monotonic() - start, int(share), int(answers), int(speed), left and int(left)))
        os.close(master)
        self.assertEqual(process.wait(), 0)
        return rows, time.monotonic() - start

    def test_answers_under_way(self):
        source = self.write([{"prompt": "a", "max_tokens": 20000, "seed": i} for i in range(4)])
        rows, whole = self.drawn(source, "--ignore-eos", "-t", "1")
        under_way = [row for row in rows if row[2] == 0]
        self.assertGreater(len(under_way), 3)
        for seconds, share, _, speed, left in under_way:
            self.assertLess(share, 100)
            self.assertGreater(speed, 0)
        shares = [row[1] for row in under_way]
        self.assertEqual(shares, sorted(shares))
        self.assertGreater(len(set(shares)), 2)
        seconds, share, _, speed, left = under_way[len(under_way) // 2]
        self.assertTrue(0.5 < speed * seconds / (80000 * share / 100) < 2, (seconds, share, speed))
        self.assertTrue(whole / 4 < seconds + left < 4 * whole + 1, (seconds, left, whole))  # others may use the machine

    def test_resumed(self):
        """What earlier runs did is done, and says nothing about the time that is left."""
        lines = [{"prompt": "a", "max_tokens": 1 if i < 6 else 40000, "seed": i} for i in range(8)]
        source = self.write(lines[:6])
        sluice(*self.command(source, "--ignore-eos"), check=0)
        rows, whole = self.drawn(self.write(lines), "--ignore-eos", "-t", "1", "--resume")
        self.assertGreater(len(rows), 3)
        seconds, share, _, _, left = rows[len(rows) // 2]
        self.assertGreater(share, 70)
        self.assertTrue(whole / 4 < seconds + left < 4 * whole + 1, (seconds, left, whole))


class Resume(BatchCase):
    def setUp(self):
        super().setUp()
        self.lines = [{"id": f"n{i}", "prompt": "the user", "seed": i, "max_tokens": 12} for i in range(30)]
        self.lines[4] = {"id": "n4", "prompt": "x", "nonsense": 1}
        self.source = self.write(self.lines)
        self.whole = self.folder / "whole.jsonl"
        sluice(*self.command(self.source, out=self.whole), check=1)
        self.rows = results(self.whole)

    def resume(self, check):
        return sluice(*self.command(self.source, "--resume"), check=check)

    def test_finished_run_changes_nothing(self):
        self.whole.rename(self.out)
        before, data = os.stat(self.out), self.out.read_bytes()
        self.resume(0)
        self.assertEqual(self.out.read_bytes(), data)
        self.assertEqual(os.stat(self.out).st_mtime_ns, before.st_mtime_ns)

    def test_cut_anywhere(self):
        data = self.whole.read_bytes()
        ends = [i + 1 for i, b in enumerate(data) if b == 10]
        rng = random.Random(7)
        for cut in [1, ends[0] - 1, ends[0], ends[3] + 5, len(data) - 1, *(rng.randrange(len(data)) for _ in range(6))]:
            self.out.write_bytes(data[:cut])
            self.resume(1)
            kept = data[:max([0] + [e for e in ends if e <= cut])]
            self.assertTrue(self.out.read_bytes().startswith(kept))
            self.assertEqual(results(self.out), self.rows)

    def test_broken_last_line(self):
        data = self.whole.read_bytes()
        for tail in (b'{"id": "n9", "ind\n', b'{"id": "n9", "index": 1e', b"\0\0\0\0", b"{}\n"):
            self.out.write_bytes(data + tail)
            self.resume(0)
            self.assertEqual(self.out.read_bytes(), data)

    def test_error_lines_stay(self):
        rows = [row for row in self.whole.read_bytes().splitlines(True) if b'"index": 4,' in row]
        self.out.write_bytes(rows[0])
        self.resume(1)
        self.assertTrue(self.out.read_bytes().startswith(rows[0]))
        self.assertEqual(results(self.out), self.rows)

    def test_results_of_something_else(self):
        lines = self.whole.read_bytes().splitlines(True)
        for data, text in ((b"not a result\n" + lines[0], "line 1"), (lines[0] * 2, "two results"),
                           (lines[0].replace(b'"n', b'"m'), "does not belong"),
                           (lines[0].replace(b'"index": ', b'"index": 99'), "does not belong"),
                           (b"my thesis, all in one line", "no results")):
            self.out.write_bytes(data)
            self.assert_error(self.resume(1), 1, "out.jsonl", text)
            self.assertEqual(self.out.read_bytes(), data)

    def test_kill(self):
        """SIGKILL at several moments, resumed until done: the same results as a run without. The kernel may cut a
        write that crosses a page when it kills; resuming repairs that line."""
        lines = [{"id": f"n{i}", "prompt": "the user", "seed": i, "max_tokens": 400} for i in range(24)]
        self.source = self.write(lines)
        sluice(*self.command(self.source, "--ignore-eos", out=self.folder / "calm.jsonl"), check=0)
        expected, runs = results(self.folder / "calm.jsonl"), 0
        while True:
            runs += 1
            process = subprocess.Popen([SLUICE, *map(str, self.command(self.source, "--ignore-eos", "--resume", "--parallel",
                                                                       "3"))], stderr=subprocess.DEVNULL)
            size, limit = self.out.stat().st_size if self.out.exists() else 0, time.monotonic() + 60
            while process.poll() is None and time.monotonic() < limit and runs < 6:
                if self.out.exists() and self.out.stat().st_size > size:
                    process.kill()
            process.wait(timeout=60)
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertGreater(runs, 1)
        self.assertEqual(results(self.out), expected)

    def test_interrupt(self):
        lines = [{"id": f"n{i}", "prompt": "the user", "seed": i, "max_tokens": 100000 if i else 3} for i in range(4)]
        process = subprocess.Popen([SLUICE, *map(str, self.command(self.write(lines), "--ignore-eos"))],
                                   stderr=subprocess.PIPE)
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not (self.out.exists() and self.out.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (130, b""))
        self.assertEqual(list(results(self.out)), [0])

    def test_one_writer_at_a_time(self):
        lines = [{"prompt": "x", "max_tokens": 3}, {"prompt": "x", "max_tokens": 100000}]
        source = self.write(lines)
        process = subprocess.Popen([SLUICE, *map(str, self.command(source, "--ignore-eos"))], stderr=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + 60
            while time.monotonic() < limit and not (self.out.exists() and self.out.stat().st_size):
                time.sleep(0.01)
            self.assert_error(sluice(*self.command(source, "--resume")), 1, "another program")
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    helper.unittest.main()
