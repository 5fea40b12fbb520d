"""`make assets`: everything that is trained once and shipped. Each stage writes its result atomically and is skipped when it is there."""
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from wmpo_lite.recordings import SHARD, collect, collect_practice, collect_scenes, collect_tries, load_demonstrations, load_frames, world_model_data

# ---------------------------------------------------------------------------------------------------------------------- autoencoder


def train_autoencoder(frames: np.ndarray, model, fit_config, *, seed: int, folder: Path, batch: int = 48, emphasis: float = 6.0, latent_noise: float = 0.1,
                      tower=None, perceived: float = 10.0, name: str = "autoencoder"):
    """Fit the per-frame autoencoder `model`. frames uint8 (N, T, H, W, 3).

    tower: a policy's vision tower; then the decoder alone is trained, on what the policy makes of its pictures too (`perception`, counted `perceived` times).
    The latents stay what they are.

    emphasis: extra weight of pixels that differ from the mean frame (arm and objects are a tenth of the picture and all of the task).
    latent_noise: noise on the latents in training, in units of their spread, so that the decoder forgives a world model's small errors.
    """
    import torch

    from wmpo_lite.perception import Perception
    from wmpo_lite.train import fit
    from wmpo_lite.world_model import to_float

    model = model.to(memory_format=torch.channels_last)
    flat = frames.reshape(-1, *frames.shape[2:])
    mean = to_float(torch.from_numpy(np.median(flat[:: max(1, len(flat) // 400)], axis=0).astype(np.uint8))[None])

    if tower is not None:
        perception = Perception(tower, to_float(torch.from_numpy(flat[:: max(1, len(flat) // 500)])))
        for part in (model.net.encoder, getattr(model.net, "quant_conv", None)):
            if part is not None:
                part.requires_grad_(False)

    def loss_fn(generator, rng, step):
        x = to_float(torch.from_numpy(flat[np.sort(rng.integers(len(flat), size=batch))]))
        z = model.encode_raw(x)
        spread = z.detach().std(dim=(0, 2, 3), keepdim=True)
        noisy = z + latent_noise * spread * torch.rand(len(z), 1, 1, 1, generator=generator) * torch.randn(z.shape, generator=generator)
        weight = 1 + emphasis * ((x - mean).abs().amax(dim=1, keepdim=True) > 0.15)
        given = model.decode_raw(noisy)
        error = given - x
        loss, logs = (weight * (error.abs() + 2 * error.square())).mean() + 1e-4 * z.square().mean(), {"psnr": float(10 * torch.log10(4 / error.detach().square().mean()))}
        if tower is None:
            return loss, logs
        unlike = perception.error(given, x)
        return loss + perceived * unlike, logs | {"perception": float(unlike.detach())}

    records = fit(model, loss_fn, fit_config, seed=seed, name=name, folder=folder)
    if tower is not None:
        model.requires_grad_(True)
        return records
    with torch.no_grad():
        sample = to_float(torch.from_numpy(flat[np.random.default_rng(seed).integers(len(flat), size=2048)]))
        z = torch.cat([model.encode_raw(part) for part in sample.split(256)])
        model.mean.copy_(z.mean(dim=(0, 2, 3)).view(1, -1, 1, 1)), model.std.copy_(z.std(dim=(0, 2, 3)).view(1, -1, 1, 1))
    return records


# ------------------------------------------------------------------------------------------------------------------------------ all of it


@dataclass(frozen=True)
class AssetSettings:
    """Sizes of the shipped training. Hours on two cores; `frames` of every result are counted from these."""

    demos: int = 200  # for world model and success classifier
    clone_demos: int = 32  # for the policy; both take the first ones recorded
    demo_noise: float = 0.8  # demonstrations are disturbed seldom and strongly: most chunks have a clean label
    demo_burst: float = 0.1
    play: int = 3072
    scenes: int = 20480
    autoencoder_demos: int = 200
    autoencoder_shards: int = 24  # of play, besides the demonstrations
    autoencoder_steps: int = 6000
    decoder_steps: int = 3000  # of its decoder, so that the policy's eye sees in its pictures what it sees in a camera's (`perception`)
    vision_steps: int = 2200
    ground_steps: int = 900
    reach_steps: int = 2500
    reach_hover: float = 0.2  # share of 'move to the target' among the sentences of `reach`
    clone_steps: int = 300
    clone_early: float = 0.3
    read_steps: int = 2000  # of the draft's three parts
    move_steps: int = 7000
    follow_steps: int = 1400  # of the mover over whole episodes
    follow_shares: tuple[float, ...] = (0.35, 0.0, 0.15, 0.5, 0.0)  # of its batch: demonstrations and play, demonstrations alone, attempts, practice, releases
    release_steps: int = 0  # of the mover about the moments when something is let go (`draft_losses.letting_go`)
    release_shares: tuple[float, ...] = (0.1, 0.2, 0.0, 0.12, 0.58, 0.0)  # of its batch, of the same recordings and of `tries`
    release_disguised: bool = False  # and mirrored, see `draft_losses.disguise`
    release_well: float = 0.0  # of the windows about `releases`, so many from those that came well besides: more is told, also what is not so (README)
    draft_fine: float = 0.0  # see `mover.Mover`
    draft_keyframe: bool = False  # see `draft.Draft`; then painting takes `settle_steps` more and nothing settles
    draft_rest: bool = False  # see `mover.Mover`
    perceived: float = 0.0  # weight of what the policy's eye makes of painted pictures
    practice: int = 2560  # episodes of play by the policy before it is cloned
    tries: int = 0  # of its practice to the end, for `letting_go` alone; those that came to the goal count with the demonstrations
    paint_steps: int = 5000
    settle_steps: int = 1100  # of reader and painter on the painter's own work
    world_steps: int = 400  # of the transformer
    world_batch: int = 16
    held_out: int = 128  # play episodes that the world model is measured on and never sees
    attempts: int = 2048  # for mover and success classifier, which see those that failed
    attempts_shown: bool = False  # to reader, painter and transformer too, and what was filmed of `releases`
    releases: int = 0  # things let go near the target, for the mover, whatever becomes of them
    filmed: int = 0  # of those, for the success classifier too
    dropped: int = 6144  # clips of objects that fall near the target, for the same
    reward_play_shards: int = 6
    reward_steps: int = 2000
    imagined_starts: int = 0  # first frames from which the cloned policy acts in imagination, for the success classifier to see (see `imagined_clips`)
    imagined_releases: int = 0  # of `releases`, the last ones: their actions are imagined for it too


# What a task needs otherwise than the rest, smoke tests aside; never shortened. Whether a thing stays where it is let go is a matter of millimetres in all of them.
_EXACT = {"attempts_shown": True, "draft_fine": 10.0, "draft_keyframe": True, "draft_rest": True, "perceived": 5.0, "imagined_starts": 1024}
# A nut has 4.5 mm of play: more practice over the peg and 30 times the demonstrations, for the world model and the success classifier too: nothing else shows
# them what a peg inside a nut looks like.
TASK_SETTINGS = {"place": _EXACT | {"releases": 6144, "filmed": 2048, "release_steps": 15500, "release_shares": (0.2, 0.1, 0.0, 0.2, 0.5), "imagined_releases": 1024,
                                    "reward_steps": 4600},
                 "square": _EXACT | {"reach_steps": 3500, "reach_hover": 0.35, "demos": 984, "clone_demos": 984, "clone_steps": 2500, "clone_early": 0.1, "attempts": 4096,
                                     "follow_steps": 2500, "releases": 21760, "filmed": 2048, "tries": 3840, "follow_shares": (0.15, 0.2, 0.05, 0.2, 0.4), "release_steps": 30000,
                                     "release_shares": (0.08, 0.1, 0.0, 0.08, 0.5, 0.24), "release_disguised": True, "imagined_releases": 1536, "reward_steps": 3000}}

ASSET_PROFILES = {
    "laptop": AssetSettings(),
    "gpu": AssetSettings(play=20480, read_steps=8000, move_steps=8000, paint_steps=20000, settle_steps=4000, world_steps=60000, world_batch=128),
    "smoke": AssetSettings(demos=8, clone_demos=8, play=16, scenes=1100, autoencoder_shards=1, autoencoder_steps=4, decoder_steps=2, vision_steps=2, ground_steps=2, reach_steps=2, clone_steps=2,
                           read_steps=2, move_steps=2, follow_steps=2, follow_shares=(0.3, 0.0, 0.15, 0.45, 0.1), release_steps=2, release_shares=(0.2, 0.2, 0.0, 0.1, 0.3, 0.2), release_disguised=True, tries=128, releases=16, filmed=16, practice=128, draft_fine=10.0, draft_keyframe=True, draft_rest=True, perceived=5.0, paint_steps=2, settle_steps=2, world_steps=3, world_batch=4, held_out=4, attempts=16, dropped=96, reward_play_shards=1, reward_steps=2),
}


def shorter(s: AssetSettings, share: float = 0.4) -> AssetSettings:
    """Settings for a start from another task's weights: `share` of every part's steps, but all of cloning, which has a new task to learn."""
    steps = {f.name: max(1, round(getattr(s, f.name) * share)) for f in dataclasses.fields(s) if f.name.endswith("_steps") and f.name != "clone_steps"}
    return dataclasses.replace(s, **steps)


def make_assets(task: str, folder: Path, *, seed: int = 0, profile: str = "laptop", start: Path | None = None) -> Path:
    """Train autoencoder, vision tower, cloned policy, world model and success classifier for `task` into folder/task. Finished parts are kept.

    start: another task's trained assets (such as assets/place), whose weights every part begins with; two fifths of the steps are then enough.
    """
    if "/" in task:
        from wmpo_lite.pretrain_libero import make_libero_assets
        return make_libero_assets(task, folder, seed=seed, profile=profile, start=start)
    import torch

    from wmpo_lite.checkpoint import load_tensors, save_tensors
    from wmpo_lite.envs.tabletop import scene
    from wmpo_lite.envs.tabletop.env import MAX_STEP, WORKSPACE
    from wmpo_lite.envs.tabletop.tasks import get_task
    from wmpo_lite.errors import UserError
    from wmpo_lite.perception import LatentPerception
    from wmpo_lite.policy import Policy
    from wmpo_lite.pretrain_policy import clone, ground, reach, train_vision
    from wmpo_lite.pretrain_reward import Recorded, fulfilled, imagined_clips, let_go_beside, release_clips, reward_data, still_clips
    from wmpo_lite.reward import RewardModel, reward_loss
    from wmpo_lite.train import FitConfig, fit, set_threads
    from wmpo_lite.world_model import Autoencoder, WorldModel

    if profile not in ASSET_PROFILES:
        raise UserError(f"profile '{profile}' is unknown; use one of {', '.join(ASSET_PROFILES)}")
    set_threads()
    s, home = ASSET_PROFILES[profile], Path(folder) / task
    if start is not None:
        s = shorter(s)
        if not (Path(start) / "policy" / "model.safetensors").exists():
            raise UserError(f"{start} holds no trained assets to start from; name a folder such as assets/place")
    if profile != "smoke":
        s = dataclasses.replace(s, **TASK_SETTINGS.get(task, {}))
    made = lambda name: (home / name / "provenance.json").exists()  # noqa: E731
    length, recorded = get_task(task).horizon + 1, max(s.demos, s.clone_demos)
    frames_seen = {"play_frames": s.play * length, "demonstration_frames": recorded * length, "scenes": s.scenes, "start": start and Path(start).name}
    note = lambda records: {"task": task, "seed": seed, "settings": dataclasses.asdict(s), "final": records[-1], **frames_seen}  # noqa: E731

    def begin(name, kind):
        """A new model, or the one of the task to start from."""
        torch.manual_seed(seed)
        return kind() if start is None else kind.load(Path(start) / name).train()

    demo_paths = collect("demos", task, recorded + recorded // 8, home, noise=s.demo_noise, burst=s.demo_burst)
    demos = load_demonstrations(demo_paths, s.demos)
    play_paths = collect("play", task, s.play, home)
    release_paths = collect("releases", task, s.releases, home, filmed=s.filmed) if s.releases else []
    filmed_paths = release_paths[: -(-s.filmed // SHARD)]

    def scenes() -> dict:
        shards = [np.load(path) for path in collect_scenes(task, s.scenes, home)]
        return {key: np.concatenate([shard[key] for shard in shards]) for key in ("frames", "masks", "points", "present", "opening")}

    if not (home / "vision.safetensors").exists():
        tower = begin("policy", Policy).vision
        train_vision(scenes(), tower, FitConfig(
            steps=s.vision_steps, lr=1.5e-3, warmup=200, ema=0.995, save_every=500, weight_decay=0.02), seed=seed, folder=home / "fit_vision")
        save_tensors(home / "vision.safetensors", tower.state_dict())

    def eye():
        tower = begin("policy", Policy).vision
        tower.load_state_dict(load_tensors(home / "vision.safetensors"))
        return tower

    if not made("autoencoder"):
        frames = np.concatenate([demos["frames"][: s.autoencoder_demos], load_frames(play_paths[: s.autoencoder_shards])])
        model = begin("autoencoder", Autoencoder)
        train_autoencoder(frames, model, FitConfig(steps=s.autoencoder_steps, lr=2e-3, warmup=100, ema=0.995, save_every=1000), seed=seed, folder=home / "fit_autoencoder")
        records = train_autoencoder(frames, model, FitConfig(steps=s.decoder_steps, lr=1.5e-3, warmup=50, ema=0.995, decay=0.5), seed=seed, folder=home / "fit_decoder",
                                    tower=eye(), name="decoder")
        model.save(home / "autoencoder", note(records))
    autoencoder = Autoencoder.load(home / "autoencoder")

    if not made("policy"):
        policy = begin("policy", Policy)
        policy.vision.load_state_dict(load_tensors(home / "vision.safetensors"))
        pictures = scenes()
        ground(policy, pictures, get_task(task).sentence, FitConfig(steps=s.ground_steps, lr=1.5e-3, warmup=50, decay=0.5), seed=seed,
               folder=home / "fit_ground")
        _, reached = reach(policy, pictures, get_task(task), FitConfig(
            steps=s.reach_steps, lr=1e-3, warmup=50, ema=0.99, decay=0.6, save_every=500, weight_decay=0.02), seed=seed, folder=home / "fit_reach", hover=s.reach_hover)
        policy.save(home / "reach", reached)
        records = clone(policy, load_demonstrations(demo_paths, s.clone_demos), FitConfig(
            steps=s.clone_steps, lr=5e-4, warmup=30, ema=0.99, decay=0.6, save_every=500, weight_decay=0.05), seed=seed, folder=home / "fit_clone", early=s.clone_early)
        policy.save(home / "policy", note(records) | reached)

    if not made("world_model"):
        attempt_paths = collect("attempts", task, s.attempts, home)
        data = world_model_data(autoencoder, demos, [*attempt_paths, *filmed_paths, *play_paths] if s.attempts_shown else play_paths, home / "latents.safetensors",
                                getattr(get_task(task), "small_target", False))
        more = {"attempts": attempt_paths,
                "practice": collect_practice(Policy.load(home / "reach"), task, s.practice, home)}
        tries = collect_tries(Policy.load(home / "reach"), task, s.tries, home) if s.tries else []
        if s.releases:
            more["releases"] = release_paths
            # They show the goal as demonstrations do, so they are counted with them.
            frames_seen["releases_that_came_well"] = int(sum(np.load(path)["done"][:, -1].sum() for path in more["releases"]))
        if tries:
            more["tries"] = tries
            frames_seen["tries_that_came_to_the_goal"] = int(sum(np.load(path)["goal"].sum() for path in tries))
        more = {key: first_frames_and_labels(autoencoder, paths) for key, paths in more.items()}
        model = with_fine_distances(begin("world_model", WorldModel), s.draft_fine)
        data = {key: value[: -s.held_out] for key, value in data.items()}
        if start is None:  # else the coordinates stay as they were learnt
            model.draft.calibrate(torch.as_tensor(scene.camera_matrix()), data["points"][data["present"] > 0.5].mean(0), 0.1)
        model = with_options(with_controller(model, MAX_STEP, WORKSPACE), draft_keyframe=s.draft_keyframe, draft_rest=s.draft_rest)
        perception = LatentPerception(eye(), autoencoder, data["latents"][:: max(1, len(data["latents"]) // 200), 20].float()) if s.perceived else None
        records = train_world_model(model, data, more, s, seed=seed, home=home, perception=perception)
        model.save(home / "world_model", note(records))

    if not made("reward"):
        load = lambda paths: {key: load_frames(paths, key) for key in ("frames", "instruction")}  # noqa: E731
        attempts = load(collect("attempts", task, s.attempts, home))
        episodes = reward_data(demos, attempts, load(play_paths[: s.reward_play_shards]), autoencoder)
        model = begin("reward", RewardModel)
        if start is None:
            model.inflate(load_tensors(home / "vision.safetensors"))  # in place of VideoMAE's own pre-training on the world's videos
        still = [still_clips(collect_scenes(task, s.dropped, home, kind="dropped"), autoencoder)]
        if s.imagined_starts:
            first, texts = (np.concatenate([demos[key], attempts[key]])[: s.imagined_starts] for key in ("frames", "instruction"))
            still.append(imagined_clips(autoencoder, WorldModel.load(home / "world_model"), Policy.load(home / "policy"), get_task(task).horizon,
                                        partial(fulfilled, get_task(task)), first[:, 0], texts, seed=seed, meddle=0.1,
                                        nearly=partial(let_go_beside, get_task(task))))
        if s.filmed:
            still.append(release_clips(get_task(task), filmed_paths, autoencoder, seed=seed))
        if s.imagined_releases:
            shards = [np.load(path) for path in release_paths[-s.imagined_releases // SHARD:]]
            first, actions, texts = (np.concatenate(part) for part in zip(*((shard["frames"][:, 0], shard["executed"], shard["instruction"]) for shard in shards)))
            still.append(imagined_clips(autoencoder, WorldModel.load(home / "world_model"), Recorded(actions, Policy.load(home / "policy").config.chunk), get_task(task).horizon,
                                        partial(fulfilled, get_task(task)), first, texts, seed=seed, nearly=partial(let_go_beside, get_task(task))))
        records = fit(model, reward_loss(model, episodes, half=12, still=still), FitConfig(
            steps=s.reward_steps, lr=5e-4, warmup=100, ema=0.995, decay=0.5, save_every=500, weight_decay=0.05), seed=seed, name="reward",
            folder=home / "fit_reward")
        model.save(home / "reward", note(records))
    return home


def with_fine_distances(model, fine: float):
    """A world model like `model`, as trained as it is, whose mover is told small distances too (see `mover.Mover`); fine=0 leaves what it is told as it is."""
    from torch.nn import functional as F

    from wmpo_lite.world_model import WorldModel
    if fine in (0, model.config.draft_fine):
        return model
    finer, old, key = WorldModel(dataclasses.replace(model.config, draft_fine=fine)), model.state_dict(), "draft.mover.object_in.0.weight"
    old[key] = F.pad(old[key], (0, finer.state_dict()[key].shape[1] - old[key].shape[1]))  # what is told anew counts nothing at first
    finer.load_state_dict(old)
    return finer


def with_controller(model, step: float, box):
    """A world model like `model`, as trained as it is but for the hand's part of its mover, which begins anew on top of the arm's controller (see `mover.Mover`
    and `Draft.calibrate_controller`)."""
    from wmpo_lite.world_model import WorldModel
    if model.config.draft_controller:
        return model
    known = WorldModel(dataclasses.replace(model.config, draft_controller=True))
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith(("draft.mover.hand", "draft.mover.follow_command"))}
    known.load_state_dict(known.state_dict() | kept)
    known.draft.calibrate_controller(step, box)
    return known


def with_options(model, **options):
    """A world model like `model`, with its weights, and other options of its draft that need no weights: draft_keyframe, draft_rest."""
    from wmpo_lite.world_model import WorldModel
    if all(getattr(model.config, key) == value for key, value in options.items()):
        return model
    other = WorldModel(dataclasses.replace(model.config, **options))
    other.load_state_dict(model.state_dict())
    return other


def first_frames_and_labels(autoencoder, paths) -> dict:
    """Of attempts, practice or releases: latents of the first frames (E, C, h, w), actions (E, T, D), labels as in `world_model_data` and, where it is known,
    which episodes came well: `well` bool (E,)."""
    import torch
    parts = []
    for shard in map(np.load, paths):
        frames = shard["first"] if "first" in shard else shard["frames"][:, 0]  # most releases have no other frame
        actions = shard["actions"] if "actions" in shard else shard["executed"]
        present = np.repeat(shard["present"][:, None], actions.shape[1] + 1, axis=1).astype(np.float32)
        parts.append({"latents": autoencoder.encode_uint8(torch.from_numpy(frames)),
                      **{key: torch.from_numpy(value) for key, value in dict(actions=actions, points=shard["points"], present=present,
                                                                             opening=shard["opening"]).items()}})
        if "done" in shard:
            parts[-1]["well"] = torch.from_numpy(shard["done"][:, -1])
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def train_world_model(model, data: dict, more: dict, s: AssetSettings, *, seed: int, home: Path, perception=None):
    """The draft's three parts one after the other, each a small problem of its own, then the transformer on top of it, the draft held fixed.

    data: see `world_model_data`; more: 'attempts', 'practice' and perhaps 'releases' and 'tries' from `first_frames_and_labels`, for the mover alone.
    perception: a `perception.LatentPerception` for the painter, or None.
    """
    import torch

    from wmpo_lite.draft_losses import following, letting_go, moving, painting, reading
    from wmpo_lite.mover import Scene
    from wmpo_lite.train import FitConfig, WindowConfig, fit, world_model_loss

    draft, latents, actions, objects = model.draft, data["latents"], data["actions"], data["objects"]
    labels = draft.scene(data["points"], data["present"], data["opening"])

    def learn(name, module, loss_fn, steps, lr, **more):
        return fit(module, loss_fn, FitConfig(steps=steps, lr=lr, warmup=100, ema=0.99, decay=0.6, save_every=250, **more), seed=seed, name=name,
                   folder=home / f"fit_{name}", log_every=100)

    learn("read", draft.reader, reading(draft, latents, labels), s.read_steps, 2e-3)
    draft.reader.requires_grad_(False), draft.reader.look.requires_grad_(True)
    painter, seen_as = torch.nn.ModuleList([draft.painter, draft.reader.look]), {"perception": perception, "perceived": s.perceived}
    if draft.keyframe:  # nothing is painted from painted frames, nor read in them, but from first frames all the way to the last ones
        learn("paint", painter, painting(draft, latents, labels, objects, batch=64, own=0.0, reach=actions.shape[1], first=s.demos, begin=0.7, **seen_as),
              s.paint_steps + s.settle_steps, 1.5e-3)
        draft.reader.requires_grad_(True)
    else:
        learn("paint", painter, painting(draft, latents, labels, objects, **seen_as), s.paint_steps, 1.5e-3)
        draft.reader.requires_grad_(True)
        learn("settle", torch.nn.ModuleList([draft.painter, draft.reader]), painting(draft, latents, labels, objects, batch=64, own=0.6, read=0.5, first=s.demos, **seen_as),
              s.settle_steps, 1e-3)
    seen = draft.label(latents)
    learn("move", draft.mover, moving(draft, labels, actions, seen), s.move_steps, 2e-3, grad_clip=0.5, weight_decay=0.001)
    first = Scene(*(part[:, 0] for part in seen))
    parts = [(share, *(Scene(*(part[:count] for part in scene)) for scene in (first, labels)), actions[:count])
             for share, count in zip(s.follow_shares, (len(actions), s.demos)) if share]
    for share, rows in zip(s.follow_shares[2:], (more[name] for name in ("attempts", "practice", "releases") if name in more)):
        with torch.no_grad():
            first = draft.read(rows["latents"])[0]._replace(present=rows["present"][:, 0], look=rows["points"][:, 0, :, :0])
        parts.append((share, first, draft.scene(rows["points"], rows["present"], rows["opening"]), rows["actions"]))
    learn("follow", draft.mover, following(draft, parts), s.follow_steps, 1e-3, grad_clip=0.5, weight_decay=0.001)
    if s.release_steps:
        every = [(labels, actions, None), (Scene(*(part[: s.demos] for part in labels)), actions[: s.demos], None)]
        every += [(draft.scene(rows["points"], rows["present"], rows["opening"]), rows["actions"], rows.get("well"))
                  for rows in (more[name] for name in ("attempts", "practice", "releases", "tries") if name in more)]
        learn("release", draft.mover, letting_go(draft, [(share, *part) for share, part in zip(s.release_shares, every) if share], well=s.release_well,
                                                 disguised=s.release_disguised),
              s.release_steps, 2e-3, grad_clip=0.5, weight_decay=0.001)
    draft.requires_grad_(False)
    windows = WindowConfig(batch=s.world_batch, own_from=0.2)
    records = fit(model, world_model_loss(model, latents, actions, windows, s.world_steps, objects=objects, **seen_as), FitConfig(
        steps=s.world_steps, lr=8e-4, warmup=100, ema=0.998, save_every=250, weight_decay=0.02, decay=0.6), seed=seed, name="world model",
        folder=home / "fit_world_model")
    draft.requires_grad_(True)
    return records


def install_assets(source: Path, target: Path):
    """Copy the four trained folders into the shipped assets, weights in half precision (they are read back as single)."""
    import shutil

    from wmpo_lite.checkpoint import load_tensors, save_tensors
    for name in ("autoencoder", "policy", "world_model", "reward"):
        (target / name).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / name).iterdir()):
            if path.suffix == ".safetensors":
                tensors = load_tensors(path)
                save_tensors(target / name / path.name, {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()})
            else:
                shutil.copy(path, target / name / path.name)
