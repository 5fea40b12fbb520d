"""The same rewards and the same tokens through six programs: what the functions of five others gave
(tests/golden/grpo_peers.json, made by the script beside it), and what this kit's give.
"""

import importlib.util
import json
from pathlib import Path

import torch

from wmpo_lite.grpo import group_advantages, policy_loss
from wmpo_lite.report.markdown import markdown

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
# Name, key in the file, setting: its default, and of RLinf its chunk level.
PROGRAMS = (
    ("TRL", "trl", "loss_type=dapo"),
    ("verl", "verl", "loss_agg_mode=token-mean, clip_ratio_c=3"),
    ("OpenRLHF, group_norm", "openrlhf", "token_level_loss=True"),
    ("RLinf, embodied", "rlinf", "chunk level"),
    ("WMPO's public code", "wmpo", "one trajectory at a time"),
)
COLUMNS = ("one success of four", "half of eight", "eight equal 0.7")


def table() -> str:
    """A Markdown table: what a success gets in two groups, what each of eight equal rewards gets,
    and the loss of 144 random tokens of six trajectories, each program at its own setting.
    """
    spec = importlib.util.spec_from_file_location("made", GOLDEN / "make_grpo_peers.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    peers, given = json.loads((GOLDEN / "grpo_peers.json").read_text()), made.inputs()
    header = "program|one success of four|four of eight|eight equal 0.7|same tokens' loss"
    rows = []
    for name, key, setting in PROGRAMS:
        found = peers[key]
        gets = [found["advantages"][rewards][0] for rewards in COLUMNS]
        loss = found["losses"][setting]["loss"]
        rows.append(_row(f"{name} {found['version']}", gets, f"{loss:.4f} ({setting})"))
    for std in ("population", "unbiased"):
        groups = [torch.tensor([made.REWARDS[rewards]]) for rewards in COLUMNS]
        gets = [float(group_advantages(group, std)[0, 0]) for group in groups]
        loss, _ = policy_loss(
            *(given[k] for k in ("new", "old", "advantages", "mask")), made.CLIP_LOW, made.CLIP_HIGH
        )
        rows.append(_row(f"this kit, std={std}", gets, f"{float(loss):.4f} (trajectory)"))
    return markdown(header.split("|"), rows)


def _row(name: str, gets: list, loss: str) -> list[str]:
    return [name, *(f"{value:.4f}" for value in gets), loss]
