"""The commands on a CUDA device, in a build for the test device: what they say is what they say on the CPU, or
why not.
"""
import json
import os
import re
import unittest
from pathlib import Path

from tests.cli.helper import SLUICE, Case, model, scratch, sluice
from tests.cli.test_logits import IDS, ids, read_npy

CUDA = ["--device", "cuda"]
GREEDY = ["-q", "-n", "24", "--ignore-eos", "--temp", "0"]
EXACT = ("f32", "f16", "bf16")  # the CPU rounds activations where weights are quantised
NAME = b"test device (host CPU)"
INSTEAD = b"long prompts use our own, slower products"


def on_device(*args, check=0, stdin=b"", blas=("13",), **variables):
    """Whatever is not released makes the exit code 99, and a host that reads the device's memory crashes. blas: which of
    the libraries in cuBLAS's place are found (tests/device/CMakeLists.txt)."""
    folders = ":".join(str(Path(SLUICE).parent / "tests/device/cublas" / folder) for folder in blas)
    env = {**os.environ, "SLUICE_DEVICE_LEAKS": "1", "SLUICE_DEVICE_PROTECT": "1", "LD_LIBRARY_PATH": folders, **variables}
    return sluice(*args, check=check, stdin=stdin, env=env)


class Text(Case):
    def test_generate(self):
        for kind in ("bridge", "llama"):
            for type in EXACT:
                with self.subTest(kind=kind, type=type):
                    command = ["generate", "-m", model(kind, type=type), "-p", "the user on the", *GREEDY]
                    expected = sluice(*command, "--device", "cpu", check=0).stdout
                    self.assertGreater(len(expected), 10)
                    run = on_device(*command, *CUDA, "--activations", "f32")
                    self.assertEqual((run.stdout, run.stderr), (expected, b""))

    def test_generate_with_the_usual_settings(self):
        command = ["generate", "-m", model(), "-p", "the user", "-q", "-n", "24", "--ignore-eos"]
        for flags in ([], ["--top-k", "0"], ["--repeat-last-n", "-1", "--temp", "2"]):
            expected = sluice(*command, *flags, "--device", "cpu", check=0).stdout
            self.assertEqual(on_device(*command, *flags, "--device", "cuda:0").stdout, expected, flags)

    def test_quantised_and_rounded(self):
        for type in ("q8", "q4", "bf16"):
            command = ["generate", "-m", model(type=type), "-p", "the user", *GREEDY, *CUDA]
            self.assertEqual(on_device(*command).stdout, on_device(*command, SLUICE_DEVICE_SEED="7").stdout)

    def test_auto_never_takes_the_test_device(self):
        """At most six calls are made, which ask what it is."""
        for type in ("q4", "f32"):
            command = ["generate", "-m", model(type=type), "-p", "the user", "-q", "-n", "9"]
            expected = sluice(*command, "--device", "cpu", check=0).stdout
            count = scratch() / "calls.txt"
            for flags in ([], ["--device", "auto"]):
                run = on_device(*command, *flags, SLUICE_DEVICE_FAIL="7", SLUICE_DEVICE_COUNT_CALLS=str(count))
                self.assertEqual((run.stdout, run.stderr), (expected, b""))
                self.assertLess(int(count.read_text()) if count.exists() else 0, 7)

    def test_chat(self):
        script = b"the first\non the other\n/fork a\nuser\n/undo\nthe\n/switch a\non\n"
        for kind in ("bridge", "llama"):
            command = ["chat", "-m", model(kind), "-n", "3", "--temp", "0"]
            expected = sluice(*command, "--device", "cpu", stdin=script, check=0)
            run = on_device(*command, *CUDA, stdin=script)
            self.assertEqual((run.stdout, run.stderr), (expected.stdout, expected.stderr))

    def test_chat_goes_on_elsewhere(self):
        for kind in ("bridge", "llama"):
            command = ["chat", "-m", model(kind), "-n", "6", "--temp", "0"]
            whole = sluice(*command, "--device", "cpu", stdin=b"the first\non the other\n", check=0).stdout
            for here, there in (("cuda", "cpu"), ("cpu", "cuda")):
                path = scratch() / f"{kind}-{here}.state"
                save, load = (b"/%s %s\n" % (word, os.fsencode(path)) for word in (b"save", b"load"))
                first = on_device(*command, "--device", here, stdin=b"the first\n" + save).stdout
                rest = on_device(*command, "--device", there, stdin=load + b"on the other\n").stdout
                self.assertEqual(first + rest, whole, (kind, here))

    def test_perplexity(self):
        path = scratch() / "text.bin"
        path.write_bytes(bytes(range(3, 120)))
        for kind in ("bridge", "llama"):
            command = ["perplexity", "-m", model(kind), "-f", path]
            cpu, cuda = sluice(*command, "--device", "cpu", check=0).stdout, on_device(*command, *CUDA).stdout
            one, other = (float(out.splitlines()[-1].split()[1]) for out in (cpu, cuda))
            self.assertAlmostEqual(one / other, 1, places=4)

    def logits(self, type, *flags):
        path = scratch() / "device.npy"
        on_device("logits", "-m", model(type=type, text=False), "--tokens", ids(IDS), "-o", path, *flags)
        return read_npy(path)

    def test_logits(self):
        exact, rounded = [*CUDA, "--activations", "f32"], [*CUDA, "--activations", "f16"]
        cpu = ["--device", "cpu"]
        for type, one, other, limit in (("f32", cpu, CUDA, 1e-5), ("bf16", cpu, exact, 1e-5),
                                        ("bf16", exact, CUDA, 0.01), ("q8", exact, CUDA, 0.01),
                                        ("f16", exact, CUDA, 0.01), ("f32", exact, rounded, 0.01)):
            with self.subTest(type=type, flags=other):
                expected, got = self.logits(type, *one), self.logits(type, *other)
                worst = max(abs(a - b) for x, y in zip(got, expected) for a, b in zip(x, y))
                spread = max(map(max, expected)) - min(map(min, expected))
                self.assertLess(worst / spread, limit)
                self.assertEqual((len(got), got == expected), (len(IDS), False))


class Batch(Case):
    LINES = b"".join(b'{"prompt": "%s", "max_tokens": %d, "temperature": %s, "seed": %d}\n'
                     % (b"the on " * (i % 4 + 1), 3 + i, [b"0", b"0.9"][i % 2], i) for i in range(9))

    def batch(self, *flags, run=on_device, kind="bridge", type="f32"):
        source, out = scratch() / "in.jsonl", scratch() / "out.jsonl"
        source.write_bytes(self.LINES)
        out.unlink(missing_ok=True)
        run("batch", "-m", model(kind, type=type), "-i", source, "-o", out, *flags, check=0)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return [(row["finish_reason"], row["text"]) for row in sorted(rows, key=lambda row: row["index"])]

    def test_batch(self):
        for kind in ("bridge", "llama"):
            expected = self.batch("--device", "cpu", run=sluice, kind=kind)
            self.assertEqual(len(expected), 9)
            for parallel in ("1", "4", "20"):
                got = self.batch(*CUDA, "--parallel", parallel, kind=kind)
                self.assertEqual(got, expected, (kind, parallel))

    def test_batch_invariant(self):
        """f16, more than one pass of prompts, and no cuBLAS, which nobody misses."""
        flags = [*CUDA, "--batch-invariant", "-b", "24"]
        for kind in ("bridge", "llama"):
            expected = self.batch(*flags, "--parallel", "1", kind=kind, type="f16")
            for parallel in ("3", "20"):
                self.assertEqual(self.batch(*flags, "--parallel", parallel, kind=kind, type="f16"), expected, (kind, parallel))
        self.assertEqual(on_device("generate", "-m", model(), "-p", "the", *GREEDY, *flags, blas=["none"]).stderr, b"")


class Blas(Case):
    """cuBLAS in other places, in pieces or not at all: a line says so, and our own products take its place."""
    LONG = ["-p", "the user on the other " * 9, *GREEDY, "--activations", "f32"]
    ABSENT = b"no cuBLAS 12 or 13 found"

    def reason(self, **more):
        """What info says of the device besides its name."""
        line, = [line for line in on_device("info", "-m", model(), **more).stdout.splitlines() if NAME in line]
        return line.split(b"; ")[1:]

    def generate(self, device="cuda", **more):
        return on_device("generate", "-m", model(), *self.LONG, "--device", device, **more)

    def check(self, why, info, **more):
        expected = self.generate()
        self.assertEqual(expected.stderr, b"")
        run = self.generate(**more)
        self.assertEqual((run.stdout, run.stderr), (expected.stdout, why and b"cuda:0: %s: %s\n" % (why, INSTEAD)))
        self.assertEqual(self.reason(**more), info and [b"%s: %s" % (info, INSTEAD)])

    def test_absent(self):
        self.check(self.ABSENT, self.ABSENT, blas=["none"])
        self.assertEqual(self.generate(device="cpu", blas=["none"]).stderr, b"")

    def test_a_function_is_missing(self):
        reason = b"libcublas.so.13 lacks cublasGetVersion_v2"
        self.check(reason, reason, blas=["lacking", "none"])
        self.check(b"", [], blas=["lacking", "12"])

    def test_does_not_start(self):
        self.check(b"cuBLAS does not start (status 1)", [], SLUICE_DEVICE_BLAS_FAILS="1")

    def test_version_12(self):
        self.check(b"", [], blas=["12", "none"])

    def test_version_13_beside_an_older_driver(self):
        reason = b"libcublas.so.13 needs a driver for CUDA 13"
        self.check(reason, reason, blas=["13", "none"], SLUICE_DEVICE_DRIVER="12080")
        run = on_device("info", "-m", model(), blas=["13", "12"], SLUICE_DEVICE_DRIVER="12080")
        self.assertIn(b", products by libcublas.so.12\n", run.stdout)

    def test_every_command_says_so_once(self):
        path, line = scratch() / "text.bin", b"cuda:0: %s: %s\n" % (self.ABSENT, INSTEAD)
        path.write_bytes(bytes(range(3, 60)))
        for command in (["logits", "--tokens", ids(IDS), "-o", scratch() / "out.npy"], ["perplexity", "-f", path],
                        ["chat", "-n", "1"], ["batch", "-i", os.devnull, "-o", scratch() / "none.jsonl"],
                        ["bench", "--against", model("llama"), "-p", "18", "-n", "1,2", "-r", "1"]):
            run = on_device(command[0], "-m", model(), *command[1:], *CUDA, blas=["none"])
            self.assertEqual(run.stderr.count(line), 1, (command, run.stderr))
        self.assertIn(b"; %s: f32" % self.ABSENT, run.stdout)

    def test_bench_names_it(self):
        for blas, name in ((["13"], b"cuBLAS 13.10.0"), (["12", "none"], b"cuBLAS 12.9.3")):
            run = on_device("bench", "-m", model(), "--against", "none", "-p", "18", "-n", "0", "-r", "1", *CUDA, blas=blas)
            self.assertEqual((run.stdout.count(name), run.stderr), (1, b""))

    def test_bench_profile(self):
        """As on the CPU every byte and operation is some node's, those of deep tokens too, which only the device counts;
        what shares a launch is one node."""
        path = scratch() / "profile.json"
        run = on_device("bench", "-m", model(), "--against", "none", "-p", "18", "-n", "2", "-r", "1", "--profile", "--json",
                        path, *CUDA)
        for row in json.loads(path.read_text()):
            profile, n_token = row["profile"], row["n_prompt"] + row["n_gen"]
            parts = {p["node"]: p for p in profile["nodes"]}
            self.assertEqual(profile["passes"], row["n_gen"] or 1)
            self.assertEqual(row["replayed_share"], 1 if row["n_gen"] else 0)
            self.assertTrue(0 < sum(p["seconds"] for p in parts.values()) <= profile["seconds"])
            self.assertAlmostEqual(sum(p["bytes"] for p in parts.values()) / n_token, row["bytes_per_token"], delta=1)
            self.assertTrue(any(" + mlp.up" in name for name in parts) == bool(row["n_gen"]), list(parts))
            self.assertTrue(any(", deep" in name for name in parts))
        self.assertEqual(run.stdout.count(b"node by node"), 2)

    def test_bench_activations(self):
        """What was asked for stands in the JSON and is held against its own matrix rate."""
        rows = {}
        for kind in ("f32", "f16"):
            path = scratch() / f"{kind}.json"
            run = on_device("bench", "-m", model(), "--against", "none", "-p", "18", "-n", "0", "-r", "1", "--activations", kind,
                            "--json", path, *CUDA)
            rate = float(re.search(rb"%s ([\d.e+-]+)" % kind.encode(), run.stdout.split(b"cuBLAS", 1)[1])[1])
            rows[kind], = json.loads(path.read_text())
            self.assertEqual(rows[kind]["activations"], kind)
            self.assertAlmostEqual(rows[kind]["matmul_probe_tflops"] / rate, 1, 2)
        self.assertNotEqual(rows["f32"]["matmul_probe_tflops"], rows["f16"]["matmul_probe_tflops"])


class Errors(Case):
    def generate(self, *flags, check=None, **variables):
        return on_device("generate", "-m", model(), "-p", "the", *GREEDY, *flags, check=check, **variables)

    def test_names(self):
        self.assert_error(self.generate("--device", "cuda:7"), 1, '"cuda:7"', "cuda:0")
        self.assert_error(self.generate("--device", "gpu"), 2, "gpu", "cuda:N")
        self.assert_error(self.generate(*CUDA, "--activations", "bf16"), 2, "bf16", "f32|f16")
        for command in (["logits", "--tokens", "1"], ["perplexity", "-f", __file__], ["chat"], ["bench"]):
            run = on_device(command[0], "-m", model(), *command[1:], "--device", "cuda:7", check=None)
            self.assert_error(run, 1, '"cuda:7"')

    def test_absent(self):
        for name in ("cuda", "cuda:0"):
            self.assert_error(self.generate("--device", name, SLUICE_DEVICE_ABSENT="1"), 1, "no CUDA device")
            run = on_device("bench", "-m", model(), "--device", name, check=None, SLUICE_DEVICE_ABSENT="1")
            self.assert_error(run, 1, "no CUDA device")
        run = self.generate("--device", "auto", check=0, SLUICE_DEVICE_ABSENT="1")
        self.assertEqual(run.stdout, self.generate("--device", "cpu").stdout)

    def test_info(self):
        run = sluice("info", "-m", model(), check=0)
        self.assertIn(NAME, run.stdout)
        self.assertIn(b", products by libcublas.so.13\n", run.stdout)
        run = on_device("info", "-m", model(), SLUICE_DEVICE_ABSENT="1")
        self.assertNotIn(NAME, run.stdout)
        self.assertIn(b"no CUDA device", run.stdout)

    def test_too_little_memory(self):
        run = self.generate(*CUDA, SLUICE_DEVICE_MEMORY="1000000")
        self.assert_error(run, 1, "out of memory", "needs", "976.56 KiB are free", "no type of it would fit")

    def test_failures(self):
        """Every so many of its calls: the text so far, one line, and nothing kept."""
        count = scratch() / "count.txt"
        whole = self.generate(*CUDA, check=0, SLUICE_DEVICE_COUNT_CALLS=str(count)).stdout
        n_call = int(count.read_text())
        self.assertGreater(n_call, 100)
        for n in {*range(1, n_call, n_call // 12), n_call}:
            run = self.generate(*CUDA, SLUICE_DEVICE_FAIL=str(n))
            if run.returncode == 0:  # cuBLAS is not needed
                self.assertEqual(run.stdout, whole)
                continue
            self.assertEqual(run.returncode, 1, (n, run.stderr))
            self.assert_error_line(run.stderr, "cuda")
            self.assertTrue(whole.startswith(run.stdout.rstrip(b"\n")), (n, run.stdout))


if __name__ == "__main__":
    unittest.main()
