"""The commands that train: a run, what it would take, what ships, what the paper claims."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wmpo_lite.common.errors import LARGEST_SEED, UserError, require_between
from wmpo_lite.common.machine import Compute, choose_device, require_one_process
from wmpo_lite.recipes.profiles import Profile

# Every number of a profile is a flag, too; None leaves it as the profile has it.
Overrides = dataclasses.make_dataclass(
    "Overrides",
    [
        (field.name, field.type | None, None)  # pyright: ignore[reportOperatorIssue]
        for field in dataclasses.fields(Profile)
        if field.name not in ("track_real", "evaluation_states")  # these have a flag with help
    ],
    frozen=True,
)
Numbers = tyro.conf.OmitArgPrefixes[Overrides]
Preset = Annotated[str, tyro.conf.arg(aliases=["--preset"])]


def changed(overrides) -> dict:
    """What was asked for, by name."""
    return {key: value for key, value in vars(overrides).items() if value is not None}


@dataclass(frozen=True)
class Demo:
    """Run the whole method once.

    P real rollouts, alignment, reward model, trust panel, GRPO in imagination, baselines,
    evaluation, report.
    """

    task: str = "place"
    profile: Preset = "laptop"  # smoke (minutes, for tests), laptop or gpu
    seed: int = 0
    rollout_budget: int = 128  # P: real rollouts of the task after cloning
    name: str = ""  # folder under runs/; by default task, profile, seed and P
    after: Path | None = None
    """folder of a finished run: the next round begins with its WMPO policy and learns from its
    rollouts, too"""
    from_scratch: bool = False  # train the shipped assets anew first (hours)
    track_real: bool = True
    """try the policy in the simulator as it learns: outside the budget, nothing is chosen by it"""
    evaluation_states: int | None = None
    """held-out initial states of the last stage; by default the profile's number"""
    device: str = "auto"  # auto, cuda, mps or cpu; auto: the first of these that is here
    compute: tyro.conf.OmitArgPrefixes[Compute] = Compute()
    settings: Numbers = Overrides()

    def __call__(self):
        from wmpo_lite.common import parallel
        from wmpo_lite.recipes.main_job import main_job

        parallel.start(choose_device(self.device).type)
        run, folder = parallel.first(self._checked)
        if self.from_scratch:
            train_assets(Path(run.assets), self.seed, self.profile, self.device)
        main_job(run, folder, self.device, self.compute)
        parallel.stop()

    def _checked(self):
        """The run and its folder, once all that can be known to be wrong has been looked at."""
        from wmpo_lite.common import parallel
        from wmpo_lite.envs.tasks import folder_name, get_task
        from wmpo_lite.recipes.rounds import finished
        from wmpo_lite.recipes.workspace import ASSETS, REWARD_CLIPS, Run, run_folder, trained_by

        if self.from_scratch:
            require_one_process("--from-scratch")
            if "/" in self.task:
                raise UserError(
                    "--from-scratch trains the assets of the table-top; train those of"
                    f" '{self.task}' with {trained_by(self.task)}"
                )
        assets = Path("runs") / "assets" if self.from_scratch else ASSETS
        changes = changed(self.settings) | ({} if self.track_real else {"track_real": False})
        if self.evaluation_states is not None:
            changes["evaluation_states"] = self.evaluation_states
        earlier = {}
        if self.after is not None:
            found = finished(self.after, self.task)
            earlier = {"after": str(self.after), "round": found.round + 1}
            earlier["recorded_before"] = found.recorded
        # a number said that P gives anyway changes nothing
        sizes = {"profile": self.profile, "rollout_budget": self.rollout_budget}
        plain = vars(Run(**sizes, **earlier).settings())
        kept = lambda name: name == "evaluation_states" or changes[name] != plain[name]
        changes = {name: changes[name] for name in changes if kept(name)}
        run = Run(
            task=self.task,
            seed=self.seed,
            assets=str(assets),
            changes=changes,
            **sizes,
            **earlier,
        )
        settings, _ = run.settings(), get_task(self.task)
        online = min(settings.online_groups, self.rollout_budget // settings.online_group_size)
        parallel.require_work(min(settings.groups, online), "groups (--groups, --online-groups)")
        parallel.require_work(settings.align_batch, "windows (--align-batch)")
        parallel.require_work(REWARD_CLIPS, "clips of a reward model's batch")
        return run, run_folder(
            self.name
            or f"{folder_name(self.task)}-{self.profile}-p{self.rollout_budget}-s{self.seed}"
            + (f"-round-{run.round}" if earlier else "")
        )


@dataclass(frozen=True)
class Config:
    """Print all numbers of a preset, and of what is changed of it, as JSON, without running it."""

    profile: Preset = "laptop"  # smoke, laptop or gpu
    rollout_budget: int = 128  # P: the more rollouts, the more steps of the fits to them
    settings: Numbers = Overrides()

    def __call__(self):
        from wmpo_lite.recipes.workspace import Run

        changes = changed(self.settings)
        run = Run(profile=self.profile, rollout_budget=self.rollout_budget, changes=changes)
        print(json.dumps(dataclasses.asdict(run.settings()), indent=1))


@dataclass(frozen=True)
class Plan:
    """Print parameters, memory, FLOP and time of every stage, counted without running it.

    By default on the hardware that the preset is meant for; time is FLOP over cards, rate and
    utilization, which are assumptions. Memory is that of one card that holds a whole model.
    """

    preset: str = "paper"  # paper, gpu or laptop
    cards: int | None = None
    tflops: float | None = None  # peak of one card, 10^12 FLOP a second
    utilization: float | None = None  # share of the peak that is reached
    micro_batch: int = 1  # examples that a card learns from at a time
    horizon: int | None = None  # control steps of an episode
    iterations: int | None = None  # of GRPO

    def __call__(self):
        from wmpo_lite.recipes import plan

        sizes = plan.preset(self.preset)
        asked = lambda *names: {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        sizes = dataclasses.replace(sizes, **asked("horizon", "iterations"))
        hardware = dataclasses.replace(
            plan.HARDWARE[self.preset], **asked("cards", "tflops", "utilization")
        )
        plan.check(hardware, self.micro_batch)
        print(plan.describe(plan.stages(sizes), hardware, self.micro_batch))


@dataclass(frozen=True)
class Assets:
    """Train what is shipped in assets/ anew, into runs/assets, and copy it over."""

    seed: int = 0
    profile: str = "laptop"
    only: str | None = None
    """a task: make its policy and demonstrations, and leave the rest as it is"""
    suite: str | None = None
    """a suite of LIBERO: train what its tasks share, and the policies of --tasks"""
    tasks: tuple[int, ...] = (0,)  # numbers of tasks of the suite
    device: str = "auto"  # auto, cuda, mps or cpu; auto: the first of these that is here

    def __call__(self):
        from wmpo_lite.common.owner import Owner
        from wmpo_lite.recipes.pretrain import install_assets
        from wmpo_lite.recipes.pretrain_libero import install_suite, make_suite
        from wmpo_lite.recipes.workspace import ASSETS

        if self.suite is not None:
            if self.only is not None:
                raise UserError("--only is for the table-top; with --suite give --tasks")
            require_between("--seed", self.seed, 0, LARGEST_SEED)
            folder = Path("runs") / "assets"
            how = {"seed": self.seed, "profile": self.profile, "device": self.device}
            with Owner(folder):
                make_suite(folder, self.suite, self.tasks, **how)
            install_suite(folder, ASSETS, self.suite)
            return
        train_assets(Path("runs") / "assets", self.seed, self.profile, self.device, self.only)
        install_assets(Path("runs") / "assets", ASSETS, self.only)


def train_assets(folder: Path, seed: int, profile: str, device: str, only: str | None = None):
    """`make_assets`, by one process at a time."""
    from wmpo_lite.common.owner import Owner
    from wmpo_lite.recipes.pretrain import PRETRAINING, make_assets

    require_between("--seed", seed, 0, LARGEST_SEED)
    choose_device(device)
    if profile not in PRETRAINING:
        raise UserError(f"profile '{profile}' is unknown; use one of {', '.join(PRETRAINING)}")
    with Owner(folder):
        make_assets(folder, seed=seed, profile=profile, device=device, only=only)


@dataclass(frozen=True)
class UpperBound:
    """GRPO in the simulator with as many rollouts as it likes.

    It tells what the policy could learn if the world model were perfect.
    """

    task: str = "place"
    seed: int = 0
    iterations: int = 40
    evaluation_states: int | None = None
    """held-out initial states; by default the profile's number"""
    name: str = ""  # folder under runs/
    device: str = "auto"  # auto, cuda, mps or cpu; auto: the first of these that is here

    def __call__(self):
        from wmpo_lite.envs.tasks import folder_name
        from wmpo_lite.recipes.upper_bound import upper_bound
        from wmpo_lite.recipes.workspace import Run, run_folder

        n = self.evaluation_states
        changes = {} if n is None else {"evaluation_states": n}
        upper_bound(
            Run(task=self.task, seed=self.seed, changes=changes),
            run_folder(self.name or f"{folder_name(self.task)}-upper-s{self.seed}"),
            self.iterations,
            self.device,
        )


@dataclass(frozen=True)
class Reproduce:
    """Make the missing cells of the paper's claims in miniature, and tables and figures from all.

    A cell is named like table_1/place-wmpo-p128-s0; a beginning of names chooses all that have it.
    Without names: every cell of the tasks that do not wait for something (hours; see --dry-run).
    """

    cells: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    dry_run: bool = False
    """say what is missing and what it costs, and do nothing"""
    tables: bool = False
    """make no cell, only tables and figures from those that are there"""
    enter: Annotated[tuple[Path, ...], tyro.conf.arg(name="from")] = ()
    """finished runs whose results become cells; then nothing is run"""
    jobs: int = 1  # processes at a time, which share the cores
    profile: str = "laptop"  # smoke, laptop or gpu; other ones than laptop need a ledger of theirs
    ledger: Path | None = None  # folder of the cells; by default assets/results/ledger
    picture: Literal["slip", "offset", "early_closing", "collision"] | None = None
    """only make assets/figures/recovery.png: episodes after this error"""
    device: str = "auto"  # auto, cuda, mps or cpu; auto: the first of these that is here

    def __call__(self):
        from wmpo_lite.recipes import cells, reproduce

        book = cells.Book(
            **{"folder": self.ledger} if self.ledger else {},
            profile=self.profile,
            device=self.device,
        )
        choose_device(self.device)
        if self.dry_run:
            print(reproduce.describe(book, self.cells))
            return
        if self.picture:
            print(reproduce.picture(self.picture, book))
            return
        for folder in self.enter:
            for key in cells.enter(folder, book):
                print(f"{folder}: {key}")
        if not (self.tables or self.enter):
            reproduce.reproduce(self.cells, book, self.jobs)
        print(reproduce.publish(book))
