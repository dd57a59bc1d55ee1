"""Matrix products of bf16 tensors, and autograd wrappers of ops.cpp, compiled on first use (g++ and ninja)."""
import os
from pathlib import Path

import torch
from torch.autograd import Function
from torch.utils.cpp_extension import load

FLAGS = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-std=c++20", "-mprefer-vector-width=512"]
cpp = load("sluice_train_ops", [str(Path(__file__).with_name("ops.cpp"))], extra_cflags=FLAGS,
           verbose=bool(os.environ.get("VERBOSE")))
# Without instructions for bf16 PyTorch multiplies such matrices one value at a time, 30 times slower than in f32.
BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(function, *tensors):
    """function (a matrix product) of bf16 tensors, in f32 where the processor has none for bf16."""
    return function(*tensors) if BF16 else function(*(t.float() for t in tensors)).bfloat16()


class Norm(Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        y, rstd = cpp.norm_fwd(x, w, eps)
        ctx.save_for_backward(x, w, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        return *cpp.norm_bwd(dy.contiguous(), *ctx.saved_tensors), None


class SwiGlu(Function):
    @staticmethod
    def forward(ctx, gate, value):
        ctx.save_for_backward(gate, value)
        return cpp.swiglu_fwd(gate, value)

    @staticmethod
    def backward(ctx, dy):
        return tuple(cpp.swiglu_bwd(dy.contiguous(), *ctx.saved_tensors))


class HeadLoss(Function):
    """Mean cross-entropy of x [n, d] through the head [V, d], both bf16. The logits become their own gradient."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        logits = product(torch.matmul, x, weight.T)
        losses = cpp.cross_entropy_(logits, targets)
        ctx.save_for_backward(x, weight, logits)
        return losses.mean()

    @staticmethod
    def backward(ctx, scale):
        x, weight, dlogits = ctx.saved_tensors
        scale = scale.bfloat16()
        return product(torch.matmul, dlogits, weight) * scale, product(torch.matmul, dlogits.T, x) * scale, None


class CausalAttention(Function):
    """q, k, v [heads, T, P] bf16. On these CPUs plain products with a fused softmax beat the flash kernel; blocks of
    queries spare most of the products above the diagonal."""

    BLOCK = 128

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.scale, weights, out = q.shape[-1] ** -0.5, [], []
        for block in q.split(CausalAttention.BLOCK, 1):
            seen = sum(w.shape[1] for w in weights) + block.shape[1]
            w = product(torch.bmm, block, k[:, :seen].transpose(1, 2))
            cpp.causal_softmax_(w, ctx.scale)
            weights.append(w)
            out.append(product(torch.bmm, w, v[:, :seen]))
        ctx.save_for_backward(q, k, v, *weights)
        return torch.cat(out, 1)

    @staticmethod
    def backward(ctx, dy):
        q, k, v, *weights = ctx.saved_tensors
        dq, dk, dv = [], torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        blocks = zip(weights, q.split(CausalAttention.BLOCK, 1), dy.split(CausalAttention.BLOCK, 1))
        for w, block, dout in blocks:
            seen = w.shape[2]
            dscores = product(torch.bmm, dout, v[:, :seen].transpose(1, 2))
            cpp.causal_softmax_bwd_(dscores, w, ctx.scale)
            dq.append(product(torch.bmm, dscores, k[:, :seen]))
            dk[:, :seen] += product(torch.bmm, dscores.transpose(1, 2), block)
            dv[:, :seen] += product(torch.bmm, w.transpose(1, 2), dout)
        return torch.cat(dq, 1), dk.bfloat16(), dv.bfloat16()


class Convolution(Function):
    """p, v [B, T, e] bf16; kernel [k, e]; returns s."""

    @staticmethod
    def forward(ctx, p, v, kernel, bias, norm, head, eps):
        ctx.save_for_backward(p, v, kernel, bias, norm)
        ctx.extra = head, eps
        return cpp.conv_fwd(p, v, kernel, bias, norm, head, eps)

    @staticmethod
    def backward(ctx, ds):
        return *cpp.conv_bwd(ds.contiguous(), *ctx.saved_tensors, *ctx.extra), None, None


class BridgeMix(Function):
    """Returns o (bf16) and the bridge's states h (f32)."""

    @staticmethod
    def forward(ctx, s, gates, q, m, params):
        o, h = cpp.bridge_fwd(s, gates, q, m, params)
        ctx.save_for_backward(s, gates, q, m, h, params)
        ctx.set_materialize_grads(False)
        return o, h

    @staticmethod
    def backward(ctx, d_o, d_h):
        s, gates, q, m, h, params = ctx.saved_tensors
        d_o = torch.zeros_like(s) if d_o is None else d_o.contiguous()
        d_h = torch.empty(0) if d_h is None else d_h.contiguous()
        return tuple(cpp.bridge_bwd(d_o, d_h, s, gates, q, m, h, params))


class S6(Function):
    """rho * m, dense [n, e], from the deep tokens' projections; see ops.cpp for the arguments."""

    @staticmethod
    def forward(ctx, projected, s, rho, where, first, rate, dt_bias, D, norm, groups, eps):
        m, y, starts = cpp.s6_fwd(projected, s, rho, where, first, rate, dt_bias, D, norm, groups, eps)
        ctx.save_for_backward(projected, s, rho, where, first, rate, dt_bias, D, norm, y, starts)
        ctx.extra = groups, eps
        return m

    @staticmethod
    def backward(ctx, dm):
        dprojected, ds, drho, drate, ddt, dD, dnorm = cpp.s6_bwd(dm.contiguous(), *ctx.saved_tensors, *ctx.extra)
        return dprojected, ds, drho, None, None, drate, ddt, dD, dnorm, None, None
