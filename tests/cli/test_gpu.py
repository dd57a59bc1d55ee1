"""tools/bench/gpu without a GPU: a tree of its own in which every program is a stand-in. What is tested is the order of the
steps, that whatever is missing, fails or hangs is named and fails the run, and that what was measured is kept.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.cli import helper

# Stands in for sluice, sl_check, compute-sanitizer, cmake and the parity fixtures. FAKE says what goes wrong: {step: what}.
FAKE = r"""
import json, os, sys, time
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
after = lambda flag: args[args.index(flag) + 1]
numbers = lambda flag: [int(n) for n in after(flag).split(",") if n != "0"]
step = {"sl_check": "kernels", "compute-sanitizer": "sanitizer", "cmake": "build", "fixtures": "parity"}.get(name) or args[0]
if step == "sanitizer":
    step = after("--tool") + " " + os.path.basename(after("-m")) if len(after("-p").split()) > 100 else "probe"
if step == "bench":
    step = f"bench prefill {after('-p')}" if numbers("-p") else "bench decode " + after("-b")
with open("log", "a") as log:
    print(step, file=log)
wrong = json.loads(os.environ.get("FAKE", "{}")).get(step)

def row(model, phase, n, depth, batch):
    n_prompt, n_gen = (n, 0) if phase == "prefill" else (0, n)
    return {"model": model, "type": "bf16", "phase": phase, "n_prompt": n_prompt, "n_gen": n_gen, "depth": depth,
            "batch": batch, "tokens_per_second": {"median": 100.0 - depth / 131072}, "fraction_of_read_probe": 0.7,
            "replayed_share": 0.25 if wrong == "launched" else 1 if n_gen else 0, "bytes_per_token": 1e9 * (1 + depth / 131072 / 10),
            "fraction_of_matmul_probe": None if wrong == "no rate" else 0.4}

def bench():
    phase, rows, path = step.split()[1], [], after("--json")
    for n in numbers("-p") + numbers("-n"):
        for depth in map(int, after("-d").split(",")):
            for batch in numbers("-b"):
                for model in ("bridge-7b", "transformer-7b-gqa"):
                    rows.append(row(model, phase, n, depth, batch))
                    print("row", len(rows), flush=True)
                    with open(path + ".part", "w") as out:
                        json.dump(rows, out)
                    os.replace(path + ".part", path)
                if wrong == "hang":
                    time.sleep(100)

if step.startswith("bench"):
    bench()
elif step.startswith(("probe", "memcheck")):
    empty, _, rest = os.environ["LD_LIBRARY_PATH"].partition(":")
    with open("empty", "w") as out:
        out.write(str([os.path.getsize(f"{empty}/libcublas.so.{n}") for n in (12, 13)]) + " " + rest)
    print("========= Error: Device not supported. Please refer to the manual" * (wrong == "unsupported"))
    print("========= ERROR SUMMARY: 0 errors")
elif step == "info":
    with open("libraries", "w") as out:
        out.write(os.environ.get("LD_LIBRARY_PATH", ""))
    print("device cuda:0      cannot be used: too old")
    print("device cuda:1     ", {"no device": "cannot be used: tired", "no cublas": "GPU"}.get(
        wrong, "GPU, products by libcublas.so.13"))
elif step == "kernels":
    print("skipped: the CUDA kernels (no device)" if wrong == "skipped" else "3 variants, 0 failed", flush=True)
elif step == "parity":
    print("fixture-a: fine", flush=True)
elif step == "build":
    print("nvcc: no such thing", flush=True)
else:
    print("========= ERROR SUMMARY: 0 errors")
if wrong == "hang":
    time.sleep(100)
sys.exit(wrong in ("fail", "unsupported"))
"""
PARITY = """
import os, subprocess, sys, unittest
class Parity(unittest.TestCase):
    def test(self):
        self.assertEqual(subprocess.run([os.path.join(os.path.dirname(os.environ["SLUICE"]), "fixtures")]).returncode, 0)
"""
SANITIZED = ["memcheck bridge-6m.slu", "memcheck transformer-6m.slu", "racecheck bridge-6m.slu"]
STEPS = ["info", "kernels", "bench decode 1", "bench prefill 2048", "parity", "bench prefill 32768", "bench decode 8,32,128",
         "probe"]
N_ROW = 2 * (4 + 2 + 9)  # of a preset and its twin


class Gpu(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=helper.scratch())
        self.addCleanup(folder.cleanup)
        self.tree = Path(folder.name)
        for name in ("tools/bench", "tests/parity", "build/tests/check", "bin", "site/nvidia/cublas/lib"):
            (self.tree / name).mkdir(parents=True)
        shutil.copy(helper.ROOT / "tools/bench/gpu", self.tree / "tools/bench/gpu")
        (self.tree / "tests/parity/test_parity_device.py").write_text(PARITY)
        for name in ("build/sluice", "build/fixtures", "build/tests/check/sl_check", "bin/compute-sanitizer", "bin/cmake"):
            (self.tree / name).write_text(f"#!{sys.executable} -SE\n{FAKE}")
            (self.tree / name).chmod(0o755)

    def gpu(self, *flags, carried=True, **wrong):
        """Runs the command; self.code, self.text and self.data are what came of it. wrong: step_name="what"."""
        fake = json.dumps({step.replace("_", " "): what for step, what in wrong.items()})
        env = {**os.environ, "FAKE": fake, "PATH": f"{self.tree}/bin:{os.environ['PATH']}", "PYTHONPATH": f"{self.tree}/site"}
        build = ["--build", self.tree / "build"] if carried else []
        done = subprocess.run([sys.executable, "-B", self.tree / "tools/bench/gpu", *build, "--out", self.tree / "out",
                               "--models", "bridge-7b:bf16", *flags], env=env, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.stderr, "")
        self.code, self.text = done.returncode, (self.tree / "out/gpu.txt").read_text()
        self.data = json.loads((self.tree / "out/gpu.json").read_text())
        self.assertEqual(done.stdout, self.text)
        self.assertEqual(self.code, int(bool(self.data["failed"])))
        for what in self.data["failed"]:
            self.assertIn(what, self.text)

    def log(self):
        return (self.tree / "log").read_text().splitlines()

    def test_order(self):
        self.gpu()
        self.assertEqual((self.data["failed"], self.data["missing"]), ([], []), self.text)
        self.assertEqual(self.log(), STEPS + SANITIZED)
        self.assertEqual(len(self.data["rows"]), N_ROW)
        self.assertEqual((self.tree / "empty").read_text(), "[0, 0] " + (self.tree / "libraries").read_text())
        self.assertEqual(set(self.data["sha256"]), {"sluice", "sl_check"})
        self.assertIn("device cuda:1", self.data["device"])
        self.assertEqual(self.data["cublas"], "libcublas.so.13")
        self.assertIn("decode, batch 1, of the copy bandwidth: 0.700, reached (0.6)", self.text)
        self.assertIn("prefill, of the matrix rate: 0.400, NOT reached (0.5)", self.text)
        self.assertIn("decode at 128K against 1K: 0.990, reached (0.97)\n  in bytes a second: 1.088", self.text)
        self.assertIn(f"{self.tree}/site/nvidia/cublas/lib", (self.tree / "libraries").read_text().split(":"))

    def test_steps_that_were_not_replayed(self):
        self.gpu(bench_decode_1="launched")
        line = "bridge-7b at depth 32768, batch 1: 25% of the steps were replayed from a graph, the others launched"
        self.assertEqual((self.text.count(line), self.text.count("replayed")), (1, 2 * 4))

    def test_what_hangs_is_stopped(self):
        """Checks that hang leave their share to those after them; what they wrote and rows that were written stay."""
        self.gpu("--seconds", "30", kernels="hang", parity="hang", bench_decode_1="hang")
        self.assertEqual(self.data["failed"], ["kernels", "parity"])
        self.assertEqual(self.log(), STEPS + SANITIZED)
        self.assertLess(self.data["seconds"], 32)
        for text in ("kernels: FAILED, stopped after", "3 variants, 0 failed", "parity: FAILED, stopped after",
                     "fixture-a: fine", "bridge-7b:bf16 decode 32, batch 1: stopped after", "row 2"):
            self.assertIn(text, self.text)
        self.assertNotIn("row 3\n", self.text.split("bridge-7b:bf16 prefill 2048")[0])
        self.assertEqual(len(self.data["rows"]), N_ROW - 6)
        self.assertEqual(len(self.data["missing"]), 6)
        self.assertIn("bridge-7b:bf16: transformer-7b-gqa decode 32, depth 131072, batch 1", self.data["missing"])
        self.assertIn("6 rows missing: bridge-7b decode 32, depth 1024, batch 1; ", self.text)
        self.assertIn("decode at 128K against 1K: not judged, no such row", self.text)

    def test_what_fails(self):
        self.gpu(parity="fail", kernels="skipped", bench_prefill_2048="fail",
                 **{"racecheck bridge-6m.slu": "fail"})
        self.assertEqual(self.data["failed"], ["kernels", "bridge-7b:bf16 prefill 2048, batch 1", "parity",
                                               "compute-sanitizer racecheck bridge-6m"])
        self.assertEqual(len(self.data["rows"]), N_ROW)

    def test_what_is_not_there(self):
        (self.tree / "build/tests/check/sl_check").unlink()
        self.gpu()
        self.assertEqual(self.data["failed"], ["kernels"])
        self.gpu(info="no device")
        self.assertEqual(self.data["failed"], ["info", "kernels", "parity"])
        self.assertIn("cannot be used: tired", self.text)
        self.assertEqual(len(self.data["missing"]), N_ROW)
        self.gpu("--seconds", "0")
        self.assertEqual(self.data["failed"], ["info", "kernels", "parity"])
        self.assertIn("info: FAILED, left out, no time", self.text)
        (self.tree / "build/sluice").unlink()
        self.gpu()
        self.assertEqual(self.data["failed"], ["build", "kernels", "parity"])

    def test_what_the_machine_lacks(self):
        """A sanitizer that does not work and a missing cuBLAS are said and fail nothing."""
        self.gpu(probe="unsupported", info="no cublas", bench_prefill_2048="no rate", bench_prefill_32768="no rate")
        self.assertEqual(self.data["failed"], [])
        self.assertEqual(self.log(), STEPS)
        self.assertIn("compute-sanitizer: left out: Error: Device not supported", self.text)
        self.assertIn("prefill, of the matrix rate: not judged, there is no cuBLAS", self.text)
        self.assertIn("cuBLAS: none", self.text)

    def test_a_build_that_fails(self):
        self.gpu(carried=False, build="fail")
        self.assertEqual(self.data["failed"], ["build", "kernels", "parity"])
        self.assertEqual(self.text.splitlines()[:2], ["build: FAILED, exit 1, it wrote", "  nvcc: no such thing"])
        self.assertEqual(self.log(), ["build"])
        self.gpu("--seconds", "11.5", carried=False, build="hang")  # 190 of 460: what is after it keeps its share
        self.assertEqual(self.text.splitlines()[:2], ["build: FAILED, stopped after 5 s, it wrote", "  nvcc: no such thing"])


if __name__ == "__main__":
    unittest.main()
