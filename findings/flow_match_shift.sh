#!/bin/bash
# diffusers 0.42.1: FlowMatchEulerDiscreteScheduler(shift=3) shifts the smallest of its training
# levels too, so a grid of n steps ends far below the shifted even grid. `sigmas=` gives that one.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
measure <<'PYTHON'
import diffusers
import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

shifted = lambda t: 3 * t / (1 + 2 * t)
rows = {}
for steps in (2, 4):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    plain = scheduler.sigmas.tolist()
    even = np.linspace(1, 0, steps + 1)
    given = FlowMatchEulerDiscreteScheduler(shift=3.0)
    given.set_timesteps(sigmas=even[:-1])
    rows[steps] = plain, given.sigmas.tolist(), shifted(even).tolist()
    print(steps, "steps:", np.round(plain, 4), "with sigmas=:", np.round(rows[steps][1], 4))
print("diffusers", diffusers.__version__)
for plain, given, wanted in rows.values():
    assert np.allclose(given, wanted, atol=1e-6) and abs(plain[-2] - wanted[-2]) > 0.4
print(f"shift=3, two steps: {np.round(rows[2][0], 4).tolist()}, not {rows[2][2]}")
PYTHON
