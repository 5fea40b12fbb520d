"""What ships in assets/: the trained models of a task and one finished run (its P rollouts, its
policies, its figures), so that every notebook can be opened first. Nothing here writes except
`ship_run`.
"""

from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError, require_between
from wmpo_lite.common.files import ASSETS, restore, whole_folder

POLICIES = ("grpo", "dpo", "wmpo")
FILES = (
    "evaluation.json",
    "trust.json",
    "result.json",
    "metrics.jsonl",
    "rollouts.hdf5",
    "config.json",
    "seen.json",
)
THRESHOLDS = {"threshold": float, "imagined_threshold": float}


class Shipped:
    """The shipped models and the shipped run of `task`. Every method loads anew, so what a notebook
    changes stays in the notebook.
    """

    def __init__(self, task: str = "place", assets: Path = ASSETS):
        from wmpo_lite.envs.tasks import folder_name, get_task, shared_name

        self.task = get_task(task)
        self.home = Path(assets) / folder_name(task)
        self.shared = Path(assets) / shared_name(task)
        self.run = restore(self.home / "run")
        if not (self.home / "policy").exists():
            raise UserError(
                f"there are no trained assets for task '{task}' ({self.home}); use another task,"
                " train them with `make assets`, or let WMPO_ASSETS name the folder that holds them"
            )

    def autoencoder(self):
        from wmpo_lite.autoencoder import Autoencoder

        return Autoencoder.load(self.shared / "autoencoder")

    def world_model(self, aligned: bool = True):
        """aligned: after the P rollouts of the shipped run; False: as pre-trained."""
        from wmpo_lite.world_model import WorldModel

        model = WorldModel.load(self.shared / "world_model")
        return self._changed(model, "world_model") if aligned else model

    def reward_model(self):
        """The reward model that the shipped run fitted, with its threshold for camera pictures."""
        from wmpo_lite.reward import RewardModel

        model = RewardModel.load(self._file("reward"))
        # weights are shipped in half precision, in which 0.9999 is 1
        model.threshold.fill_(self.thresholds()["threshold"])
        return model

    def thresholds(self) -> dict:
        """`threshold` for camera pictures, chosen on the P rollouts, and `imagined_threshold` for
        imagined ones.
        """
        return checkpoint.read_json(self._file("reward.json"), THRESHOLDS)

    def policy(self, name: str = "base"):
        """'base', or one that the shipped run trained: 'grpo', 'dpo' or 'wmpo'."""
        from wmpo_lite.policy import Policy

        if name not in ("base", *POLICIES):
            raise UserError(f"policy '{name}' is unknown; use one of base, {', '.join(POLICIES)}")
        policy = Policy.load(self.home / "policy")
        return policy if name == "base" else self._changed(policy, name)

    def rollouts(self):
        """The P real rollouts of the shipped run, or the first of them, as Trajectory objects."""
        from wmpo_lite.trajectory import load_trajectories

        return load_trajectories(self._file("rollouts.hdf5"))

    def imagined_env(self, seed: int = 0, **options):
        """The aligned world model as an environment, judged as in the shipped run; options as of
        `ImaginedEnv`.
        """
        from wmpo_lite.imagined_env import ImaginedEnv

        settings = {"num_inference_steps": int, "reward_stride": int, "min_consecutive": int}
        config = checkpoint.read_json(self._file("config.json"), settings)
        names = checkpoint.read_json(self.home / "policy" / "actions.json", {"names": [str]})
        options = {
            "threshold": self.thresholds()["imagined_threshold"],
            **{name: config[name] for name in settings},
            "action_names": names["names"],
            **options,
        }
        if "reward_model" not in options:
            options["reward_model"] = self.reward_model()
        return ImaginedEnv(self.autoencoder(), self.world_model(), seed=seed, **options)

    def read(self, name: str):
        """One of the shipped run's JSON files: 'evaluation', 'trust', 'result',
        'config' or 'seen'.
        """
        return checkpoint.read_json(self._file(f"{name}.json"))

    def metrics(self) -> list[dict]:
        """The shipped run's log, one record a step."""
        from wmpo_lite.report.run_files import read_metrics

        return read_metrics(self._file("metrics.jsonl"))

    def _changed(self, model, name: str):
        changed = checkpoint.load_tensors(self._file(f"{name}.safetensors"))
        surplus = sorted(set(changed) - set(model.state_dict()))
        if surplus:
            raise UserError(
                f"{self.run / name}.safetensors holds weights that the model does not have"
                f" ({', '.join(surplus[:3])}); ship the run anew"
            )
        model.load_state_dict(changed, strict=False)
        return model

    def _file(self, name: str) -> Path:
        if not (self.run / name).exists():
            raise UserError(
                f"{self.run / name} is missing; the shipped run is made by `wmpo-lite ship"
                " runs/<name>`"
            )
        return self.run / name


def copy_half(source: Path, target: Path):
    """Copy a model's folder, its weights in half precision (they are read back as single). It
    replaces `target` when it is complete.
    """
    with whole_folder(target) as staging:
        _copy_half(source, staging)


def _copy_half(source: Path, target: Path):
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            halves = {
                key: value.half() if value.is_floating_point() else value
                for key, value in checkpoint.load_tensors(path).items()
            }
            checkpoint.save_tensors(target / path.name, halves)
        elif path.is_file():
            checkpoint.write_atomic(target / path.name, path.read_bytes())


def ship_run(run: Path, assets: Path = ASSETS, rollouts: int | None = None) -> Path:
    """Copy a finished run into assets/<task>/run: of the models only the weights that the run
    changed, in half precision.

    rollouts: keep so many of the P recorded ones, the first (all by default); pictures of meshes
    are many bytes. Everything is read before anything is written, and the new run takes the place
    of the shipped one as a whole.
    """
    from wmpo_lite.envs.tasks import folder_name, shared_name
    from wmpo_lite.trajectory import load_metadata, load_trajectories, save_trajectories

    run = Path(run)
    if missing := [name for name in FILES if not (run / name).exists()]:
        raise UserError(
            f"{run} is not a finished run ({', '.join(missing)} missing); run the same demo again"
            " to finish it"
        )
    config = checkpoint.read_json(run / "config.json", {"task": str, "assets": dict})
    task = config["task"]
    home, shared = Path(assets) / folder_name(task), Path(assets) / shared_name(task)
    _require_same_start(run, config["assets"], home, shared)
    for name in FILES:
        if name.endswith(".json"):
            checkpoint.read_json(run / name)
    thresholds = checkpoint.read_json(run / "stages" / "reward.json", {"result": THRESHOLDS})
    recorded = load_trajectories(run / "rollouts.hdf5")
    if rollouts is not None:
        require_between("--rollouts", rollouts, 1, len(recorded))
    changes = {"world_model": changed_weights(shared / "world_model", run / "world_model")}
    for name in POLICIES:
        changes[name] = changed_weights(home / "policy", run / "policies" / name)
    checkpoint.load_tensors(run / "reward" / "model.safetensors")
    with whole_folder(home / "run") as target:
        for name in FILES:
            checkpoint.write_atomic(target / name, (run / name).read_bytes())
        if rollouts is not None:
            about = load_metadata(run / "rollouts.hdf5")
            save_trajectories(target / "rollouts.hdf5", recorded[:rollouts], **about)
            checkpoint.write_json(target / "config.json", config | {"kept_rollouts": rollouts})
        checkpoint.write_json(target / "reward.json", thresholds["result"])
        _copy_half(run / "reward", checkpoint.make_folder(target / "reward"))
        for name, tensors in changes.items():
            checkpoint.save_tensors(target / f"{name}.safetensors", tensors)
    return home / "run"


def _require_same_start(run: Path, began_with: dict, home: Path, shared: Path) -> None:
    """UserError unless a run began with the weights that are shipped. began_with: the beginnings of
    their checksums.
    """
    folders = {name: shared / name for name in ("autoencoder", "world_model")}
    folders["policy"] = home / "policy"
    weights = {n: folders[n] / "model.safetensors" for n in began_with if n in folders}
    found = {n: checkpoint.checksum(path)[:12] for n, path in weights.items() if path.is_file()}
    if found != began_with:
        raise UserError(
            f"{run} began with other weights than {home} holds; run the demo again with the shipped"
            " ones"
        )


def changed_weights(before: Path, after: Path) -> dict:
    """The weights of checkpoint `after` that differ from those of `before`, in half precision."""
    old, new = (checkpoint.load_tensors(folder / "model.safetensors") for folder in (before, after))
    if any(key not in old or old[key].shape != value.shape for key, value in new.items()):
        raise UserError(
            f"{after} holds another model than {before} (other names or shapes); run the demo again"
            " with the shipped one"
        )
    return {
        key: value.half()
        for key, value in new.items()
        if value.is_floating_point() and (value.float() != old[key].float()).any()
    }
