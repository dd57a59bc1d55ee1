"""What the translation of PTX (tests/device/ptx) does not know is an error that names it."""
import os
import subprocess
import tempfile
import unittest

PTX = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ptx")
KERNEL = """.version 8.0
.target sm_90
.address_size 64
.visible .entry _Z4tiny9tiny_args(.param .align 8 .b8 _Z4tiny9tiny_args_param_0[8])
{
    .reg .b32 %%r<4>;
    .reg .b64 %%rd<3>;
    ld.param.u64 %%rd1, [_Z4tiny9tiny_args_param_0];
    %s
    ret;
}
"""
WAIT = "griddepcontrol.wait; "


def translate(instruction, before=WAIT):
    with tempfile.TemporaryDirectory() as folder:
        ptx, cpp = os.path.join(folder, "tiny.ptx"), os.path.join(folder, "tiny.cpp")
        with open(ptx, "w", encoding="utf-8") as file:
            file.write(KERNEL % (before + instruction))
        done = subprocess.run([PTX, ptx, "tiny.cu", cpp], capture_output=True, text=True)
        if done.returncode:
            return done.returncode, done.stderr
        with open(cpp, encoding="utf-8") as file:
            return 0, file.read()


class Translation(unittest.TestCase):
    def test_known(self):
        status, text = translate("st.global.u32 [%rd1+4], %r1;")
        self.assertEqual(status, 0)
        self.assertIn("(&tiny), \"tiny\"", text)

    def test_unknown(self):
        for instruction in ("sin.approx.f32 %r1, %r2;", "add.ftz.f32 %r1, %r2, %r3;", "ld.global.b128 %r1, [%rd1];",
                            "shfl.sync.bfly.b64 %r1, %r2, 1, 31, -1;", "mov.u32 %r1, %clock;", "bar.sync 1;",
                            "add.s32 %r1, %r2, %r9;", "cvt.rni.sat.s8.f32 %r1, %r2;", "red.global.add.u32 [%rd1], %r1;",
                            "fence.proxy.alias;", "prefetch.global.L1 [%rd1];", "wgmma.wait_group.sync 0;"):
            status, text = translate(instruction)
            self.assertEqual(status, 1, instruction)
            self.assertEqual(text.count("\n"), 1, text)
            self.assertIn(instruction.rstrip(";"), text)

    def test_begin(self):
        """A kernel touches no memory and does not end before it has waited for the one in front of it."""
        for instruction in ("ld.global.u32 %r1, [%rd1];", "@%p1 st.shared.u32 [%rd1], %r1;", "bra there;", "bar.sync 0;"):
            status, text = translate(".reg .pred %p1; there: " + instruction + WAIT, "")
            self.assertEqual(status, 1, instruction)
            self.assertIn(f"'{instruction.rstrip(';')}' in _Z4tiny9tiny_args: before griddepcontrol.wait", text)
        status, text = translate(".reg .pred %p1; @%p1 griddepcontrol.wait; st.global.u32 [%rd1], %r1;", "")
        self.assertEqual(status, 1)
        self.assertIn("a wait of some threads", text)
        status, text = translate("add.s32 %r1, %r2, 1;", "")
        self.assertEqual(status, 1)
        self.assertIn("'ret' in", text)
        over = ".reg .pred %p1; @%p1 bra over; prefetch.global.L2 [%rd1+128]; "
        status, text = translate(f"{over} over: {WAIT} st.global.u32 [%rd1], %r1;", "")
        self.assertEqual((status, "sl_device_prefetch(" in text), (0, True), text)
        status, text = translate(f"{over} {WAIT} over: st.global.u32 [%rd1], %r1;", "")
        self.assertEqual(status, 1)
        self.assertIn("a wait that a branch passes by", text)
        status, text = translate("griddepcontrol.launch_dependents; st.global.u32 [%rd1], %r1;")
        self.assertEqual(status, 0)
        self.assertIn("sl_device_begin();", text)


if __name__ == "__main__":
    unittest.main()
