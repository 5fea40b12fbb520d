"""A run: its settings, its folder, what is loaded for it, and what several stages of the main job
do alike.
"""

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import LARGEST_SEED, UserError, require_between
from wmpo_lite.common.files import ASSETS
from wmpo_lite.common.machine import Compute
from wmpo_lite.common.owner import Owner
from wmpo_lite.envs.splits import USES, numbers
from wmpo_lite.recipes.profiles import PROFILES, Profile, check_ranges, for_budget, for_suite

LEARNING = ("align", "reward", "wmpo", "grpo", "dpo")  # stages with a way back
GREEDY_BATCH, SCORED = 64, 16  # episodes that are evaluated, and judged, together
REWARD_CLIPS = 48  # a batch of the reward model's training
# What takes the memory of a stage, where the result may be another.
LOWER = {"rollouts": "rollout-budget", "align": "align-batch", "reward": "rollout-budget"}
LOWER |= {"trust": "trust-rollouts", "grpo": "online-groups", "evaluate": "evaluation-states"}
LOWER |= {"dpo": "rollout-budget"}
SPENT = ("seconds", "core_seconds")
FEWEST = 5  # rollouts of which a quarter can hold a success and a failure


def run_folder(name: str) -> Path:
    """runs/<name>; UserError unless the name is one plain folder name on every system."""
    if not re.fullmatch(r"\w([\w.+=@ -]{0,98}[\w+=@-])?", name) or re.fullmatch(
        r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name
    ):
        raise UserError(
            f"--name is '{name}'; expected one plain folder name: up to 100 letters, digits and . _"
            " + = @ -, beginning with a letter or digit"
        )
    if name.lower() == "assets":
        raise UserError(
            "--name is 'assets', where --from-scratch keeps what it trains; choose another name"
        )
    return Path("runs") / name


@dataclass(frozen=True)
class Run:
    """What one run is: enough to repeat it."""

    task: str = "place"
    profile: str = "laptop"
    seed: int = 0
    rollout_budget: int = 128
    assets: str = str(ASSETS)
    changes: dict = dataclasses.field(default_factory=dict)  # settings that are not the profile's
    # see `rounds`: the folder of the run before, and how many rollouts all rounds before recorded
    after: str = ""
    round: int = 1
    recorded_before: int = 0

    def settings(self) -> Profile:
        if self.profile not in PROFILES:
            raise UserError(
                f"profile '{self.profile}' is unknown; use one of {', '.join(PROFILES)}"
            )
        require_between("--seed", self.seed, 0, LARGEST_SEED)
        room = USES["rollouts"].room - self.recorded_before
        require_between("--rollout-budget", self.rollout_budget, 1, room)
        profile = PROFILES[self.profile]
        if "/" in self.task:
            profile = for_suite(profile)
        sized = for_budget(profile, self.rollout_budget, self.recorded_before)
        settings = dataclasses.replace(sized, **self.changes)
        check_ranges(settings)
        if self.rollout_budget < settings.online_group_size:
            raise UserError(
                f"a rollout budget of {self.rollout_budget} is smaller than one group of"
                f" {settings.online_group_size}; raise --rollout-budget"
            )
        if self.rollout_budget < FEWEST:
            raise UserError(
                f"a rollout budget of {self.rollout_budget} is too small: a quarter of the rollouts"
                f" is held out and must hold successes and failures, which takes {FEWEST} at the"
                " very least; raise --rollout-budget"
            )
        return settings


def trained_by(task: str) -> str:
    """What a user types to have the assets of `task` trained."""
    suite, slash, number = task.partition("/")
    return f"`wmpo-lite assets --suite {suite} --tasks {number}`" if slash else "--from-scratch"


class Workspace:
    """The run folder and what is loaded for it. `stage(name, fn)` runs fn once ever and remembers
    its JSON result and the time that it took, in all processes that began it and could say so.

    The folder belongs to this process until `close`. Nothing is written before all that can be
    known to be wrong has been looked at. device: see `choose_device`; all models are loaded there.
    Of several processes the first one owns the folder and writes; the others read what is in it.
    """

    def __init__(self, run: Run, folder: Path, device: str = "auto", compute: Compute = Compute()):
        from wmpo_lite.common.machine import choose_device
        from wmpo_lite.envs.tasks import folder_name, get_task, make_env, shared_name
        from wmpo_lite.train import MetricsLog, set_threads

        set_threads()
        self.run, self.folder, self.settings = run, Path(folder), run.settings()
        self.device, self.compute = choose_device(device), compute
        self.task = get_task(run.task)
        self.horizon = self.task.horizon
        self.assets = Path(run.assets) / folder_name(run.task)
        self.shared = Path(run.assets) / shared_name(run.task)
        if not self.assets.exists():
            raise UserError(
                f"there are no trained assets for task '{run.task}' ({self.assets}); train them"
                f" with {trained_by(run.task)}, choose another task, or let WMPO_ASSETS name the"
                " folder that holds assets"
            )
        config = {
            **dataclasses.asdict(run),
            "assets": self._fingerprint(),
            **dataclasses.asdict(self.settings),
            "horizon": self.horizon,
        }
        self.env = make_env(self.task)
        try:
            parallel.first(lambda: self._own_folder(checkpoint.plain(config)))
        except BaseException:
            self.env.close()
            raise
        self.log = MetricsLog(self.folder / "metrics.jsonl")

    def close(self):
        """End the environment and leave the folder to others."""
        self.env.close()
        self._owner = None

    def _own_folder(self, config: dict):
        self._try_assets()
        self._require_budget()
        self._owner = Owner(self.folder)
        path = self.folder / "config.json"
        if path.exists():
            # a setting that the kit has gained since was as it is by default
            found = checkpoint.plain(vars(Profile()) | vars(Run()))
            found |= checkpoint.read_json(path)
            if found != config:
                changed = sorted(
                    key
                    for key in config.keys() | found.keys()
                    if key not in found or key not in config or found[key] != config[key]
                )
                self._owner = None
                raise UserError(
                    f"{self.folder} holds a run with other settings ({', '.join(changed)}); choose"
                    " another --name or delete the folder"
                )
        else:
            checkpoint.write_json(path, config)

    def _require_budget(self):
        """UserError if an arm has recorded more or fewer rollouts here than the budget says."""
        path, budget = self.folder / "stages" / "rollouts.json", self.run.rollout_budget
        if not path.exists():
            return
        n = checkpoint.read_json(path, {"result": {"n": int}})["result"]["n"]
        if n != budget:
            raise UserError(
                f"{self.folder} holds {n} rollouts and --rollout-budget is {budget}; give"
                f" --rollout-budget {n}, or choose another --name"
            )

    def _try_assets(self):
        """Load what later stages need, so that a broken file is found before the first one."""
        from wmpo_lite.trajectory import load_metadata

        self.base()
        self.autoencoder()
        self.pretrained_world_model()
        load_metadata(self.assets / "demos.hdf5")

    def _fingerprint(self) -> dict:
        """Which trained assets the run starts from: the beginning of each
        weight file's checksum.
        """
        folders = {"policy": self.assets / "policy"}
        folders |= {name: self.shared / name for name in ("autoencoder", "world_model")}
        weights = {name: folder / "model.safetensors" for name, folder in folders.items()}
        if missing := [str(path.parent) for path in weights.values() if not path.is_file()]:
            raise UserError(
                f"trained weights are missing ({', '.join(missing)}); fetch the checkout anew, or"
                f" train them with {trained_by(self.run.task)}"
            )
        begun = {name: checkpoint.checksum(path)[:12] for name, path in weights.items()}
        if self.run.after:
            begun["policy"] = checkpoint.fingerprint(self.base())
        return begun

    def stage(self, name: str, fn, shared: bool = False):
        """shared: `fn` shares its work out over all processes; else the first one does it."""
        path = self.folder / "stages" / f"{name}.json"
        begun = path.with_suffix(".begun")  # what a stage that was stopped had already taken
        clock, busy = time.monotonic(), time.process_time()

        def found():
            if path.exists():
                return checkpoint.read_json(path, {"result": dict})["result"]
            print(f"[{name}]", flush=True)

        def spent():
            now = (time.monotonic() - clock, time.process_time() - busy)
            old = checkpoint.read_json(begun, dict.fromkeys(SPENT, float)) if begun.exists() else {}
            return {key: round(old.get(key, 0) + t, 1) for key, t in zip(SPENT, now)}

        def write(result):
            checkpoint.write_json(path, {"result": result, **spent()})
            begun.unlink(missing_ok=True)
            return checkpoint.read_json(path)["result"]

        def compute():
            try:
                return self._computed(name, fn)
            except BaseException:
                if not parallel.rank():
                    checkpoint.write_json(begun, spent())
                raise

        if (done := parallel.first(found)) is not None:
            return done
        if not shared:
            return parallel.first(lambda: write(compute()))
        result = compute()
        return parallel.first(lambda: write(result))

    def _computed(self, name: str, fn):
        """`fn()` as `compute` says; out of memory it is UserError, which names what to lower."""
        import torch

        from wmpo_lite.dpo import DPOConfig

        try:
            with self.compute.autocast(self.device):
                return fn()
        except (MemoryError, RuntimeError) as error:
            known = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not known and "can't allocate memory" not in str(error):
                raise
            advice = []
            if name in LEARNING and not self.compute.recompute:
                advice.append("add --recompute")
            if name in LEARNING:
                sizes = {"align": self.settings.align_batch, "reward": REWARD_CLIPS}
                sizes["dpo"] = DPOConfig.batch
                now = self.compute.micro_batch or sizes.get(name, self.settings.minibatch)
                advice.append(f"lower --micro-batch (now {now})")
            raise UserError(
                f"stage '{name}' ran out of memory; {' or '.join(advice or ['free some'])} and run"
                " the same command again to go on, or start anew under another --name with a lower"
                f" --{LOWER.get(name, 'groups')}"
            ) from error

    def seconds(self) -> float:
        return sum(
            checkpoint.read_json(path, {"seconds": float})["seconds"]
            for path in (self.folder / "stages").glob("*.json")
        )

    # -- loaded when first needed ------------------------------------------------------------------

    def autoencoder(self):
        from wmpo_lite.autoencoder import Autoencoder

        load = lambda: Autoencoder.load(self.shared / "autoencoder").to(self.device)
        return self._once("autoencoder", load)

    def base(self):
        """The policy that the run begins with, anew at every call: the cloned one, or in a later
        round WMPO's of the round before.
        """
        if self.run.after:
            return self.earlier().policy().to(self.device)
        return self.policy(self.assets / "policy")

    def earlier(self):
        """The round before this one (`rounds.Earlier`)."""
        from wmpo_lite.recipes.rounds import finished

        return finished(Path(self.run.after), self.run.task)

    def earlier_rollouts(self) -> list:
        """The rollouts of all rounds before this one."""
        return self.earlier().rollouts() if self.run.after else []

    def policy(self, folder: Path):
        """The policy in a folder, anew at every call."""
        from wmpo_lite.policies import load_policy

        return load_policy(folder).to(self.device)

    def pretrained_world_model(self):
        """The world model before alignment, anew at every call."""
        from wmpo_lite.world_model import WorldModel

        return WorldModel.load(self.shared / "world_model").to(self.device)

    def world_model(self):
        from wmpo_lite.world_model import WorldModel

        load = lambda: WorldModel.load(self.folder / "world_model").to(self.device)
        return self._once("world_model", load)

    def reward_model(self):
        from wmpo_lite.reward import RewardModel

        load = lambda: RewardModel.load(self.folder / "reward").to(self.device)
        return self._once("reward", load)

    def rollouts(self):
        """The P rollouts, in a later round with those of all rounds before in front. A warning if
        they were recorded with another MuJoCo.
        """
        from wmpo_lite.envs.tabletop.replay import warn_of_version
        from wmpo_lite.trajectory import load_trajectories

        path = self.folder / "rollouts.hdf5"
        if not hasattr(self, "_rollouts"):
            warn_of_version(path)
        return self._once("rollouts", lambda: self.earlier_rollouts() + load_trajectories(path))

    def _once(self, name, load):
        if not hasattr(self, f"_{name}"):
            setattr(self, f"_{name}", load())
        return getattr(self, f"_{name}")

    def provenance(self, **more) -> dict:
        return {
            "run": dataclasses.asdict(self.run) | {"assets": Path(self.run.assets).name},
            "settings": dataclasses.asdict(self.settings),
            "device": self.device.type,
            "precision": self.compute.precision,
            **more,
        }

    def states(self, use: str, count: int, skip: int = 0):
        """Initial states for one of the uses in `envs.splits`, of this run's seed."""
        from wmpo_lite.envs.tasks import initial_states

        if use == "rollouts":  # rounds before have used the first ones
            skip += self.run.recorded_before
        split, rows = numbers(use, count, self.run.seed, skip)
        return initial_states(self.task, self.env, split, rows)


def initial_frames(trajectories, states: bool = True):
    """Recorded first frames as initial states for imagination. states=False: without the
    simulator's states, which imagination never looks at.
    """
    from wmpo_lite.trajectory import InitialStates

    rows = [t.initial_state if states else np.zeros(0) for t in trajectories]
    return InitialStates(
        states=np.stack(rows),
        frames=np.stack([t.frames[0] for t in trajectories]),
        instructions=tuple(t.instruction for t in trajectories),
        split=trajectories[0].split,
        indices=np.array([t.index for t in trajectories]),
    )


def imagined_env(w: Workspace, seed: int, stop: bool = True, judged: bool = True, world_model=None):
    """Imagination as this run is set: its aligned world model (or another one), judged by its
    reward model.
    """
    from wmpo_lite.imagined_env import ImaginedEnv

    threshold = None
    if judged:
        shape = {"result": {"imagined_threshold": float}}
        chosen = checkpoint.read_json(w.folder / "stages" / "reward.json", shape)
        threshold = chosen["result"]["imagined_threshold"]
    return ImaginedEnv(
        w.autoencoder(),
        world_model or w.world_model(),
        w.reward_model() if judged else None,
        threshold=threshold,
        seed=seed,
        num_inference_steps=w.settings.num_inference_steps,
        reward_stride=w.settings.reward_stride,
        min_consecutive=w.settings.min_consecutive,
        stop=stop,
        action_names=w.env.action_names,
    )


def greedy(w: Workspace, policy, states, **options):
    from wmpo_lite.rollout import rollout

    options = {"every_frame": False, "batch": GREEDY_BATCH, **options}
    return rollout(policy, w.env, states, horizon=w.horizon, **options)


def replay_in(env, trajectories) -> np.ndarray:
    """Frames uint8 (E, T + 1, H, W, 3) that recorded actions lead to in imagination, from the
    recorded first frames. Processes share out every batch, with the noise of the whole.
    """
    from wmpo_lite.rollout import replay

    def frames(part):
        run = lambda own: replay(env, part[own], initial_frames(part[own], states=False))[0]
        if len(part) < parallel.count():  # each draws all of the noise, or it would be another's
            return run(slice(None))
        with parallel.one_batch():
            return parallel.whole(run, len(part))

    batches = range(0, len(trajectories), 128)
    return np.concatenate([frames(trajectories[i : i + 128]) for i in batches])


def clip_scores(model, films, starts, stride: int = 1, min_consecutive: int = 1) -> np.ndarray:
    import torch

    scores = []
    for i in range(0, len(films), SCORED):
        part = slice(i, i + SCORED)
        frames, texts = torch.from_numpy(films[part]), list(starts.instructions[part])
        scores.append(model.score(frames, texts, stride, min_consecutive).cpu().numpy())
    return np.concatenate(scores)


def save_arrays(path: Path, **arrays):
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    checkpoint.write_atomic(path, buffer.getvalue())
