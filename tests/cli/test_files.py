"""convert, quantize, info, verify: round trips, every changed byte found, and what a killed conversion leaves."""
import json
import os
import resource
import signal
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

from tests.cli.helper import Case, SLUICE, checkpoint, has_nameless_files, model, scratch, sluice, writes_in
from tests.hostile import make

SEAL = os.environ.get("SL_SEAL", str(Path(SLUICE).parent / "tests/hostile/sl_seal"))
SANITIZED = os.environ.get("SL_SANITIZED", "") not in ("", "0", "OFF")
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "head_dim": 4, "state_size": 2, "n_groups": 1, "gate_block": 4,
         "intermediate_size": 8, "conv_kernel": 4, "rms_norm_eps": 1e-5, "router_threshold": 0.5}


def small_folder(**changes):
    return checkpoint("bridge", True, 1, **{**SMALL, "routed_layers": (0,), **changes})


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))


def limited(*args):
    """Within 5 s of processor time and 1 GiB of address space (a sanitizer needs more of both)."""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    if SANITIZED:
        return sluice(*args, timeout=60, env=env)
    return sluice(*args, timeout=60, preexec_fn=limits, env=env)


class Files(Case):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(dir=scratch()))

    def listing(self):
        return sorted(p.name for p in self.folder.iterdir())


class RoundTrip(Files):
    def info(self, path):
        return json.loads(sluice("info", "-m", path, "--json", check=0).stdout)

    def test_convert_keeps_config_and_weights(self):
        out = self.folder / "out.slu"
        folder = small_folder()
        self.assertEqual(sluice("convert", folder, out, check=0).stdout, b"")
        info = self.info(out)
        self.assertEqual(set(info), {"metadata", "tensors"})
        config = json.loads((folder / "config.json").read_text())
        for key, value in config.items():
            self.assertEqual(info["metadata"][key], value, key)
        self.assertRegex(info["metadata"]["tokenizer"], r"^<\d+ bytes>$")
        self.assertIn("im_start", info["metadata"]["chat_template"])
        header, data = make.read_safetensors(folder / "model.safetensors")
        raw = out.read_bytes()
        self.assertEqual({t["name"] for t in info["tensors"]}, set(header))
        for t in info["tensors"]:
            self.assertEqual(set(t), {"name", "type", "shape", "offset", "bytes", "checksum"})
            begin, end = header[t["name"]]["data_offsets"]
            self.assertEqual(t["shape"], header[t["name"]]["shape"])
            self.assertEqual(raw[t["offset"]:t["offset"] + t["bytes"]], data[begin:end], t["name"])
        self.assertRegex(sluice("verify", out, check=0).stdout, rb"^OK: [^\n]*\n$")
        self.assertEqual(sluice("verify", "-m", out, check=0).stderr, b"")

    def test_a_file_is_the_same_every_time(self):
        for name in ("a", "b"):
            sluice("convert", small_folder(), self.folder / name, check=0)
        self.assertEqual((self.folder / "a").read_bytes(), (self.folder / "b").read_bytes())
        self.assertEqual(self.listing(), ["a", "b"])

    def test_shards_give_the_same_file(self):
        sharded = make.Folder(small_folder(), self.folder / "sharded")
        sharded.shards()
        sluice("convert", small_folder(), self.folder / "a", check=0)
        sluice("convert", sharded.path, self.folder / "b", check=0)
        self.assertEqual((self.folder / "a").read_bytes(), (self.folder / "b").read_bytes())

    def test_types(self):
        source = model("bridge")
        sizes = []
        for kind in ("f32", "f16", "bf16", "q8", "q4"):
            out, again = self.folder / f"{kind}.slu", self.folder / f"{kind}-again.slu"
            sluice("quantize", source, out, "--type", kind, check=0)
            sluice("convert", checkpoint("bridge"), again, "--type", kind, check=0)
            sluice("verify", out, check=0)
            self.assertEqual(out.read_bytes(), again.read_bytes(), kind)
            info = self.info(out)
            self.assertEqual(info["metadata"]["sluice.type"], kind)
            types = {t["name"]: t["type"] for t in info["tensors"]}
            self.assertEqual(types["model.layers.0.mlp.up.weight"], kind)
            self.assertEqual(types["model.layers.0.norm_mix.weight"], "f32")
            sizes.append(sum(t["bytes"] for t in info["tensors"]))
            sluice("quantize", out, self.folder / "back.slu", "--type", "f32", check=0)
            sluice("verify", self.folder / "back.slu", check=0)
        self.assertTrue(all(size < sizes[0] for size in sizes[1:]), sizes)

    def test_default_type_is_the_checkpoints(self):
        for dtype, kind in (("F32", "f32"), ("F16", "f16"), ("BF16", "bf16")):
            made = make.Folder(small_folder(), self.folder / dtype)
            def change(header, data):
                out, body = {}, b""
                for name, t in header.items():
                    values = struct.unpack(f"<{(t['data_offsets'][1] - t['data_offsets'][0]) // 4}f",
                                           data[t["data_offsets"][0]:t["data_offsets"][1]])
                    part = (b"".join(struct.pack("<f", v)[2:] for v in values) if dtype == "BF16"
                            else struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values))
                    out[name] = {**t, "dtype": dtype, "data_offsets": [len(body), len(body) + len(part)]}
                    body += part
                return out, body
            made.edit(change)
            sluice("convert", made.path, self.folder / "out.slu", check=0)
            self.assertEqual(self.info(self.folder / "out.slu")["metadata"]["sluice.type"], kind)

    def test_values_that_do_not_fit_a_type(self):
        made = make.Folder(small_folder(), self.folder / "big")
        name = "model.layers.0.out.weight"
        def change(header, data):
            at = header[name]["data_offsets"][0]
            return header, data[:at] + struct.pack("<f", 1e6) + data[at + 4:]
        made.edit(change)
        out = self.folder / "out.slu"
        for kind in ("f16", "q8", "q4"):
            self.assert_error(sluice("convert", made.path, out, "--type", kind), 1, name, "1e+06", kind)
        sluice("convert", made.path, out, "--type", "bf16", check=0)

    def test_without_tokenizer(self):
        out = self.folder / "out.slu"
        sluice("convert", small_folder(), out, "--no-tokenizer", check=0)
        self.assertNotIn("tokenizer", self.info(out)["metadata"])
        bare = checkpoint("bridge", False, 1, **{**SMALL, "routed_layers": (0,)})
        sluice("convert", bare, out, check=0)
        self.assertNotIn("tokenizer", self.info(out)["metadata"])
        (self.folder / "f").mkdir()
        other = make.Folder(bare, self.folder / "f/other")
        other.text("tokenizer.model", "x")
        self.assert_error(sluice("convert", other.path, out), 1, "tokenizer.model", "--no-tokenizer")
        sluice("convert", other.path, out, "--no-tokenizer", check=0)

    def test_llama_extras_are_dropped(self):
        made = make.Folder(checkpoint("llama"), self.folder / "llama")
        def change(header, data):
            n = len(data)
            embed = header["model.embed_tokens.weight"]["data_offsets"]
            header["lm_head.weight"] = {**header["model.embed_tokens.weight"], "data_offsets": [n, n + embed[1] - embed[0]]}
            n += embed[1] - embed[0]
            header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"dtype": "F32", "shape": [4], "data_offsets": [n, n + 16]}
            return header, data + bytes(embed[1] - embed[0] + 16)
        made.edit(change)
        sluice("convert", made.path, self.folder / "out.slu", check=0)
        names = {t["name"] for t in self.info(self.folder / "out.slu")["tensors"]}
        self.assertNotIn("lm_head.weight", names)

    def test_nested_config(self):
        made = make.Folder(checkpoint("llama"), self.folder / "llama")
        made.config(rope_scaling={"rope_type": "linear", "factor": 2.0}, unknown={"a": [1, "x"]}, mixed=[1, 2.5])
        sluice("convert", made.path, self.folder / "out.slu", check=0)
        metadata = self.info(self.folder / "out.slu")["metadata"]
        self.assertEqual(metadata["rope_scaling"], {"rope_type": "linear", "factor": 2.0})
        self.assertEqual(metadata["mixed"], [1, 2.5])
        made.config(rope_scaling={"rope_type": "magic", "factor": 2.0})
        self.assert_error(sluice("convert", made.path, self.folder / "x.slu"), 1, "magic")

    def test_broken_rope_scaling(self):
        """Refused by name: a model must not run without the scaling that it was trained with."""
        llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 64}
        whole = {"linear": {"factor": 2.0}, "yarn": {"factor": 2.0}, "llama3": llama3}
        made = make.Folder(checkpoint("llama"), self.folder / "llama")
        cases = [(value, "is not an object") for value in ("linear", 2.0, True, [1, 2], [{"type": "linear"}, 1], [])]
        cases += [({"factor": 2.0}, "rope_type"), ({"type": None, "factor": 2.0}, "rope_type"), ({"type": 1}, ".type")]
        cases += [({"full_attention": llama3}, "rope_type"), ({"type": "dynamic", "factor": 2.0}, "dynamic")]
        cases += [({**values, "rope_type": kind, key: bad}, key) for kind, values in whole.items() for key in values
                  for bad in (None, "2", [2.0]) if key != "rope_type"]
        for place in ("rope_scaling", "rope_parameters"):
            for value, text in cases:
                with self.subTest(place=place, value=value):
                    made.config(**{"rope_scaling": None, "rope_parameters": None, place: value})
                    self.assert_error(sluice("convert", made.path, self.folder / "x.slu"), 1, place, text)
            for value in (None, {}, {"rope_theta": 1e4}, {"rope_type": "default", "rope_theta": 1e4}, llama3,
                          {"type": "linear", "factor": 2.0, "rope_theta": 1e4}, {"rope_type": "yarn", "factor": 2.0}):
                with self.subTest(place=place, value=value):
                    made.config(**{"rope_scaling": None, "rope_parameters": None, place: value})
                    sluice("convert", made.path, self.folder / "out.slu", check=0)
        made.config(max_position_embeddings=None, rope_scaling={"rope_type": "yarn", "factor": 2.0})
        made.config(rope_parameters=None)
        self.assert_error(sluice("convert", made.path, self.folder / "x.slu"), 1, "original_max_position_embeddings")
        made.config(rope_parameters={"rope_type": "default"})
        self.assert_error(sluice("convert", made.path, self.folder / "x.slu"), 1, "rope_scaling", "default")

    def test_info_text(self):
        text = sluice("info", "-m", model("bridge"), check=0).stdout.decode()
        for word in ("architecture", "bridge", "parameters", "state", "no limit", "tokenizer", "ChatML", "processor"):
            self.assertIn(word, text)
        text = sluice("info", "-m", model("llama", text=False), check=0).stdout.decode()
        self.assertIn("96 tokens", text)

    def test_generation_config(self):
        made = make.Folder(small_folder(eos_token_id=None), self.folder / "g")
        made.text("generation_config.json", '{"eos_token_id": [1, 2], "temperature": 0.5}')
        sluice("convert", made.path, self.folder / "out.slu", check=0)
        self.assertEqual(self.info(self.folder / "out.slu")["metadata"]["eos_token_id"], [1, 2])
        self.assertNotIn("temperature", self.info(self.folder / "out.slu")["metadata"])


class Damage(Files):
    """Every changed byte is found."""

    def setUp(self):
        super().setUp()
        self.path = self.folder / "x.slu"
        sluice("convert", small_folder(), self.path, "--no-tokenizer", check=0)
        self.data = bytearray(self.path.read_bytes())

    def flip(self, at):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(bytes([self.data[at] ^ (1 << at % 8)]))
        result = limited("verify", "-m", self.path)
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(self.data[at:at + 1])
        return result

    def test_header(self):
        end = make.Slu(self.data).data_at
        for at in range(0, end, 7):
            with self.subTest(at=at):
                self.assert_error(self.flip(at), 1)
        self.assertEqual(limited("verify", self.path).returncode, 0)

    def test_data_and_padding(self):
        for at in range(make.Slu(self.data).data_at, len(self.data), 509):
            with self.subTest(at=at):
                self.assert_error(self.flip(at), 1, "tensor")


class Killed(Files):
    def big_folder(self):
        """Large enough that converting takes a while."""
        return checkpoint("bridge", False, 1, vocab_size=20000, hidden_size=64, head_dim=8)

    def start(self, out):
        """A conversion that has its output open, with a temporary name or without one."""
        process = subprocess.Popen([SLUICE, "convert", self.big_folder(), out, "--type", "q4"], stderr=subprocess.PIPE)
        writes_in(process, out.parent)
        return process

    def test_kill_leaves_no_file(self):
        out = self.folder / "x.slu"
        process = self.start(out)
        process.kill()
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertFalse(out.exists())
        if has_nameless_files(self.folder):
            self.assertEqual(self.listing(), [])

    def test_kill_leaves_the_old_file(self):
        out = self.folder / "x.slu"
        out.write_text("before")
        process = self.start(out)
        process.kill()
        process.communicate()
        self.assertEqual(out.read_text(), "before")
        if has_nameless_files(self.folder):
            self.assertEqual(self.listing(), ["x.slu"])

    def test_interrupt_cleans_up(self):
        out = self.folder / "x.slu"
        out.write_text("before")
        process = self.start(out)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
        self.assertEqual(process.returncode, 130)
        self.assert_error_line(errors, "interrupted")
        self.assertEqual(self.listing(), ["x.slu"])
        self.assertEqual(out.read_text(), "before")


if __name__ == "__main__":
    unittest.main()
