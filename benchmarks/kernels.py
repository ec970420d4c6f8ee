"""Our Triton kernels on a GPU: are they right, how fast are they, and with which blocks.

Each is compared in bf16 with plain PyTorch in fp32 and the same dropout masks, and timed in a CUDA graph
against what a compiled step would use instead: PyTorch's flash and cuDNN attention, Inductor's normalisation.
Then other blocks, warps and stages are tried until the time is up. Times are in microseconds.

    python -m benchmarks.kernels --quick --json FILE
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import report
from benchmarks.report import Row, row, unmeasured
from trainer.dropout import keep_mask

SHAPES = ((64, 256, 6, 64, 0.2), (12, 64, 4, 32, 0.0))
"""B, T, heads, D and dropout: nanoGPT's GPU and laptop configurations."""
SECONDS = 60.0
TOLERANCE = 2e-2
"""Largest difference between bf16 and fp32, in parts of the largest value."""
SITE = 3

# What is tried, the likeliest first; see the kernels' modules for the meaning of the numbers.
ATTENTION_FORWARD = (
    (128, 64, 8, 2),
    (64, 32, 4, 3),
    (128, 64, 4, 2),
    (64, 64, 4, 3),
    (128, 32, 4, 2),
    (128, 64, 8, 3),
    (128, 32, 8, 3),
    (128, 128, 8, 2),
    (32, 32, 4, 2),
    (64, 64, 4, 1),
)
ATTENTION_BACKWARD = (
    (64, 32, 4, 1),
    (128, 32, 8, 2),
    (64, 64, 4, 1),
    (64, 64, 8, 2),
    (128, 64, 8, 1),
    (32, 32, 4, 2),
    (64, 32, 4, 3),
    (64, 64, 4, 2),
    (32, 32, 2, 2),
    (64, 16, 4, 2),
)
NORM_FORWARD = ((2, 2), (8, 4), (4, 2), (2, 4), (8, 8), (1, 1), (16, 8))
NORM_BACKWARD = (
    (4, 4, 1024),
    (2, 4, 1024),
    (2, 2, 1024),
    (8, 8, 256),
    (8, 8, 512),
    (4, 4, 264),
    (1, 1, 2048),
    (2, 2, 2048),
    (8, 4, 512),
)
MLP_FORWARD = (
    (128, 256, 64, 8, 3),
    (128, 128, 64, 8, 2),
    (64, 128, 64, 4, 3),
    (128, 64, 64, 4, 3),
    (128, 128, 64, 4, 3),
    (128, 128, 64, 8, 4),
    (128, 128, 32, 8, 4),
    (64, 256, 64, 8, 3),
    (256, 128, 64, 8, 3),
)
MLP_BACKWARD = MLP_FORWARD


def dropped(x: Tensor, noise: Tensor, site: int, p: float) -> Tensor:
    """Dropout in plain PyTorch with the masks of `trainer.dropout`."""
    return torch.where(keep_mask(x.shape, noise, site, p), x / (1.0 - p), 0.0) if p else x


def plain_attention(qkv: Tensor, heads: int, noise: Tensor, site: int, p: float) -> Tensor:
    """Causal attention (B, T, C) of qkv (B, T, 3C), step by step."""
    B, T, width = qkv.shape
    q, k, v = qkv.view(B, T, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT) / math.sqrt(q.shape[-1])
    later = torch.ones(T, T, dtype=torch.bool, device=qkv.device).triu(1)
    weights = dropped(scores.masked_fill(later, -torch.inf).softmax(-1), noise, site, p)
    out: Tensor = (weights @ v).transpose(1, 2).reshape(B, T, width // 3)
    return out


def plain_norm(h: Tensor, weight: Tensor | None, bias: Tensor | None, centred: bool) -> Tensor:
    """LayerNorm, or RMSNorm where not centred, over the last dimension; epsilon 1e-5."""
    if centred:
        return F.layer_norm(h, h.shape[-1:], weight, bias, 1e-5)
    a = F.rms_norm(h, h.shape[-1:], eps=1e-5)
    a = a if weight is None else a * weight
    return a if bias is None else a + bias


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference in parts of the largest expected value."""
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).abs().max() / expected.abs().max())


class Attention:
    """Attention at one shape."""

    def __init__(self, B: int, T: int, H: int, D: int, p: float) -> None:
        self.name, self.H, self.p = f"attention {B}x{T}x{H}x{D} p={p:g}", H, p
        self.noise = torch.tensor([1234567, 0, 1], dtype=torch.int32, device="cuda")
        self.qkv = torch.randn(B, T, 3 * H * D, device="cuda", dtype=torch.bfloat16)
        self.dout = torch.randn(B, T, H * D, device="cuda", dtype=torch.bfloat16)
        self.out, self.lse, self.keys = self.forward()

    def forward(self, launch: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        out, lse, keys = torch.ops.orch.attention_forward(self.qkv, self.H, self.noise, SITE, self.p, launch)
        return out, lse, keys

    def backward(self, launch: Sequence[int] | None = None) -> Tensor:
        gradient: Tensor = torch.ops.orch.attention_backward(
            self.dout, self.qkv, self.out, self.lse, self.keys, self.H, self.p, launch
        )
        return gradient

    def checks(self) -> list[Row]:
        torch.backends.cuda.matmul.allow_tf32 = False
        qkv = self.qkv.float().requires_grad_()
        out = plain_attention(qkv, self.H, self.noise, SITE, self.p)
        (dqkv,) = torch.autograd.grad(out, qkv, self.dout.float())
        again = self.backward()
        return [
            _error(f"{self.name} output", difference(self.out, out)),
            _error(f"{self.name} gradient", difference(again, dqkv)),
            _same_twice(f"{self.name} gradient", torch.equal(again, self.backward())),
        ]

    def times(self, rep: int) -> list[Row]:
        forward, backward = timed(self.forward, rep), timed(self.backward, rep)
        both = [f + b for f, b in zip(forward, backward, strict=True)]
        rows = []
        for name, backend in (("flash", "FLASH_ATTENTION"), ("cuDNN", "CUDNN_ATTENTION")):
            try:
                peers = self._peer(backend, rep)
            except RuntimeError as e:  # a backend that does not know the shape, or is not there
                rows.append(unmeasured(f"{self.name} against {name}", str(e)))
                continue
            rows.append(_faster(f"{self.name} forward", forward, name, peers[0]))
            rows.append(_faster(f"{self.name} forward + backward", both, name, peers[1]))
        return [row(f"{self.name} backward", backward, "us"), *rows]

    def _peer(self, backend: str, rep: int) -> tuple[list[float], list[float]]:
        """Microseconds of PyTorch's forward, and of its forward and backward, from qkv to qkv's gradient."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        B, T, _ = self.qkv.shape
        leaf = self.qkv.detach().requires_grad_()

        def forward() -> Tensor:
            q, k, v = leaf.view(B, T, 3, self.H, -1).permute(2, 0, 3, 1, 4).unbind()
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p, is_causal=True)
            return out.transpose(1, 2).reshape(B, T, -1)

        with sdpa_kernel([getattr(SDPBackend, backend)]):
            first = timed(lambda: forward().detach(), rep)
            return first, timed(lambda: torch.autograd.grad(forward(), leaf, self.dout), rep)

    def sweeps(self) -> list[tuple[str, Callable[[Sequence[int] | None], Any], Sequence[Sequence[int]]]]:
        return [
            (f"{self.name} forward", self.forward, ATTENTION_FORWARD),
            (f"{self.name} backward", self.backward, ATTENTION_BACKWARD),
        ]


class Norm:
    """Residual, dropout and LayerNorm at one shape."""

    def __init__(self, B: int, T: int, H: int, D: int, p: float) -> None:
        C = H * D
        self.name, self.p = f"norm {B}x{T}x{C} p={p:g}", p
        self.noise = torch.tensor([1234567, 0, 1], dtype=torch.int32, device="cuda")
        self.h, self.dh2 = (torch.randn(B, T, C, device="cuda") for _ in range(2))
        self.z, self.da = (torch.randn(B, T, C, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self.weight = 1 + torch.randn(C, device="cuda") / 5
        self.h2, self.a, self.mean, self.rstd = self.forward()

    def forward(self, launch: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h2, a, mean, rstd = torch.ops.orch.norm_forward(
            self.h, self.z, self.weight, None, self.noise, SITE, self.p, True, torch.bfloat16, launch
        )
        return h2, a, mean, rstd

    def backward(self, launch: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.ops.orch.norm_backward(
            self.da, self.dh2, self.h2, self.weight, self.mean, self.rstd, self.noise,
            SITE, self.p, True, True, False, launch,
        )  # fmt: skip
        return gradients

    def checks(self) -> list[Row]:
        leaves = [x.float().requires_grad_() for x in (self.h.clone(), self.z, self.weight.clone())]
        h2 = leaves[0] + dropped(leaves[1], self.noise, SITE, self.p)
        a = plain_norm(h2, leaves[2], None, True)
        expected = [h2, a, *torch.autograd.grad((h2, a), leaves, (self.dh2, self.da.float()))]
        again = self.backward()
        found = [self.h2, self.a, *again[:3]]
        names = ("stream", "output", "gradient of h", "gradient of z", "gradient of weight")
        same = all(torch.equal(x, y) for x, y in zip(again, self.backward(), strict=True))
        return [
            *(
                _error(f"{self.name} {name}", difference(x, y))
                for name, x, y in zip(names, found, expected, strict=True)
            ),
            _same_twice(f"{self.name} gradient", same),
        ]

    def times(self, rep: int) -> list[Row]:
        forward, backward = timed(self.forward, rep), timed(self.backward, rep)
        both = [f + b for f, b in zip(forward, backward, strict=True)]
        h, z, weight = (x.detach().clone().requires_grad_() for x in (self.h, self.z, self.weight))

        @torch.compile(fullgraph=True, dynamic=False)
        def peer(h: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            h2 = h + F.dropout(z, self.p)
            return h2, F.layer_norm(h2, weight.shape, weight, None, 1e-5).bfloat16()

        first = timed(lambda: [x.detach() for x in peer(h, z, weight)], rep)
        whole = timed(
            lambda: torch.autograd.grad(peer(h, z, weight), (h, z, weight), (self.dh2, self.da)), rep
        )
        return [
            row(f"{self.name} backward", backward, "us"),
            _faster(f"{self.name} forward", forward, "Inductor", first),
            _faster(f"{self.name} forward + backward", both, "Inductor", whole),
        ]

    def sweeps(self) -> list[tuple[str, Callable[[Sequence[int] | None], Any], Sequence[Sequence[int]]]]:
        return [
            (f"{self.name} forward", self.forward, NORM_FORWARD),
            (f"{self.name} backward", self.backward, NORM_BACKWARD),
        ]


class MLP:
    """The matrix before the activation with it, and the gradient back to there, at one shape."""

    def __init__(self, B: int, T: int, H: int, D: int, p: float) -> None:
        C = H * D
        self.name = f"mlp {B * T}x{C}x{4 * C}"
        self.x, self.dz = (torch.randn(B * T, C, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        weights = torch.randn(2, 4 * C * C, device="cuda", dtype=torch.bfloat16) / C**0.5
        self.first, self.second = weights[0].view(4 * C, C), weights[1].view(C, 4 * C)
        self.pre, self.u = self.forward()

    def forward(self, launch: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        pre, u = torch.ops.orch.mlp_forward(self.x, self.first, False, launch)
        return pre, u

    def backward(self, launch: Sequence[int] | None = None) -> Tensor:
        dpre: Tensor = torch.ops.orch.mlp_backward(self.dz, self.second, self.pre, False, launch)
        return dpre

    def checks(self) -> list[Row]:
        pre = (self.x.float() @ self.first.float().T).requires_grad_()
        u = F.gelu(pre)
        (dpre,) = torch.autograd.grad(u, pre, self.dz.float() @ self.second.float())
        pairs = zip((self.pre, self.u, self.backward()), (pre, u, dpre), strict=True)
        names = ("before the activation", "after it", "gradient")
        return [
            _error(f"{self.name} {name}", difference(x, y)) for name, (x, y) in zip(names, pairs, strict=True)
        ]

    def times(self, rep: int) -> list[Row]:
        @torch.compile(fullgraph=True, dynamic=False)
        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            pre = F.linear(x, self.first)
            return pre, F.gelu(pre)

        @torch.compile(fullgraph=True, dynamic=False)
        def backward(dz: Tensor, pre: Tensor) -> Tensor:
            dpre: Tensor = torch.ops.aten.gelu_backward(dz @ self.second, pre)
            return dpre

        return [
            _faster(
                f"{self.name} forward",
                timed(self.forward, rep),
                "Inductor",
                timed(lambda: forward(self.x), rep),
            ),
            _faster(
                f"{self.name} backward",
                timed(self.backward, rep),
                "Inductor",
                timed(lambda: backward(self.dz, self.pre), rep),
            ),
        ]

    def sweeps(self) -> list[tuple[str, Callable[[Sequence[int] | None], Any], Sequence[Sequence[int]]]]:
        return [
            (f"{self.name} forward", self.forward, MLP_FORWARD),
            (f"{self.name} backward", self.backward, MLP_BACKWARD),
        ]


def timed(call: Callable[[], Any], rep: int) -> list[float]:
    """Microseconds of a call, ten values: each the mean of as many calls in a CUDA graph as take `rep` ms."""
    from triton.testing import do_bench_cudagraph

    call()
    return [1000.0 * ms for ms in do_bench_cudagraph(call, rep=rep, return_mode="all")]


def _error(name: str, value: float) -> Row:
    return row(f"{name}: error", [value], "", limit=TOLERANCE)


def _same_twice(name: str, same: bool) -> Row:
    return row(f"{name}: same bits twice", [float(same)], "", limit=1.0, at_most=False)


def _faster(name: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Row:
    return row(f"{name} / {peer}", ours, "us", peer=peer, peer_values=theirs, limit=1.0, of="ratio")


def swept(
    name: str,
    call: Callable[[Sequence[int] | None], Any],
    candidates: Sequence[Sequence[int]],
    rep: int,
    until: float,
) -> tuple[Row, dict[str, Any]]:
    """The best of the default and the candidates, and all times; those not tried by `until` are named."""
    tried: dict[str, Any] = {"default": min(timed(lambda: call(None), rep))}
    for candidate in candidates:
        key = ", ".join(map(str, candidate))
        if time.monotonic() > until:
            tried[key] = "no time"
            continue
        try:
            tried[key] = min(timed(lambda c=list(candidate): call(c), rep))  # type: ignore[misc]
        except _too_large() as e:
            tried[key] = str(e)
    times = {key: value for key, value in tried.items() if isinstance(value, float)}
    best = min(times, key=lambda key: times[key])
    print(f"{name}: best {best}; " + "; ".join(f"{k}: {v:.1f} us" for k, v in times.items()), flush=True)
    return row(f"{name}: best of {len(times)} is {best}", [times[best]], "us"), tried


def _too_large() -> type[Exception]:
    from triton.runtime.errors import OutOfResources

    error: type[Exception] = OutOfResources
    return error


def main() -> None:
    """Measure and report; exit status 1 where a result is wrong."""
    options = report.parser(__doc__ or "")
    options.add_argument(
        "--seconds", type=float, default=SECONDS, help="no new candidate is tried after this"
    )
    args: argparse.Namespace = options.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/kernels.py needs a GPU")
    import trainer.kernels  # noqa: F401  (defines the operators; needs triton)

    until = time.monotonic() + args.seconds
    rep = 5 if args.quick else 20
    cases = [kind(*shape) for shape in SHAPES for kind in (Attention, Norm, MLP)]
    rows = [r for case in cases for r in case.checks()]
    wrong = any(r.met is False for r in rows)
    details: dict[str, Any] = {}
    for case in cases:
        rows += case.times(rep)
        if args.json is not None:
            report.write(rows, args.json, {"sweeps": details})
    for case in cases:
        for name, call, candidates in case.sweeps():
            found, details[name] = swept(name, call, candidates[: 5 if args.quick else None], rep, until)
            rows.append(found)
    report.report(rows, args.json, {"sweeps": details})
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
