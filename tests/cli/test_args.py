"""Misuse, help and version: what every command does with its flags."""
import os
import re
import signal
import subprocess
import unittest

from tests.cli.helper import SLUICE, Case, model, sluice

# (arguments, what the line must quote)
MISUSE = [
    ([], "--help"),
    (["frobnicate"], "'frobnicate'"),
    (["--frobnicate"], "'--frobnicate'"),
    ([""], "''"),
    (["generate", "--frobnicate"], "'--frobnicate'"),
    (["generate", "-z"], "'-z'"),
    (["generate", "--frobnicate=1"], "'--frobnicate'"),
    (["generate", "--tem", "1"], "'--tem'"),
    (["generate", "extra"], "'extra'"),
    (["generate", "--", "--temp"], "'--temp'"),
    (["generate", "-p"], "-p"),
    (["generate", "--n-predict"], "--n-predict"),
    (["generate", "--echo=1"], "'1'"),
    (["generate", "-n", "abc"], "'abc'"),
    (["generate", "-n", ""], "''"),
    (["generate", "-n", " 5"], "' 5'"),
    (["generate", "-n", "5 "], "'5 '"),
    (["generate", "-n", "0x10"], "'0x10'"),
    (["generate", "-n", "1e3"], "'1e3'"),
    (["generate", "-n", "5.0"], "'5.0'"),
    (["generate", "-n", "-"], "'-'"),
    (["generate", "-n", "-2"], "'-2'"),
    (["generate", "-n", "2147483648"], "'2147483648'"),
    (["generate", "-n", "99999999999999999999999999999999999999"], "'99999999999999999999999999999999999999'"),
    (["generate", "--n-predict=x"], "'x'"),
    (["generate", "--temp", "nan"], "'nan'"),
    (["generate", "--temp", "inf"], "'inf'"),
    (["generate", "--temp", "-inf"], "'-inf'"),
    (["generate", "--temp", "1e999"], "'1e999'"),
    (["generate", "--temp", "0x1p3"], "'0x1p3'"),
    (["generate", "--temp", "1.5x"], "'1.5x'"),
    (["generate", "--temp", "--"], "'--'"),
    (["generate", "--temp", ""], "''"),
    (["generate", "--temp", "."], "'.'"),
    (["generate", "--temp", "-0.1"], "'-0.1'"),
    (["generate", "--top-p", "1.5"], "'1.5'"),
    (["generate", "--top-p", "-1"], "'-1'"),
    (["generate", "--min-p", "2"], "'2'"),
    (["generate", "--top-k", "-1"], "'-1'"),
    (["generate", "--repeat-penalty", "0"], "'0'"),
    (["generate", "--repeat-last-n", "-2"], "'-2'"),
    (["generate", "--route-threshold", "1.01"], "'1.01'"),
    (["generate", "--route-threshold", "-0.01"], "'-0.01'"),
    (["generate", "--route-threshold", "nan"], "'nan'"),
    (["generate", "-t", "0"], "'0'"),
    (["generate", "-t", "-1"], "'-1'"),
    (["generate", "-t", "1000000"], "'1000000'"),
    (["generate", "-b", "0"], "'0'"),
    (["generate", "-s", "-2"], "'-2'"),
    (["generate", "-s", "x"], "'x'"),
    (["generate", "-s", "18446744073709551616"], "'18446744073709551616'"),
    (["generate", "--stop", ""], "''"),
    (["generate", "-p", "a", "-f", "b"], "-p, -f and --tokens"),
    (["generate", "-n", "\x1b[31m\n"], "'\\x1b[31m\\n'"),
    (["generate", "-n", "x" * 5000], "xxx..."),
    (["chat", "--prompt", "x"], "'--prompt'"),
    (["chat", "-n", "many"], "'many'"),
    (["logits"], "--tokens"),
    (["logits", "--tokens", "1", "-p", "x"], "--tokens"),
    (["logits", "--tokens", "1", "--chunk", "0"], "'0'"),
    (["perplexity"], "-f"),
    (["perplexity", "-f", "x", "--ctx", "0"], "'0'"),
]
COMMANDS = ["generate", "chat", "batch", "bench", "tokenize", "logits", "perplexity", "convert", "quantize",
            "info", "verify"]


class Misuse(Case):
    def test_misuse(self):
        for args, quoted in MISUSE:
            with self.subTest(args=args):
                self.assert_error(sluice(*args), 2, quoted)

    def test_unknown_flag_of_every_command(self):
        for command in COMMANDS:
            with self.subTest(command=command):
                self.assert_error(sluice(command, "--no-such-flag"), 2, "'--no-such-flag'")

    def test_forbidden_characters_in_any_argument(self):
        for args in (["\x07cmd"], ["generate", "--\x07"], ["generate", b"\xff\xfe"],
                     ["generate", "-n", b"\xc2\x9b"]):
            with self.subTest(args=args):
                self.assert_error(sluice(*args), 2)

    def test_cpu_variable(self):
        result = sluice("--version", env={**os.environ, "SLUICE_CPU": "pentium"})
        self.assert_error(result, 2, "SLUICE_CPU", "'pentium'")


class Help(Case):
    def test_help(self):
        for flag in ("--help", "-h"):
            result = sluice(flag, check=0)
            self.assertEqual(result.stderr, b"")
            for command in COMMANDS:
                self.assertRegex(result.stdout, rb"(?m)^ +%s +\w" % command.encode())

    def test_help_of_every_command(self):
        for command in COMMANDS:
            for flag in ("--help", "-h"):
                with self.subTest(command=command, flag=flag):
                    result = sluice(command, flag, check=0)
                    self.assertEqual(result.stderr, b"")
                    self.assertIn(b"sluice " + command.encode(), result.stdout)

    def test_help_after_other_flags(self):
        self.assertIn(b"usage", sluice("generate", "-n", "3", "--help", check=0).stdout)

    def test_version(self):
        result = sluice("--version", check=0)
        self.assertRegex(result.stdout, rb"^sluice \d+\.\d+\.\d+ .*\n$")
        self.assertEqual(result.stderr, b"")

    def test_version_names_the_narrowed_set(self):
        result = sluice("--version", check=0, env={**os.environ, "SLUICE_CPU": "ref"})
        self.assertIn(b"(ref,", result.stdout)


class Output(Case):
    def test_full_device(self):
        for args in (["--help"], ["--version"], ["generate", "--help"],
                     ["generate", "-m", model(), "-p", "x", "-n", "5"], ["logits", "-m", model(), "-p", "x"]):
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                result = subprocess.run([SLUICE, *map(str, args)], stdin=subprocess.DEVNULL, stdout=full,
                                        stderr=subprocess.PIPE, timeout=60)
                self.assertEqual(result.returncode, 1)
                self.assert_error_line(result.stderr, "standard output")

    def test_closed_output(self):
        for args in (["--help"], ["generate", "-m", model(), "-p", "x", "-n", "5"]):
            with self.subTest(args=args):
                result = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", SLUICE, *map(str, args)],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
                self.assertEqual(result.returncode, 1)
                self.assert_error_line(result.stderr, "standard output")

    def test_closed_pipe_is_quiet(self):
        for ignore in (False, True):
            with self.subTest(parent_ignores_sigpipe=ignore):
                process = subprocess.Popen(
                    [SLUICE, "generate", "-m", model(), "-p", "x", "-n", "100000", "--ignore-eos"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=not ignore)
                self.assertEqual(len(process.stdout.read(1)), 1)
                process.stdout.close()
                self.assertEqual(process.stderr.read(), b"")
                process.stderr.close()
                self.assertIn(process.wait(timeout=60), (0, -signal.SIGPIPE))


class DefaultModel(Case):
    def test_from_any_folder(self):
        env = {k: v for k, v in os.environ.items() if k != "SLUICE_MODEL"}
        result = sluice("generate", "-n", "3", cwd="/", env=env)
        if b"models/demo" in result.stderr:
            self.skipTest("no models/demo/bridge*.slu in this tree")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(re.match(rb"(?s).+\n$", result.stdout))

    def test_from_the_environment(self):
        env = {**os.environ, "SLUICE_MODEL": str(model())}
        by_name = sluice("generate", "-m", model(), "-p", "the", "-n", "9", check=0)
        self.assertEqual(sluice("generate", "-p", "the", "-n", "9", env=env, check=0).stdout, by_name.stdout)

    def test_missing_model(self):
        for command in (["generate"], ["chat"], ["logits", "--tokens", "1"], ["perplexity", "-f", "/dev/null"]):
            with self.subTest(command=command):
                self.assert_error(sluice(*command, "-m", "/no/such/file.slu"), 1, "/no/such/file.slu")


if __name__ == "__main__":
    unittest.main()
