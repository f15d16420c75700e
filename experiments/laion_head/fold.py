"""Fold LAION's aesthetic predictor into one dot product, or check the shipped one against its source.

    python experiments/laion_head/fold.py sac+logos+ava1-l14-linearMSE.pth            # check
    python experiments/laion_head/fold.py sac+logos+ava1-l14-linearMSE.pth --write    # write the shipped file

The source is github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0).
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
LAYERS = (0, 2, 4, 6, 7)  # the linear ones; between them is dropout alone, which scoring leaves out
SHIPPED = Path(__file__).parents[2] / "harness" / "metrics" / "laion" / "aesthetic.safetensors"


def folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weight` [1, 768] and `bias` [1] in float64: without activations the layers are one affine map."""
    weight, bias = torch.eye(768, dtype=torch.float64), torch.zeros(768, dtype=torch.float64)
    for layer in LAYERS:
        matrix = state[f"layers.{layer}.weight"].double()
        weight, bias = matrix @ weight, matrix @ bias + state[f"layers.{layer}.bias"].double()
    return {"weight": weight.contiguous(), "bias": bias}


def main() -> None:
    """Check or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = hashlib.sha256(asked.source.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{asked.source} is another file: sha256 {found}, not {SHA256}")
    head = folded(torch.load(asked.source, map_location="cpu", weights_only=True))
    if asked.write:
        save_file(head, SHIPPED)
    shipped = load_file(SHIPPED)
    apart = max((head[name] - shipped[name]).abs().max().item() for name in head)
    print(f"‖w‖ = {shipped['weight'].norm().item():.9f}, b = {shipped['bias'].item():.8f}")
    print(f"largest difference from the source: {apart:.1e}")
    if apart > 1e-9:
        raise SystemExit("the shipped head is not this one")


if __name__ == "__main__":
    main()
