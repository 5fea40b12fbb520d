#!/bin/bash
# torch 2.13.0 on a CPU: from one generator, a batch of 4 draws is the same as four draws only where a
# sample's numbers are a multiple of 16. The same seed gives other noise with another batch size.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu numpy==2.4.6
measure <<'PYTHON'
import torch


def share(numbers, draw):
    """Share of numbers that a batch of 4 and four single draws have in common."""
    batch = draw(4, numbers, generator=torch.Generator().manual_seed(0))
    one = torch.Generator().manual_seed(0)
    each = torch.cat([draw(1, numbers, generator=one) for _ in range(4)])
    return float((batch == each).float().mean())


found = {n: round(share(n, torch.randn), 2) for n in (7, 15, 16, 17, 32, 50, 64, 100)}
print("torch.randn, share in common by numbers a sample:", found)
print("torch.rand:", {n: round(share(n, torch.rand), 2) for n in (7, 16, 50)})
assert all((value == 1) == (n % 16 == 0) for n, value in found.items())
print(f"samples of 16 numbers are the same in a batch as alone, of 17 in {found[17]:.0%} of their numbers")
PYTHON
