"""`wmpo-lite plan`: parameters, memory, FLOP and time of every stage, before anything is run.

Each model, of fake tensors that have shapes and no memory, does what a stage does to one window,
clip, frame or chunk, and PyTorch's counter adds up its matrix products and convolutions. The rest
is multiplication. Left out: simulation, trust panel, baselines, reading and writing.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from wmpo_lite.autoencoder import Autoencoder, AutoencoderConfig
from wmpo_lite.common.errors import UserError, require_between
from wmpo_lite.policy import ActionStatistics, Policy, PolicyConfig
from wmpo_lite.recipes.pretrain import POLICIES, PRETRAINING
from wmpo_lite.recipes.profiles import PROFILES, paper_models
from wmpo_lite.reward import RewardConfig, RewardModel
from wmpo_lite.world_model import WorldModel, WorldModelConfig

TEXT = "put the red cube on the plate"


@dataclass(frozen=True)
class Sizes:
    """All that the work of a run depends on; steps are optimizer steps. The defaults are the
    paper's; horizon, steps, iterations and the smaller batches it does not state: assumed.
    """

    autoencoder: AutoencoderConfig
    world_model: WorldModelConfig
    reward: RewardConfig
    policy: PolicyConfig
    horizon: int = 256  # control steps of an episode
    rollout_budget: int = 128  # P
    autoencoder_steps: int = 0  # it comes trained
    autoencoder_batch: int = 48
    world_model_steps: int = 20_000
    world_model_batch: int = 128
    clone_steps: int = 10_000
    clone_batch: int = 64
    align_steps: int = 2_000
    align_batch: int = 128
    reward_steps: int = 2_000
    reward_batch: int = 48
    reward_stride: int = 1
    reward_frozen: int = 0  # lower layers
    iterations: int = 100
    groups: int = 64
    group_size: int = 8
    epochs: int = 1
    evaluation_states: int = 128
    freeze_vision: bool = False
    kept: float = 1.0  # share of the groups that dynamic sampling keeps
    valid: float = 1.0  # share of an episode before its success


# Fields that have the same names in a `Profile`.
SAME = ("align_steps", "align_batch", "reward_steps", "reward_stride", "reward_frozen")
SAME += ("iterations", "groups", "group_size", "evaluation_states", "freeze_vision")


@dataclass(frozen=True)
class Hardware:
    """What a run is computed on. Measure yours: these are assumptions."""

    cards: int
    tflops: float  # peak of one card, 10^12 FLOP a second
    utilization: float  # share of it that a run reaches


# The paper's 32 H100 (dense bf16), one A100 (single precision), two laptop cores.
HARDWARE = {"paper": Hardware(32, 989.0, 0.35), "gpu": Hardware(1, 19.5, 0.3)}
HARDWARE["laptop"] = Hardware(1, 0.2, 0.5)
ACTING = ("P rollouts", "imagination", "evaluation")  # stages in which nothing learns


def preset(name: str) -> Sizes:
    """The sizes that a name stands for; UserError for another name."""
    if name == "paper":
        return Sizes(**paper_models())
    if name not in HARDWARE:
        raise UserError(f"--preset is '{name}'; expected one of {', '.join(HARDWARE)}")
    s, made, policy = PROFILES[name], PRETRAINING[name], PolicyConfig()
    tower = {"image": policy.image, "patch": policy.patch}
    return Sizes(
        made.autoencoder,
        replace(made.world_model, num_inference_steps=s.num_inference_steps),
        RewardConfig(**tower, width=policy.vision_width, depth=policy.vision_depth),
        policy,
        horizon=40,
        rollout_budget=128,
        autoencoder_steps=made.autoencoder_steps,
        world_model_steps=made.world_model_steps,
        world_model_batch=made.windows.batch,
        clone_steps=POLICIES["place"].clone_steps,
        epochs=s.wmpo_epochs,
        **{field: getattr(s, field) for field in SAME},
    )


def build(sizes: Sizes) -> dict:
    """The four models on the `meta` device, by name: nothing is allocated."""
    dims = sizes.policy.action_dim
    statistics = ActionStatistics(("",) * dims, (-1.0,) * dims, (1.0,) * dims)
    with torch.device("meta"):
        return {
            "autoencoder": Autoencoder(sizes.autoencoder),
            "world model": WorldModel(sizes.world_model),
            "reward model": RewardModel(sizes.reward),
            "policy": Policy(sizes.policy, statistics),
        }


def passes(sizes: Sizes, models: dict) -> dict:
    """What is done to one thing at a time: name -> (model, function that returns its output)."""
    a, w, r, p = models.values()
    c, size, empty = sizes.world_model, sizes.autoencoder.size, torch.empty
    latent = (1, c.latent_channels, c.latent_size, c.latent_size)
    clip = empty(1, sizes.reward.clip, *(sizes.reward.image,) * 2, 3, dtype=torch.uint8)
    frame = empty(1, sizes.policy.image, sizes.policy.image, 3, dtype=torch.uint8)

    def denoise():
        x_t, actions = empty(1, c.frames, *latent[1:]), empty(1, c.frames, c.action_dim)
        context = w.context(w.init_state(empty(*latent)))
        return w.denoiser.predict_x0(x_t, empty(1), context, actions)

    return {
        "encode": ("autoencoder", lambda: a.encode_raw(empty(1, 3, size, size))),
        "decode": ("autoencoder", lambda: a.decode_raw(empty(*latent))),
        "denoise": ("world model", denoise),
        "judge": ("reward model", lambda: r(clip, [TEXT])),
        "see": ("policy", lambda: p.features(frame)),
        "act": ("policy", lambda: p.logits(frame, [TEXT])),
    }


def count(forward, model, backward: bool) -> tuple[int, int, int]:
    """FLOP of a pass, FLOP with its way back, and bytes beside `model` that it keeps for that."""
    kept, weights = {}, {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other one gets its number
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as flops, torch.set_grad_enabled(backward):
        with hooks:
            out = forward()
        one_way = flops.get_total_flops()
        if backward:
            out.sum().backward()
    return one_way, flops.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


@functools.cache
def unit_costs(sizes: Sizes) -> dict:
    """FLOP of every pass of `passes`, and of the same with its way back as '<name> + back';
    'memory <name>': bytes that one such pass keeps; 'parameters <model>', 'trained <model>'.
    """
    models, found = build(sizes), {}
    models["policy"].train_vision(not sizes.freeze_vision)
    models["reward model"].freeze_lower(sizes.reward_frozen)
    for name, model in models.items():
        found[f"parameters {name}"] = sum(p.numel() for p in model.parameters())
        found[f"trained {name}"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with FakeTensorMode(allow_non_fake_inputs=True):  # models ask for values; `meta` has none
        models = {name: model.to_empty(device="cpu") for name, model in models.items()}
        for name, (model, forward) in passes(sizes, models).items():
            costs = count(forward, models[model], name != "see")
            found |= zip((name, f"{name} + back", f"memory {name}"), costs)
    found["update"], found["clone"] = found["act + back"], found["act + back"]
    if sizes.freeze_vision:  # cloning keeps what the tower makes of a frame
        found["clone"] -= found["see"]
    return found


def stages(sizes: Sizes) -> list[dict]:
    """One row a stage: parameters, those that learn, FLOP, bytes that an example keeps to learn."""
    s, u, w = sizes, unit_costs(sizes), sizes.world_model
    chunks = math.ceil(s.horizon / s.policy.chunk)  # times that the policy acts in an episode
    trajectories, frames = s.iterations * s.groups * s.group_size, s.rollout_budget * s.horizon
    imagined = u["encode"] + s.valid * (
        chunks * u["act"]
        + s.horizon * u["decode"]
        + s.horizon / w.frames * w.num_inference_steps * u["denoise"]
        + s.horizon / s.reward_stride * u["judge"]
    )
    auto, learn = u["encode + back"] + u["decode + back"], u["denoise + back"]
    looks = 3 * 16 * u["see"]  # the tower of its loss sees 16 frames, real and made, and way back
    clips, updates = s.reward_steps * s.reward_batch, trajectories * s.kept * s.valid * s.epochs
    rows = (
        ("autoencoder", "decode", s.autoencoder_steps * (s.autoencoder_batch * auto + looks)),
        ("world model", "denoise", s.world_model_steps * s.world_model_batch * learn),
        ("cloning", "act", s.clone_steps * s.clone_batch * u["clone"]),
        ("P rollouts", "act", s.rollout_budget * chunks * u["act"]),
        ("alignment", "denoise", s.align_steps * s.align_batch * learn + frames * u["encode"]),
        # its clips are taken from frames as filmed, as reconstructed and as imagined
        ("reward", "judge", clips * u["judge + back"] + frames * (u["encode"] + u["decode"])),
        ("imagination", "denoise", trajectories * imagined),
        ("updates", "act", updates * chunks * u["update"]),
        ("evaluation", "act", s.evaluation_states * chunks * u["act"]),
    )
    model = {"decode": "autoencoder", "denoise": "world model", "judge": "reward model"}
    found = []
    for stage, example, flop in rows:
        name, learns = model.get(example, "policy"), stage not in ACTING
        sizes = {"parameters": u[f"parameters {name}"], "trained": u[f"trained {name}"] * learns}
        bytes_kept = u[f"memory {example}"] * learns
        found.append({"stage": stage, **sizes, "flop": flop, "example_bytes": bytes_kept})
    return found


def memory(row: dict, micro_batch: int) -> int:
    """Bytes on one card, in single precision: weights; for what learns gradients, two moments, an
    average, and what `micro_batch` examples keep for their way back.
    """
    return 4 * row["parameters"] + 16 * row["trained"] + micro_batch * row["example_bytes"]


def check(hardware: Hardware, micro_batch: int) -> None:
    """UserError for hardware that cannot be."""
    require_between("--cards", hardware.cards, 1, 1_000_000)
    require_between("--tflops", hardware.tflops, 1e-6, 1_000_000)
    require_between("--utilization", hardware.utilization, 1e-6, 1)
    require_between("--micro-batch", micro_batch, 1, 1_000_000)


def describe(rows: list[dict], hardware: Hardware, micro_batch: int = 1) -> str:
    """The plan as a table."""
    rate = hardware.cards * hardware.tflops * 1e12 * hardware.utilization
    lines = [f"{'stage':12s}{'parameters':>13s}{'GiB a card':>12s}{'FLOP':>10s}{'hours':>10s}"]
    for row in [*rows, {"stage": "all", "flop": sum(row["flop"] for row in rows)}]:
        sizes = " " * 25
        if "parameters" in row:
            gib = memory(row, micro_batch) / 2**30
            sizes = f"{row['parameters'] / 1e6:11.1f} M{gib:12.2f}"
        hours = row["flop"] / rate / 3600
        lines.append(f"{row['stage']:12s}{sizes}{row['flop']:10.1e}{hours:10.2f}")
    return "\n".join(lines)
