"""Hostile weight files, folders and places: each refused in one line, in time and memory."""
import json
import os
import resource
import shutil
import subprocess
import unittest
from pathlib import Path

from tests.cli.helper import sluice
from tests.cli.test_files import Files, SANITIZED, SEAL, limited, small_folder
from tests.hostile import make


class Hostile(Files):
    """All of tests/hostile/make.py."""

    def test_slu(self):
        sound = self.folder / "sound.slu"
        sluice("convert", small_folder(), sound, check=0)
        for command in (["verify", "-m"], ["info", "-m"], ["generate", "-n", "2", "-p", "a", "-m"]):
            self.assertEqual(limited(*command, sound).returncode, 0, command)
        count = 0
        for name, path, text in make.slu_files(sound, self.folder, SEAL):
            for command in (["verify", "-m"], ["info", "-m"], ["info", "--json", "-m"], ["generate", "-n", "1", "-p", "a", "-m"]):
                with self.subTest(name=name, command=command[0]):
                    self.assert_error(limited(*command, path), 1, text)
            path.unlink()
            count += 1
        self.assertGreater(count, 80)

    def test_kept(self):
        """The kept corpus: tests/hostile/kept, each file with what its line must hold."""
        kept = Path(make.__file__).parent / "kept"
        expected = json.loads((kept / "expected.json").read_text())
        self.assertEqual(set(expected), {p.name for p in kept.iterdir()} - {"expected.json"})
        for name, text in expected.items():
            with self.subTest(name=name):
                if name.endswith(".slu"):
                    for command in ("verify", "info", "generate"):
                        self.assert_error(limited(command, "-m", kept / name), 1, text)
                    continue
                made = make.Folder(small_folder(), self.folder / name)
                place = "config.json" if name.endswith(".config.json") else "model.safetensors"
                shutil.copy(kept / name, made / place)
                self.assert_error(limited("convert", made.path, self.folder / "x.slu"), 1, text)
                self.assertFalse((self.folder / "x.slu").exists())

    def test_not_a_file(self):
        os.mkfifo(self.folder / "pipe")
        (self.folder / "loop").symlink_to("loop")
        for path, text in ((self.folder, "a folder"), ("/dev/zero", "a device"), ("/dev/null", "a device"),
                           (self.folder / "pipe", "a pipe"), (self.folder / "loop", "loop"), ("/no/such.slu", "/no/such.slu"),
                           ("", "cannot open"), (small_folder() / "config.json", "not a .slu file")):
            for command in ("verify", "info", "generate"):
                with self.subTest(path=path, command=command):
                    self.assert_error(limited(command, "-m", path), 1, text)

    def test_folders(self):
        count = 0
        base = self.folder / "cases"
        base.mkdir()
        out = self.folder / "out"
        out.mkdir()
        (out / "x.slu").write_text("before")
        for name, path, text in make.folders(small_folder(), base):
            with self.subTest(name=name):
                self.assert_error(limited("convert", path, out / "x.slu"), 1, text)
                self.assertEqual([p.name for p in out.iterdir()], ["x.slu"])
                self.assertEqual((out / "x.slu").read_text(), "before")
            shutil.rmtree(path)
            count += 1
        self.assertGreater(count, 200)

    def large_folder(self):
        """With a tokenizer as large as the largest known ones: 262,144 ids, 600,000 merges."""
        made = make.Folder(small_folder(vocab_size=1 << 18), self.folder / "large")
        made.tokenizer(lambda t: make.large_tokenizer(t, 1 << 18, 600_000, 6400))
        return made

    def test_large_but_sound(self):
        folder, out = self.large_folder(), self.folder / "large.slu"
        self.assertEqual(limited("convert", folder.path, out).returncode, 0)
        for command in (["verify", "-m"], ["info", "-m"], ["info", "--json", "-m"], ["generate", "-n", "1", "-p", "a", "-m"]):
            self.assertEqual(limited(*command, out).returncode, 0, command)
        ids = sluice("tokenize", "-m", out, "-p", "<unused6399>abcab", check=0).stdout.split()
        self.assertEqual(int(ids[0]), (1 << 18) - 1)
        text = sluice("info", "-m", out, check=0).stdout.decode()
        self.assertIn("262144 ids", text)
        # and with little memory: a line that says so, or success, whichever allocation it meets
        if SANITIZED:
            return
        for mib in range(40, 400, 40):
            def little(mib=mib):
                resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
            result = sluice("info", "-m", out, preexec_fn=little, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if result.returncode:
                self.assert_error(result, 1, "out of memory")

    @unittest.skipIf(SANITIZED, "sanitizers take address space themselves")
    def test_more_threads_than_start(self):
        def little():
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        sound = self.folder / "sound.slu"
        sluice("convert", small_folder(), sound, check=0)
        run = sluice("generate", "-m", sound, "-n", "1", "-p", "a", "-t", "1024", preexec_fn=little)
        self.assert_error(run, 1, "n_thread is 1024, but the system starts only ")

    def test_large_metadata(self):
        """Up to the limits of docs/format.md."""
        sound, path = self.folder / "sound.slu", self.folder / "large.slu"
        sluice("convert", small_folder(), sound, check=0)
        for entry in (("x", 4, 0, [make.json_keys(120_000)]), ("x", 3, 0, [b"\x01" * 4_000_000]), ("x", 2, 1, [0.1] * 500_000),
                      ("x", 3, 1, ["\u00e9".encode() * 60] * 20_000), ("x", 4, 1, [b'{"a": [1, 2.5]}'] * 1000)):
            path.write_bytes(make.Slu(sound.read_bytes()).replace(*entry).data)
            subprocess.run([SEAL, path], check=True)
            for command in (["verify", "-m"], ["info", "-m"], ["info", "--json", "-m"], ["generate", "-n", "1", "-p", "a", "-m"]):
                with self.subTest(kind=entry[1], command=command):
                    self.assertEqual(limited(*command, path).returncode, 0)

    def test_all_mismatches_at_once(self):
        made = make.Folder(small_folder(), self.folder / "f")
        def change(header, data):
            header["surplus.one"] = header.pop("model.norm.weight")
            header["surplus.two"] = header.pop("model.layers.0.norm_mix.weight")
            header["model.layers.0.ssm.D"]["shape"] = [2, 4]
            return header, data
        made.edit(change)
        result = limited("convert", made.path, self.folder / "x.slu")
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        lines = result.stderr.decode().splitlines()
        self.assertEqual(len(lines), 5, lines)
        for line, words in zip(sorted(lines), (["norm_mix.weight", "missing", "[8]"], ["ssm.D", "[2, 4]", "[8]"],
                                               ["model.norm.weight", "missing"], ["surplus.one"], ["surplus.two"])):
            self.assertTrue(line.startswith("sluice: "), line)
            for word in words:
                self.assertIn(word, line)

    def test_outputs(self):
        folder = small_folder()
        good = self.folder / "good.slu"
        sluice("convert", folder, good, check=0)
        os.mkfifo(self.folder / "pipe")
        (self.folder / "sub").mkdir()
        before = self.listing()
        for path in (self.folder / "sub", str(self.folder / "new") + "/", self.folder / "none/x.slu", "/dev/null",
                     self.folder / "pipe", ""):
            with self.subTest(path=path):
                self.assert_error(limited("convert", folder, path), 1)
                self.assert_error(limited("quantize", good, path, "--type", "q8"), 1)
        for path in (good, self.folder / "sub/../good.slu"):
            self.assert_error(limited("quantize", good, path, "--type", "q8"), 1, "cannot be written too")
        for source in (self.folder / "none", good, self.folder / "pipe", "/dev/null", ""):
            self.assert_error(limited("convert", source, self.folder / "x.slu"), 1)
        for source in (self.folder / "none", folder, folder / "config.json", self.folder / "pipe"):
            self.assert_error(limited("quantize", source, self.folder / "x.slu", "--type", "q8"), 1)
        self.assertEqual(self.listing(), before)
        sluice("verify", good, check=0)

    def test_a_link_as_output_stays_a_link(self):
        (self.folder / "real.slu").write_text("old")
        (self.folder / "link.slu").symlink_to("real.slu")
        sluice("convert", small_folder(), self.folder / "link.slu", check=0)
        self.assertTrue((self.folder / "link.slu").is_symlink())
        sluice("verify", self.folder / "real.slu", check=0)

    def test_misuse(self):
        folder, out = small_folder(), self.folder / "x.slu"
        for args, text in ((["convert"], ""), (["convert", folder], ""), (["convert", folder, out, out], ""),
                           (["convert", folder, out, "--type", "q5"], "q5"), (["convert", folder, out, "--tipe"], "--tipe"),
                           (["quantize", out, out], "--type"), (["verify", "a", "-m", "b"], "-m"), (["info", "x"], "x")):
            with self.subTest(args=args):
                self.assert_error(sluice(*args), 2, text)
        self.assertEqual(self.listing(), [])


if __name__ == "__main__":
    unittest.main()
