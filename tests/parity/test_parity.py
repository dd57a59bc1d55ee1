"""Logits of the engine against those of independent implementations.

Each fixture is a folder with config.json, model.safetensors, tokens.json and logits.npy [T, V] (and logits_tauX.npy
for Bridge with the router's threshold overridden by X). Fixtures made by tools/reference/make_fixtures.py lie in
fixtures/; those of ../shared/data/parity come from other hands and are used where that folder exists.

Every fixture is converted to f32 and evaluated as one prefill, in chunks of 1 and of 7, with 1 and 2 threads and at
every CPU level: all must meet the reference, and cuts and threads must not change a bit.
"""
import array, json, os, struct, subprocess, tempfile, unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SLUICE = os.environ.get("SLUICE", os.path.join(ROOT, "build", "sluice"))
OWN = os.path.join(ROOT, "tests", "parity", "fixtures")
SHARED = os.path.join(ROOT, "..", "shared", "data", "parity")
LIMIT = 2e-5  # of the logits' range; what is asked for is 2e-4


def read_npy(path):
    """(shape, values) of a little-endian float32 .npy file in C order."""
    with open(path, "rb") as f:
        data = f.read()
    assert data[:6] == b"\x93NUMPY", path
    size = struct.unpack("<H", data[8:10])[0] if data[6] == 1 else struct.unpack("<I", data[8:12])[0]
    start = 10 if data[6] == 1 else 12
    header = data[start:start + size].decode("latin-1")
    assert "'<f4'" in header and "'fortran_order': False" in header, header
    shape = tuple(int(n) for n in header.split("'shape': (")[1].split(")")[0].split(",") if n.strip())
    values = array.array("f")
    values.frombytes(data[start + size:])
    return shape, values


def fixtures():
    found = []
    for folder in (OWN, SHARED):
        if os.path.isdir(folder):
            found += [os.path.join(folder, name) for name in sorted(os.listdir(folder))
                      if os.path.exists(os.path.join(folder, name, "tokens.json"))]
    return found


class Parity(unittest.TestCase):
    def run_sluice(self, *args, cpu=None):
        env = dict(os.environ, **({"SLUICE_CPU": cpu} if cpu else {}))
        done = subprocess.run([SLUICE, *args], capture_output=True, env=env, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, f"{args}: {done.stderr.decode(errors='replace')}")

    def logits(self, *flags, cpu=None):
        out = os.path.join(self.work.name, "out.npy")
        self.run_sluice("logits", "-m", self.model, "--tokens", self.tokens, "-o", out, *flags, cpu=cpu)
        return read_npy(out)

    def compare(self, got, expected, what):
        self.assertEqual(got[0], expected[0], what)
        spread = max(expected[1]) - min(expected[1])
        worst = max(range(len(got[1])), key=lambda i: abs(got[1][i] - expected[1][i]))
        error = abs(got[1][worst] - expected[1][worst]) / spread
        self.worst = max(self.worst, error)
        self.assertLessEqual(error, LIMIT, f"{what}: position {worst // got[0][1]}, token {worst % got[0][1]}")

    def check(self, folder):
        with open(os.path.join(folder, "tokens.json")) as f:
            self.tokens = ",".join(str(t) for t in json.load(f))
        self.model = os.path.join(self.work.name, "model.slu")
        self.worst = 0.0
        self.run_sluice("convert", folder, self.model, "--type", "f32")
        expected = read_npy(os.path.join(folder, "logits.npy"))
        whole = self.logits("-t", "1")
        self.compare(whole, expected, "prefill")
        for flags in (["--chunk", "1"], ["--chunk", "7"], ["-t", "2"], ["-b", "5"], ["-t", "2", "--chunk", "13"]):
            self.assertEqual(self.logits(*flags)[1].tobytes(), whole[1].tobytes(), f"bits of {flags}")
        for cpu in ("ref", "avx2", "avx512"):
            self.compare(self.logits(cpu=cpu), expected, cpu)
        for name in sorted(os.listdir(folder)):
            if name.startswith("logits_tau"):
                tau = name[len("logits_tau"):-len(".npy")]
                self.compare(self.logits("--route-threshold", tau), read_npy(os.path.join(folder, name)), name)
        print(f"{os.path.basename(folder)}: largest difference {self.worst:.1e} of the range", flush=True)

    def setUp(self):
        self.work = tempfile.TemporaryDirectory()

    def tearDown(self):
        self.work.cleanup()

    def test_fixtures(self):
        if not os.path.isdir(SHARED):
            print("skipped: no ../shared/data (its parity fixtures)", flush=True)
        found = fixtures()
        self.assertTrue(found, "no fixtures")
        for folder in found:
            with self.subTest(os.path.basename(folder)):
                self.check(folder)


if __name__ == "__main__":
    unittest.main()
