"""LoHa and LoKr (Yeh et al. 2024, LyCORIS) as exact low-rank products, which act row by row as LoRA does.

LoHa:  ΔW = (A₁ B₁) ∘ (A₂ B₂), of rank r₁ r₂: columns of `up` are A₁ₛ ∘ A₂ₜ, rows of `down` B₁ₛ ∘ B₂ₜ.
LoKr:  ΔW = W₁ ⊗ W₂ with W₁ [a, c] and W₂ = U V of rank r: of rank c r or a r, whichever is less.

Shape legend: I in, O out, R rank of the product, k kernel.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def hadamard(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """A LoHa's `down` [R, I…] and `up` [O, R], and the rank that its alpha is divided by."""
    a1, b1, a2, b2 = (parts[f"hada_w{n}_{side}"].flatten(1).float() for n in "12" for side in "ab")
    up_OR = torch.einsum("os,ot->ost", a1, a2).flatten(1)
    down_RI = torch.einsum("si,ti->sti", b1, b2).flatten(0, 1)
    return down_RI, up_OR, b1.shape[0]


def kronecker(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int | None]:
    """A LoKr's `down` [R, I] or [R, I, k, k] and `up` [O, R], its rank; None if both factors are whole."""
    rank = next((parts[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts), None)
    w1 = _whole(parts, "1").flatten(1)
    u, v = _split(parts)
    (a, c), (b, r) = w1.shape, u.shape
    if c <= a:
        down = torch.einsum("mj,sq...->msjq...", torch.eye(c).to(v), v)
        up = torch.einsum("ij,ps->ipjs", w1, u)
    else:
        down = torch.einsum("ij,sq...->isjq...", w1, v)
        up = torch.einsum("im,ps->ipms", torch.eye(a).to(u), u)
    kernel = v.shape[2:]
    return down.reshape(min(a, c) * r, c * v.shape[1], *kernel), up.reshape(a * b, min(a, c) * r), rank


def _whole(parts: Mapping[str, Tensor], n: str) -> Tensor:
    if f"lokr_w{n}" in parts:
        return parts[f"lokr_w{n}"].float()
    return parts[f"lokr_w{n}_a"].float() @ parts[f"lokr_w{n}_b"].flatten(1).float()


def _split(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """W₂ as U [b, r] and V [r, d] or [r, d, k, k], of the least rank that is seen at once."""
    if "lokr_w2" not in parts:
        return parts["lokr_w2_a"].float(), parts["lokr_w2_b"].float()
    w2 = parts["lokr_w2"].float()
    if w2.ndim == 2 and w2.shape[1] < w2.shape[0]:
        return w2, torch.eye(w2.shape[1]).to(w2)
    return torch.eye(w2.shape[0]).to(w2), w2
