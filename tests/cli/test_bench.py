"""sluice bench: rows, files and misuse, on presets that take a moment."""
import csv
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cli import helper
from tests.cli.helper import sluice

NUMBERS = ["parameters", "n_prompt", "n_gen", "depth", "batch", "threads", "bytes_per_token", "gbps",
           "fraction_of_read_probe", "tflops", "fraction_of_matmul_probe", "state_bytes", "kv_bytes", "peak_rss_bytes",
           "time_to_first_token"]


class BenchCase(helper.Case):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=helper.scratch())
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def bench(self, *flags):
        path = self.folder / "rows.json"
        run = sluice("bench", *flags, "--json", path, check=0)
        self.assertEqual(run.stderr, b"")
        lines = run.stdout.decode().partition("node by node")[0].splitlines()
        self.table = [line for line in lines if line.startswith("| ")]
        rows = json.loads(path.read_text())
        self.assertEqual(len(rows), len(self.table) - 2)
        for row in rows:
            self.check_row(row)
        return rows

    def check_row(self, row):
        for name in NUMBERS:
            self.assertTrue(math.isfinite(row[name]) and row[name] >= 0, (name, row[name]))
        speed = row["tokens_per_second"]
        self.assertTrue(0 < speed["min"] <= speed["median"] <= speed["max"])
        self.assertEqual(row["phase"], "prefill" if row["n_prompt"] else "decode")
        self.assertTrue(bool(row["n_prompt"]) != bool(row["n_gen"]))
        self.assertAlmostEqual(row["gbps"], 1e-9 * row["bytes_per_token"] * speed["median"], delta=1e-6 * row["gbps"])
        self.assertIsInstance(row["depth_synthetic"], bool)


class Rows(BenchCase):
    def test_lists_and_baseline(self):
        rows = self.bench("--synthetic", "bridge-tiny:q8", "-p", "4,0", "-n", "2", "-d", "0,8", "-b", "1,3", "-t", "1",
                          "-r", "2")
        self.assertEqual(len(rows), 2 * 2 * 2 * 2)
        seen = {(r["model"], r["n_prompt"], r["n_gen"], r["depth"], r["batch"]) for r in rows}
        self.assertEqual(len(seen), len(rows))
        self.assertEqual({r["model"] for r in rows}, {"bridge-tiny", "transformer-tiny-gqa"})
        self.assertEqual({r["type"] for r in rows}, {"q8"})
        for own, base in zip(rows[::2], rows[1::2]):
            self.assertEqual(base["ratio_to_baseline"], 1)
            ratio = own["tokens_per_second"]["median"] / base["tokens_per_second"]["median"]
            self.assertAlmostEqual(own["ratio_to_baseline"], ratio, delta=1e-6 * ratio)
            self.assertEqual((own["kv_bytes"], base["state_bytes"], base["deep_share"]), (0, 0, None))
            self.assertGreater(base["kv_bytes"], 0)
            self.assertEqual(own["state_bytes"] // own["batch"], rows[0]["state_bytes"])

    def test_deep_share(self):
        share, read = {}, {}
        for deep in ("0", "0.25", "0.75", "1"):
            row, = self.bench("--synthetic", f"bridge-tiny:q4:deep={deep}", "--against", "none", "-p", "0", "-n", "48",
                              "-r", "1", "-t", "1")
            share[deep], read[deep] = row["deep_share"], row["bytes_per_token"]
            self.assertIsNone(row["ratio_to_baseline"])
        self.assertEqual((share["0"], share["1"]), (0, 1))
        self.assertAlmostEqual(share["0.25"], 0.25, delta=0.15)
        self.assertAlmostEqual(share["0.75"], 0.75, delta=0.15)
        self.assertTrue(read["0"] < read["0.25"] < read["0.75"] < read["1"], read)

    def test_threshold(self):
        row, = self.bench("--synthetic", "bridge-tiny:q4", "--against", "none", "-p", "8", "-n", "0", "-r", "1",
                          "--route-threshold", "1")
        self.assertEqual(row["deep_share"], 0)

    def test_great_depth_is_made_up(self):
        rows = self.bench("--synthetic", "bridge-tiny:q4", "-p", "0", "-n", "2", "-r", "1", "-d", "4,1000000")
        shallow, _, deep, base = rows
        self.assertEqual([r["depth_synthetic"] for r in rows], [False, False, True, True])
        self.assertEqual(deep["state_bytes"], shallow["state_bytes"])
        self.assertEqual(deep["bytes_per_token"] > 0, True)
        self.assertGreater(base["bytes_per_token"], base["kv_bytes"] * 0.99)
        self.assertGreater(base["peak_rss_bytes"], base["kv_bytes"])
        self.assertLess(deep["peak_rss_bytes"], shallow["peak_rss_bytes"] + (8 << 20))

    def test_profile(self):
        """Every node has its place, and together they read and compute what the row does."""
        for model, nodes in (("bridge-tiny:q8", ("linear mlp.gate ", "linear mlp.down ", ", deep", "s6", "conv_gate", "bridge",
                                                 "linear embed ")),
                             ("transformer-tiny:f16", ("linear mlp.gate_proj ", "attention", "rope"))):
            rows = self.bench("--synthetic", model, "--against", "none", "-p", "20", "-n", "3", "-r", "2", "--profile")
            for row in rows:
                profile = row["profile"]
                parts, n_token = profile["nodes"], row["n_prompt"] + row["n_gen"]
                self.assertEqual(profile["passes"], row["n_gen"] or 1)
                self.assertEqual(len({p["node"] for p in parts}), len(parts))
                for name in nodes:
                    self.assertTrue(any(name in p["node"] for p in parts), (name, parts))
                self.assertEqual([p["seconds"] for p in parts], sorted((p["seconds"] for p in parts), reverse=True))
                self.assertTrue(0 < sum(p["seconds"] for p in parts) <= profile["seconds"])
                self.assertAlmostEqual(sum(p["bytes"] for p in parts) / n_token, row["bytes_per_token"], delta=1)
                operations = sum(p["operations"] for p in parts)
                self.assertAlmostEqual(1e-12 * operations / n_token * row["tokens_per_second"]["median"], row["tflops"],
                                       delta=1e-6 * row["tflops"])

    def test_files(self):
        bridge, llama = helper.model(type="q4"), helper.model("llama", type="q8")
        table = self.folder / "rows.csv"
        rows = self.bench("-m", bridge, "-m", helper.model(), "--against", llama, "-p", "16", "-n", "2", "-r", "1",
                          "--csv", table)
        self.assertEqual([r["model"] for r in rows], ["bridge.slu", "bridge.slu", "llama.slu"] * 2)
        self.assertEqual([r["type"] for r in rows[:3]], ["q4", "f32", "q8"])
        with open(table, newline="") as file:
            lines = list(csv.DictReader(file))
        self.assertEqual(len(lines), len(rows))
        for line, row in zip(lines, rows):
            self.assertEqual(line["model"], row["model"])
            self.assertEqual(float(line["tokens_per_second_median"]), row["tokens_per_second"]["median"])

    def test_what_is_stopped_keeps_its_rows(self):
        """The files are whole after every row; the last row of these would take minutes."""
        rows, table = self.folder / "rows.json", self.folder / "rows.csv"
        command = ["bench", "--synthetic", "bridge-tiny:q4", "--against", "none", "-p", "0", "-n", "1,2,1000000", "-r", "1",
                   "-t", "1", "--json", rows, "--csv", table]
        with subprocess.Popen([helper.SLUICE, *command], stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 60
            while time.monotonic() < until and not (table.exists() and table.read_text().count("\n") == 3):
                time.sleep(0.02)
            self.assertIsNone(process.poll())
            process.kill()
        self.assertEqual([row["n_gen"] for row in json.loads(rows.read_text())], [1, 2])
        with open(table, newline="") as file:
            self.assertEqual([line["n_gen"] for line in csv.DictReader(file)], ["1", "2"])
        self.assertEqual(sorted(self.folder.iterdir()), [table, rows])

    def test_parameters_are_counted(self):
        row, = self.bench("--synthetic", "transformer-tiny:f16", "-p", "0", "-n", "1", "-r", "1")
        d, f, v, layers = 256, 704, 4096, 7
        self.assertEqual(row["parameters"], v * d + layers * (4 * d * d + 3 * d * f + 2 * d) + d)


class Misuse(BenchCase):
    def test_words(self):
        for flags, text in ((["--synthetic", "bridge-9b:q4"], "bridge-9b"), (["--synthetic", "bridge-tiny:q5"], "q5"),
                            (["--synthetic", "bridge-tiny:q4:deep=2"], "2"), (["--synthetic", "bridge-tiny:q4:deep=nan"], "nan"),
                            (["--synthetic", "bridge-tiny:q4:q8"], "q8"), (["--synthetic", "bridge-tiny:"], "''"),
                            (["--synthetic", "transformer-tiny:q4:deep=1"], "transformer-tiny"), (["--synthetic"], "--synthetic"),
                            (["--synthetic", "bridge-tiny", "--against", "elephant"], "elephant"), (["-p", "1,x"], "x"),
                            (["-b", "0"], "0"), (["-r", "0"], "0"), (["-d", "-1"], "-1"), (["-t", "1,,2"], "1,,2"),
                            (["--route-threshold", "2"], "2"), (["--fast"], "--fast"), (["stray"], "stray")):
            self.assert_error(sluice("bench", *flags), 2, text)

    def test_nothing_to_measure(self):
        for flags in (["-p", "0", "-n", "0"], ["-p", "0,0", "-n", "0"]):
            self.assert_error(sluice("bench", *flags), 2, "-p and -n are both 0", "expected")

    def test_failures(self):
        tiny = ["bench", "--synthetic", "bridge-tiny", "--against", "none", "-n", "1", "-p", "0", "-r", "1"]
        self.assert_error(sluice(*tiny, "--json", self.folder / "no/x.json"), 1, "x.json")
        self.assert_error(sluice(*tiny, "--csv", self.folder), 1)
        self.assert_error(sluice("bench", "-m", self.folder / "none.slu"), 1, "none.slu")


if __name__ == "__main__":
    helper.unittest.main()
