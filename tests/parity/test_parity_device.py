"""Logits of the CUDA backend against those of independent implementations, on whatever device the build has.

The fixtures are those of test_parity.py. With f32 activations every cut of the prompt must meet the reference: one
prefill, single tokens (which from the third on are a replayed graph), pieces, small batches.

With f16 activations the logits may differ by a hundredth of their length (|got - expected| / |expected|): those of every
fixture, with bf16 weights against the CPU's of the same weights and with f32 weights against the reference, and those of
the trained models that are shipped, there at every single position too. (The fixtures have random weights, chosen so that
every path is alive, and amplify any rounding: bf16 weights alone, everything else in f32, move their logits by 0.6 to 2.5
hundredths.)
"""
import concurrent.futures
import json
import math
import os
import shutil
import struct
import subprocess
import tempfile
import unittest

from tests.parity.test_parity import OWN, ROOT, SHARED, SLUICE, fixtures, read_npy

DEVICE = os.environ.get("SLUICE_DEVICE", "cuda")
JOBS = int(os.environ.get("SL_PARITY_JOBS", "1"))  # fixtures at a time: most of one is the start of processes
LIMIT_F32, LIMIT_F16 = 2e-4, 1e-2
TEXT = "Once upon a time there was a little girl who lived near the sea. One day she found a boat, and"
MORE = (" her brother said that they should not go far from the shore. But the wind was soft and the water was blue, so they "
        "rowed until the house was as small as a toy. Then a big fish came up and asked them where they were going.")


def of_range(got, expected):
    spread = max(expected) - min(expected)
    return max(abs(a - b) for a, b in zip(got, expected)) / spread


def of_length(got, expected):
    """|got - expected| / |expected|, as vectors."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(got, expected)) / sum(b * b for b in expected))


def amplify(path, loud):
    """Sets values of a safetensors file of f16 and f32 tensors to 6e4 with their sign: the first loud(name, shape) each."""
    with open(path, "rb") as f:
        data = bytearray(f.read())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__":
            kind = f"<{loud(name, tensor['shape'])}{ {'F16': 'e', 'F32': 'f'}[tensor['dtype']] }"
            values = struct.unpack_from(kind, data, start + tensor["data_offsets"][0])
            struct.pack_into(kind, data, start + tensor["data_offsets"][0], *(math.copysign(6e4, v) for v in values))
    with open(path, "wb") as f:
        f.write(data)


class DeviceParity(unittest.TestCase):
    def logits(self, *flags, device=DEVICE):
        out = os.path.join(self.work.name, "out.npy")
        self.run_sluice("logits", "-m", self.model, *self.prompt, "-o", out, "--device", device, *flags)
        return read_npy(out)

    def run_sluice(self, *args):
        done = subprocess.run([SLUICE, *args], capture_output=True, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, f"{args}: {done.stderr.decode(errors='replace')}")

    def check(self, folder):
        with open(os.path.join(folder, "tokens.json")) as f:
            self.prompt = ["--tokens", ",".join(str(t) for t in json.load(f))]
        self.model = os.path.join(self.work.name, "model.slu")
        self.run_sluice("convert", folder, self.model, "--type", "f32")
        shape, expected = read_npy(os.path.join(folder, "logits.npy"))
        exact = 0.0
        for flags in ([], ["--chunk", "1"], ["--chunk", "7"], ["-b", "5"]):
            got = self.logits(*flags)
            self.assertEqual(got[0], shape)
            exact = max(exact, of_range(got[1], expected))
            self.assertLessEqual(exact, LIMIT_F32, f"f32, {flags}")
        for name in sorted(os.listdir(folder)):
            if name.startswith("logits_tau"):
                tau = name[len("logits_tau"):-len(".npy")]
                error = of_range(self.logits("--route-threshold", tau)[1], read_npy(os.path.join(folder, name))[1])
                self.assertLessEqual(error, LIMIT_F32, name)
        rounded = of_length(self.logits("--activations", "f16")[1], expected)
        weights, stored = self.check_f16(folder, expected)
        print(f"{os.path.basename(folder)}: f32 {exact:.1e} of the range; of the length, f16 {rounded:.1e}, with bf16 "
              f"weights {stored:.1e}, which alone are {weights:.1e}", flush=True)
        self.assertLessEqual(rounded, LIMIT_F16, "f16, f32 weights")
        self.assertLessEqual(stored, LIMIT_F16, "f16, bf16 weights")

    def check_f16(self, folder, expected):
        self.run_sluice("convert", folder, self.model, "--type", "bf16")
        stored = self.logits(device="cpu")[1]
        weights = of_length(stored, expected)
        rounded = max(of_length(self.logits(*flags)[1], stored) for flags in ([], ["--chunk", "1"], ["--chunk", "17"]))
        return weights, rounded

    def setUp(self):
        self.work = tempfile.TemporaryDirectory()

    def tearDown(self):
        self.work.cleanup()

    def test_fixtures(self):
        if not os.path.isdir(SHARED):
            print("skipped: no ../shared/data (its parity fixtures)", flush=True)
        with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
            for folder, found in [(folder, pool.submit(self.check_alone, folder)) for folder in fixtures()]:
                with self.subTest(os.path.basename(folder)):
                    found.result()

    @staticmethod
    def check_alone(folder):
        """In a work folder of its own."""
        alone = DeviceParity("check")
        alone.setUp()
        try:
            alone.check(folder)
        finally:
            alone.tearDown()

    def test_beyond_f16(self):
        """What is beyond the range of f16 counts as its largest number, in products of ours (single tokens) and of
        cuBLAS (the whole prompt; it stores infinities, which are NaN by the next kernel unless they are read so)."""
        for name, up in (("bridge-shape64", False), ("bridge-s4d-short", False), ("bridge-shape64", True), ("llama-yarn", True)):
            folder = os.path.join(self.work.name, f"{name}-{up}")
            shutil.copytree(os.path.join(OWN, name), folder)
            with open(os.path.join(folder, "tokens.json")) as f:
                self.prompt = ["--tokens", ",".join(str(t) for t in json.load(f))]
            with open(os.path.join(folder, "config.json")) as f:
                config = json.load(f)
            some = 2 * config.get("inner_size", 0)  # g and r, and of S6 half of B
            if config.get("ssm_type") == "s6":
                some += config["state_size"] // 2
            amplify(os.path.join(folder, "model.safetensors"), lambda tensor, shape:
                    math.prod(shape) * tensor.endswith(("mlp.up.weight", "mlp.up_proj.weight")) if up else
                    math.prod(shape) if tensor.endswith("conv.in.weight") else
                    some * shape[1] if tensor.endswith("ssm.in.weight") else 0)
            self.model = os.path.join(self.work.name, "model.slu")
            self.run_sluice("convert", folder, self.model, "--type", "f32")
            whole, steps = (self.logits("--activations", "f16", *flags)[1] for flags in ([], ["--chunk", "1"]))
            self.assertTrue(all(math.isfinite(v) for v in whole), name)
            error = of_length(whole, steps)
            print(f"{name}, {'up' if up else 'projections'} beyond f16: {error:.1e} of the length", flush=True)
            self.assertLessEqual(error, LIMIT_F16, name)

    def test_trained_models(self):
        """f16 activations; attention over more than one tile of keys, in one piece and in two."""
        for name, text, flags in (("bridge-6m", TEXT, []), ("transformer-6m", TEXT + MORE, []),
                                  ("transformer-6m", TEXT + MORE, ["--chunk", "40"])):
            self.prompt = ["-p", text]
            self.model = os.path.join(ROOT, "models", "demo", name + ".slu")
            (n_token, n_vocab), expected = self.logits("--activations", "f32")  # the CPU's q8 has int8 activations
            got = self.logits(*flags)[1]
            whole = of_length(got, expected)
            worst = max(of_length(got[at:at + n_vocab], expected[at:at + n_vocab])
                        for at in range(0, n_token * n_vocab, n_vocab))
            print(f"{name} {' '.join(flags)}: f16 {whole:.1e} of the length, {worst:.1e} at the worst position", flush=True)
            self.assertLessEqual(whole, LIMIT_F16, name)
            self.assertLessEqual(worst, LIMIT_F16, name)


if __name__ == "__main__":
    unittest.main()
