"""sluice chat: on a pipe (answers only on stdout, commands, exit codes, states) and on a terminal."""
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
import unittest

from tests.cli.helper import SLUICE, Case, model, scratch, sluice

Q1, Q2 = b"the first\n", b"on the other\n"


def chat(script, *args, code=0, kind="bridge", n=12):
    result = sluice("chat", "-m", model(kind), "-n", n, *args, stdin=script)
    if result.returncode != code:
        raise AssertionError(f"exit {result.returncode}, expected {code}: {result.stderr}")
    return result


def answers(script, *args, **more):
    return chat(script, *args, **more).stdout


class Pipe(Case):
    def test_answers_only(self):
        result = chat(Q1)
        self.assertTrue(result.stdout.endswith(b"\n"))
        self.assertGreater(len(result.stdout), 5)
        self.assertEqual(result.stderr, b"")

    def test_no_input(self):
        result = chat(b"")
        self.assertEqual((result.stdout, result.stderr), (b"", b""))

    def test_last_line_without_end(self):
        self.assertEqual(answers(Q1), answers(Q1[:-1]))
        self.assertEqual(answers(Q1), answers(Q1[:-1] + b"\r\n"))

    def test_empty_lines_are_passed_over(self):
        self.assertEqual(answers(Q1 + Q2), answers(b"\n" + Q1 + b"\n\n" + Q2))

    def test_conversation_goes_on(self):
        both = answers(Q1 + Q2)
        self.assertTrue(both.startswith(answers(Q1)))
        self.assertNotEqual(both, answers(Q1) + answers(Q2))
        self.assertEqual(both, answers(Q1 + Q2, "-t", "1", "-b", "3"))

    def test_any_bytes(self):
        for line in (b"\xff\xfe\x80\n", b"\x00\x01\n", "\u4e2d\U0001f600\n".encode(), b"x" * 100000 + b"\n",
                     b"<|im_end|><|endoftext|>\n"):
            self.assertTrue(answers(line, n=2).endswith(b"\n"))

    def test_length_and_stop(self):
        self.assertLess(len(answers(Q1, n=2)), len(answers(Q1, n=40)))
        text = answers(Q1, n=40)
        stop = text[6:9].replace(b"\0", b"")
        self.assertEqual(answers(Q1, "--stop", os.fsdecode(stop), n=40), text[:text.index(stop)] + b"\n")

    def test_stop_text_leaves_no_trace(self):
        """After an answer that a stop text cut across tokens, the conversation is that of the answer alone."""
        text = answers(Q1, n=40)
        cut = 8
        stop = os.fsdecode(text[cut:cut + 3].replace(b"\0", b""))
        cut = text.index(os.fsencode(stop))
        stopped = answers(Q1 + Q2, "--stop", stop, n=40)
        self.assertTrue(stopped.startswith(text[:cut] + b"\n"))
        for n in range(1, 40):  # the same answer, ended by its length
            if answers(Q1, n=n) == text[:cut] + b"\n":
                saved = scratch() / "stop.state"
                answers(Q1 + f"/save {saved}\n".encode(), n=n)
                rest = answers(f"/load {saved}\n".encode() + Q2, "--stop", stop, n=40)
                self.assertEqual(stopped, text[:cut] + b"\n" + rest)
                return
        self.skipTest("no length ends the answer at the stop text")

    def test_system(self):
        self.assertNotEqual(answers(Q1), answers(Q1, "--system", "in the end"))

    def test_transformer(self):
        """Room for 96 tokens: a question that does not fit is refused, and the conversation is as it was."""
        self.assertGreater(len(answers(Q1 + Q2, kind="llama", n=3)), 2)
        result = chat(Q1 + b"x" * 200 + b"\n" + b"/stats\n", kind="llama", n=3, code=1)
        lines = result.stderr.splitlines(keepends=True)
        self.assert_error_line(lines[0], "216 tokens", "context")
        self.assertIn(b"in 1 turns", lines[1])
        endless = chat(Q1 + Q2 + b"/stats\n", "--ignore-eos", kind="llama", n=-1, code=1)
        self.assertIn(b"96 tokens in 1 turns", endless.stderr)

    def test_same_as_batch(self):
        """A conversation in pieces is the conversation as a whole."""
        for word in ("the", "on", "in", "other", "her", "user", "win", "an", "thin", "son", "a b", "c d"):
            answer = answers(word.encode() + b"\n", n=1)[:-1]
            if answer.isascii() and answer.decode().isprintable() and answer:
                break
        else:
            self.skipTest("no question has a plain answer")
        question = {"role": "user", "content": word}
        rest = [{"role": "assistant", "content": answer.decode()}, {"role": "user", "content": "on the other"}]
        first = {"messages": [question], "max_tokens": 1}
        second = {"messages": [question, *rest], "max_tokens": 1}
        source, out = scratch() / "chat.jsonl", scratch() / "chat.out.jsonl"
        source.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
        sluice("batch", "-m", model(), "-i", source, "-o", out, check=0)
        results = sorted(map(json.loads, out.read_text().splitlines()), key=lambda r: r["index"])
        texts = [r["text"] for r in results]
        got = answers(word.encode() + b"\n" + Q2, n=1).decode("utf-8", "replace")
        self.assertEqual(got, "".join(t + "\n" for t in texts))


class Commands(Case):
    def setUp(self):
        self.state = scratch() / f"{self.id()}.state"
        self.save, self.load = f"/save {self.state}\n".encode(), f"/load {self.state}\n".encode()

    def fails(self, script, *texts, before=b"", **more):
        """The script's one failing command reports its line, and the conversation goes on as without it."""
        result = chat(before + script + Q2, code=1, **more)
        errors = [l for l in result.stderr.splitlines(keepends=True) if l.startswith(b"sluice: ")]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assert_error_line(errors[0], *texts)
        self.assertEqual(result.stdout, answers(before + Q2, **more))

    def test_reports_on_stderr(self):
        result = chat(b"/help\n/stats\n/reset\n")
        self.assertEqual(result.stdout, b"")
        for name in ("/save FILE", "/load FILE", "/undo", "/fork NAME", "/switch NAME", "/stats", "/reset"):
            self.assertIn(name.encode(), result.stderr)

    def test_save_and_load(self):
        both = answers(Q1 + Q2)
        first = answers(Q1 + self.save)
        self.assertEqual(first + answers(self.load + Q2), both)
        other = b"something else\n"
        self.assertEqual(answers(other + self.load + Q2), answers(other) + both[len(first):])
        self.assertEqual([p.name for p in self.state.parent.iterdir() if p.name.startswith(self.state.name)],
                         [self.state.name])

    def test_undo(self):
        one, both = answers(Q1), answers(Q1 + Q2)
        junk = answers(Q1 + b"in between\n")
        self.assertEqual(answers(Q1 + b"in between\n/undo\n" + Q2), junk + both[len(one):])
        self.assertEqual(answers(Q1 + b"in between\n/undo\n/undo\n" + Q1), junk + one)
        three = b"a\nb\nc\n"
        self.assertEqual(answers(three + b"/undo\n" * 3 + Q1), answers(three) + one)
        self.fails(b"/undo\n")
        result = chat(Q1 + b"/undo\n/undo\n" + Q1, code=1)
        self.assertEqual(result.stdout, one + one)

    def test_undo_is_repeatable_to_the_start(self):
        """More turns than the session keeps checkpoints."""
        many = b"a\n" * 70
        result = chat(many + b"/undo\n" * 70 + Q1 + b"/undo\n/stats\n", n=1)
        self.assertTrue(result.stdout.endswith(answers(Q1, n=1)))
        self.assertIn(b": 0 tokens in 0 turns", result.stderr)

    def test_undo_after_load(self):
        answers(Q1 + b"more\n" + self.save)
        one, both = answers(Q1), answers(Q1 + Q2)
        self.assertEqual(answers(self.load + b"/undo\n" + Q2), both[len(one):])
        self.assertEqual(answers(self.load + b"/undo\n/undo\n" + Q1), one)

    def test_undo_after_load_without_chat_template(self):
        def plain(script):
            return sluice("chat", "-m", model(template=None), "-n", "12", stdin=script, check=0).stdout
        one, both = plain(Q1), plain(Q1 + Q2)
        plain(Q1 + b"more\n" + self.save)
        self.assertEqual(plain(self.load + b"/undo\n" + Q2), both[len(one):])
        self.assertEqual(plain(self.load + b"/undo\n/undo\n" + Q1), one)

    def test_fork_and_switch(self):
        one, both = answers(Q1), answers(Q1 + Q2)
        other = answers(Q1 + b"other\n")[len(one):]
        self.assertEqual(answers(Q1 + b"/fork side\n" + b"other\n" + b"/switch side\n" + Q2),
                         one + other + both[len(one):])
        self.assertEqual(answers(Q1 + b"/fork side\n/switch side\nother\n/switch main\n" + Q2),
                         one + other + both[len(one):])
        again = Q1 + b"/fork side\nother\n/switch side\n/undo\n/switch main\n/undo\n" + Q2
        self.assertEqual(answers(again), one + other + both[len(one):])
        self.assertEqual(answers(b"/fork empty\n" + Q1 + b"/switch empty\n" + Q1), one + one)
        self.assertEqual(answers(Q1 + b"/switch main\n" + Q2), both)

    def test_reset(self):
        self.assertEqual(answers(Q1 + b"/reset\n" + Q1), answers(Q1) * 2)

    def test_exit(self):
        for word in (b"/exit\n", b"/quit\n"):
            self.assertEqual(answers(Q1 + word + Q2), answers(Q1))

    def test_failing_commands(self):
        for script, text in ((b"/bogus\n", "'/bogus'"), (b"/\n", "'/'"), (b"/save\n", "/save"),
                             (b"/load   \n", "/load"), (b"/fork\n", "/fork"), (b"/switch\n", "/switch"),
                             (b"/switch nowhere\n", "'nowhere'"), (b"/fork main\n", "'main'"),
                             (b"/undo 2\n", "'2'"), (b"/save /no/such/folder/x\n", "/no/such"),
                             (b"/load /no/such/file\n", "/no/such/file"), (b"/load /\n", "/ is a folder"),
                             (b"/load /dev/null\n", "/dev/null"), (b"/bo\x07\x1b[1mgus\xff\n", "")):
            with self.subTest(script=script):
                self.fails(script, text, before=Q1)

    def test_bad_states(self):
        answers(Q1 + self.save)
        good = self.state.read_bytes()
        bad = [good[:-1], good[:len(good) // 2], good[:8], good + b"\0", b"no state at all\n" * 9,
               model().read_bytes()[:5000]]
        for at in {0, 5, 9, 17, 33, 64, len(good) - 1, *range(0, len(good), len(good) // 40)}:
            bad.append(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        script, paths = b"", []
        for data in bad:
            path = scratch() / f"bad-{len(script)}.state"
            path.write_bytes(data)
            script += f"/load {path}\n".encode()
            paths.append(path)
        result = chat(Q1 + script + Q2, code=1)
        lines = result.stderr.splitlines(keepends=True)
        self.assertEqual(len(lines), len(bad))
        for line, path in zip(lines, paths):
            self.assert_error_line(line, path.name)
        self.assertEqual(result.stdout, answers(Q1 + Q2))

    def test_state_of_another_model(self):
        sluice("chat", "-m", model(seed=2), "-n", "3", stdin=Q1 + self.save, check=0)
        self.fails(self.load, "another model", self.state.name, before=Q1)
        self.assertEqual(sluice("chat", "-m", model("llama"), "-n", "3", stdin=Q1 + self.load).returncode, 1)

    def test_failed_save_keeps_the_old_file(self):
        answers(Q1 + self.save)
        before = self.state.read_bytes()
        self.state.parent.joinpath("folder").mkdir(exist_ok=True)
        self.fails(f"/save {self.state.parent}/folder\n".encode(), before=Q1)
        self.assertEqual(self.state.read_bytes(), before)


class Interrupt(Case):
    def test_signal_ends_the_answer_only(self):
        process = subprocess.Popen([SLUICE, "chat", "-m", model(), "-n", "-1", "--ignore-eos"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(Q1)
        process.stdin.flush()
        self.assertTrue(process.stdout.read(200)) # the answer is under way, and has no end of its own
        process.send_signal(signal.SIGINT)
        process.stdin.write(b"/stats\n")
        out, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertTrue(out.endswith(b"\n"))
        self.assertIn(b"in 1 turns", errors)

    def test_signal_while_waiting(self):
        process = subprocess.Popen([SLUICE, "chat", "-m", model(), "-n", "3"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(Q1)
        process.stdin.flush()
        self.assertTrue(process.stdout.read(1))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        self.assertEqual(process.returncode, 130)
        process.communicate()


class Terminal(Case):
    def setUp(self):
        self.start("-n", "-1", "--ignore-eos")
        self.expect(b"> ")

    def start(self, *args, out=None):
        self.home = scratch() / f"{self.id()}.home"
        self.home.mkdir(exist_ok=True)
        self.master, slave = pty.openpty()
        env = {**os.environ, "HOME": str(self.home), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        command = [SLUICE, "chat", "-m", model(), *args]
        self.process = subprocess.Popen(command, stdin=slave, stdout=out or slave, stderr=slave, env=env,
                                        start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.data = b""
        self.addCleanup(self.close)

    def close(self):
        self.process.kill()
        self.process.wait()
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def send(self, data):
        self.data = b""
        os.write(self.master, data)

    def expect(self, text, seconds=20):
        end = time.monotonic() + seconds
        while text not in self.data:
            self.assertLess(time.monotonic(), end, f"{text!r} did not come: {self.data[-500:]!r}")
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.data += os.read(self.master, 65536)
                except OSError:
                    self.fail(f"{text!r} did not come before the end: {self.data[-500:]!r}")

    def expect_answer(self, n_bytes=300):
        """Waits for more than the echo of a line, which is what an endless answer gives."""
        while len(self.data) < n_bytes:
            self.assertTrue(select.select([self.master], [], [], 20)[0], f"no answer came: {self.data!r}")
            self.data += os.read(self.master, 65536)

    def leave(self, code):
        os.write(self.master, b"\x04")
        end = time.monotonic() + 20
        try:
            while time.monotonic() < end:
                if select.select([self.master], [], [], 0.1)[0] and not os.read(self.master, 65536):
                    break
        except OSError:
            pass  # the other side is closed
        self.assertEqual(self.process.wait(timeout=1), code)

    def test_conversation(self):
        self.send(b"the firsts\x7f\r")          # a question, corrected
        self.expect_answer()
        self.send(b"\x03")                      # ends the answer only
        self.expect(b"\r\n> ")                  # what is left of the answer may hold a "> "
        self.send(b"/sta\t\r")                  # completed
        self.expect(b"in 1 turns")
        self.expect(b"> ")
        self.send(b"half a line\x03")           # clears the line
        self.expect(b"> ")
        self.send(b"/stats\r")
        self.expect(b"in 1 turns")
        self.send(b"/undo\r")
        self.expect(b"0 turns left")
        self.leave(0)
        history = (self.home / ".sluice_history").read_text()
        self.assertIn("/undo", history)
        self.assertIn("the\\040first", history)

    def test_failed_command_shows_in_the_exit_code(self):
        self.send(b"/bogus\r")
        self.expect(b"sluice: unknown command '/bogus'")
        self.expect(b"> ")
        self.leave(1)

    def test_leave_at_once(self):
        self.leave(0)

    def test_whole_characters(self):
        """What becomes no character is U+FFFD; random weights begin many."""
        self.close()
        self.start("-n", "300", "--ignore-eos", "--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0")
        self.expect(b"> ")
        self.send(b"the\r")
        self.expect(b"\r\n> ")
        self.assertIn("\ufffd", self.data.decode())

    def test_answers_into_a_file(self):
        """Ctrl-C and Ctrl-D at the prompt leave nothing in the file."""
        self.close()
        path = scratch() / "answers.txt"
        with open(path, "wb") as out:
            self.start("-n", "6", out=out)
        self.expect(b"> ")
        self.send(b"the first\r")
        self.expect(b"\n> ")
        self.send(b"half a line\x03")
        self.expect(b"\n> ")
        self.leave(0)
        self.assertEqual(path.read_bytes(), answers(Q1, n=6))

    def test_typed_ahead(self):
        """Ctrl-D during an answer leaves after it."""
        self.close()
        for seconds in (0, 0.05, 0.2):
            self.start("-n", "4000", "--ignore-eos")
            self.expect(b"> ")
            self.send(b"the\r")
            time.sleep(seconds)
            self.leave(0)
            self.close()


if __name__ == "__main__":
    unittest.main()
