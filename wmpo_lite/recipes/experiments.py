"""What the ledger is made of: every experiment, its cells, and what a cell costs."""

from dataclasses import dataclass, field
from itertools import product

from wmpo_lite.report.ledger import Key

METHODS = ("base", "wmpo", "dpo", "grpo")  # in the order in which they are worth running
FIVE = ("place", "square", "stack_three", "three_piece_assembly", "coffee")
STRENGTHS = {1: 0.3, 2: 0.6, 3: 1.0}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Experiment:
    """Cells: tasks x methods x budgets x seeds x variants. kind: `run` (a demo gives its four
    methods), `round` (a demo that goes on from the one before), `oracle` (GRPO in the simulator),
    `try` (trained policies tried out in another world).

    variants: by name what is changed: settings of the run, which round it is, or the world in which
    policies act.
    n: evaluation states, from number 1000 on.
    """

    kind: str
    claim: str
    tasks: tuple = FIVE
    methods: tuple = METHODS
    budgets: tuple = (128,)
    seeds: tuple = SEEDS
    variants: dict = field(default_factory=lambda: {"": {}})
    n: int = 1024


def disturbances() -> dict:
    """Position in meters, the looks as strengths in [0, 1] (`envs.tabletop.env.Disturbance`)."""
    kinds = {
        "position": lambda s: {"object_shift": 0.04 * s, "target_shift": 0.04 * s},
        "background": lambda s: {"background": s},
        "texture": lambda s: {"texture": s},
        "light": lambda s: {"lighting": s},
    }
    return {
        f"{kind}-{level}": {"disturbance": change(strength)}
        for level, strength in sorted(STRENGTHS.items(), key=lambda item: abs(item[0] - 2))
        for kind, change in kinds.items()
    }


EXPERIMENTS = {
    "table_1": Experiment("run", "WMPO ends above both baselines", budgets=(128, 1280)),
    "oracle": Experiment(
        "oracle", "what a perfect world model would give", methods=("oracle",), budgets=(0,)
    ),
    "efficiency": Experiment(
        "run",
        "WMPO needs fewer real rollouts",
        tasks=FIVE[:2],
        methods=METHODS[1:],
        budgets=(32, 64, 256, 512),  # 128 and 1280 are table 1's
    ),
    # base: the policy that the round begins with, WMPO's of the one before
    "lifelong": Experiment(
        "round",
        "WMPO keeps learning over rounds",
        tasks=FIVE[:1],
        variants={"round-2": {"round": 2}, "round-3": {"round": 3}},
    ),
    "self_correction": Experiment(
        "try",
        "WMPO's policy recovers from errors",
        tasks=FIVE[:2],
        budgets=(128, 1280),
        variants={
            error: {"error": error} for error in ("collision", "slip", "offset", "early_closing")
        },
        n=512,
    ),
    "table_2": Experiment(
        "try",
        "WMPO's policy holds in a changed scene",
        tasks=FIVE[:2],
        variants=disturbances(),
        n=512,
    ),
    "ablations": Experiment(
        "run",
        "each part matters to the policy",
        tasks=FIVE[:1],
        methods=("wmpo",),
        variants={
            "no_alignment": {"align_steps": 1},
            "sampler_steps-4": {"num_inference_steps": 4},
            "reward_every_frame": {"reward_stride": 1},
            "one_window_is_success": {"min_consecutive": 1},
        },
    ),
}

# Why a task's cells are not run unless they are named: the sentence that --dry-run prints.
WAITING = {
    "square": "its world model misleads: few imagined successes come true, and WMPO loses",
    **dict.fromkeys(FIVE[2:], "the task is not in the kit yet"),
}
NOT_CELLS = {
    "context noise, pooled actions": "each needs a world model of its own, pre-trained anew",
    "ratio by chunk, reward threshold": "the main job has no setting for them",
    "DPO in rounds of its own, cloning with 128 more demonstrations a round": "a round begins with"
    " WMPO's policy; its DPO and online GRPO begin there, too",
}
# Seconds of the shipped run of `place` (P = 128, 1,024 evaluation states), on two busy cores: twice
# that is the most that it can have computed. (seconds, with which power of P they grow)
STAGES = {
    "rollouts": (46, 1),
    "align": (399, 1),
    "reward": (218, 0.5),
    "trust": (239, 0),
    "wmpo": (1452, 0),
    "grpo": (16, 1),
    "dpo": (33, 1),
}
OF_METHOD = {
    "base": (),
    "grpo": ("grpo",),
    "dpo": ("dpo",),
    "wmpo": ("rollouts", "align", "reward", "trust", "wmpo"),
}
EVALUATION = 0.13  # seconds a state of `square`, the slower task
ORACLE_ITERATIONS = 40
# of 16 groups of 16 in the simulator, and an update of about 20 seconds after each
ORACLE = ORACLE_ITERATIONS * (256 * EVALUATION + 20)


def keys(name: str) -> list[Key]:
    """The cells of an experiment in the order in which they are worth running. The base policy has
    learned from no rollout: it is one cell, whatever the seeds and budgets (but for rounds).
    """
    e = EXPERIMENTS[name]
    alone = lambda method: method == "base" and e.kind != "round"
    found = [
        Key(name, task, method, *((0, 0) if alone(method) else (budget, seed)), variant)
        for task, budget, seed, method, variant in product(
            e.tasks, e.budgets, e.seeds, e.methods, e.variants
        )
    ]
    return list(dict.fromkeys(found))


def cost(key: Key) -> float:
    """Core-hours of a cell, at most, from what the shipped run of `place` took."""
    e = EXPERIMENTS[key.experiment]
    seconds = e.n * EVALUATION
    if e.kind == "oracle":
        seconds += ORACLE
    elif e.kind != "try":
        for stage in OF_METHOD[key.method]:
            took, power = STAGES[stage]
            # below 128 no stage is fitted for fewer steps (`profiles.for_budget`)
            rollouts = key.rollout_budget * e.variants[key.variant].get("round", 1)
            seconds += took * max(1.0, rollouts / 128) ** power
        if (steps := e.variants[key.variant].get("num_inference_steps")) is not None:
            seconds += (steps - 1) * STAGES["wmpo"][0] / 2  # about half is the denoiser's
    return 2 * seconds / 3600
