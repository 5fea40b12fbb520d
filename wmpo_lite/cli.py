"""The command line, `wmpo-lite`: one small class a command."""

import dataclasses
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wmpo_lite.arms.settings import Settings
from wmpo_lite.common.errors import LARGEST_SEED, UserError, require_between
from wmpo_lite.common.machine import Compute, choose_device, processes
from wmpo_lite.recipes.profiles import Profile

# Every number of a profile is a flag, too; None leaves it as the profile has it.
Overrides = dataclasses.make_dataclass(
    "Overrides",
    [
        (field.name, field.type | None, None)
        for field in dataclasses.fields(Profile)
        if field.name not in ("track_real", "evaluation_states")  # these have a flag with help
    ],
    frozen=True,
)
Numbers = tyro.conf.OmitArgPrefixes[Overrides]


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
    profile: str = "laptop"  # smoke (minutes, for tests), laptop or gpu
    seed: int = 0
    rollout_budget: int = 128  # P: real rollouts of the task after cloning
    name: str = ""  # folder under runs/; by default task, profile, seed and P
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
        from wmpo_lite.recipes.workspace import ASSETS, REWARD_CLIPS, Run, run_folder

        if self.from_scratch:
            require_one_process("--from-scratch")
        assets = Path("runs") / "assets" if self.from_scratch else ASSETS
        changes = changed(self.settings) | ({} if self.track_real else {"track_real": False})
        if self.evaluation_states is not None:
            changes["evaluation_states"] = self.evaluation_states
        run = Run(
            task=self.task,
            profile=self.profile,
            seed=self.seed,
            rollout_budget=self.rollout_budget,
            assets=str(assets),
            changes=changes,
        )
        settings, _ = run.settings(), get_task(self.task)
        online = min(settings.online_groups, self.rollout_budget // settings.online_group_size)
        parallel.require_work(min(settings.groups, online), "groups (--groups, --online-groups)")
        parallel.require_work(settings.align_batch, "windows (--align-batch)")
        parallel.require_work(REWARD_CLIPS, "clips of a reward model's batch")
        return run, run_folder(
            self.name
            or f"{folder_name(self.task)}-{self.profile}-p{self.rollout_budget}-s{self.seed}"
        )


@dataclass(frozen=True)
class Config:
    """Print all numbers of a run as JSON, without running it."""

    profile: str = "laptop"
    settings: Numbers = Overrides()

    def __call__(self):
        from wmpo_lite.recipes.workspace import Run

        run = Run(profile=self.profile, changes=changed(self.settings))
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
    device: str = "auto"  # auto, cuda, mps or cpu; auto: the first of these that is here

    def __call__(self):
        from wmpo_lite.recipes.pretrain import install_assets
        from wmpo_lite.recipes.workspace import ASSETS

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
    name: str = ""  # folder under runs/
    device: str = "auto"  # auto, cuda, mps or cpu; auto: the first of these that is here

    def __call__(self):
        from wmpo_lite.envs.tasks import folder_name
        from wmpo_lite.recipes.upper_bound import upper_bound
        from wmpo_lite.recipes.workspace import Run, run_folder

        upper_bound(
            Run(task=self.task, seed=self.seed),
            run_folder(self.name or f"{folder_name(self.task)}-upper-s{self.seed}"),
            self.iterations,
            self.device,
        )


@dataclass(frozen=True)
class Doctor:
    """Check the installation, and a run if one is named; with --libero, LIBERO instead."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    libero: bool = False
    """which LIBERO is installed, which suites have files, which stored states hold their premise"""
    suites: tuple[str, ...] = ()  # of LIBERO's table; all five by default
    states: int = 10  # stored initial states of each task that the table covers; 0 measures none
    cache: Path = Path("runs")  # folder that keeps what is measured for the table

    def __call__(self):
        from wmpo_lite.report import doctor

        with suppress(ImportError, OSError):  # a torch that cannot be loaded is what it reports
            from wmpo_lite.train import set_threads

            set_threads()
        if self.libero:
            sys.exit(doctor.libero(self.suites, self.states, self.cache))
        sys.exit(doctor.main(self.run))


@dataclass(frozen=True)
class Results:
    """Collect the records of finished runs (demos and upper bounds) into assets/results.

    Prints the README's tables from there.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    picture: Path | None = None
    """also make the README's picture of real and imagined episodes from this run"""

    def __call__(self):
        from wmpo_lite.report import results

        if self.runs:
            results.collect(self.runs)
            results.collect_panels(self.runs)
        if self.picture:
            results.picture(self.picture)
        tables = [
            results.table(path)
            for path in (results.PATH, results.RESULTS / "libero.json")
            if path.exists()
        ]
        panels = results.RESULTS / "world_model.json"
        tables += [results.panel_table(panels)] if panels.exists() else []
        tables += [results.speed_table()]
        if (results.RESULTS / "scale.json").exists():
            tables.append(results.scale_table())
        print("\n\n".join(tables))


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


@dataclass(frozen=True)
class Ship:
    """Copy a finished run into assets/<task>/run, where the notebooks find it."""

    run: Annotated[Path, tyro.conf.Positional]
    rollouts: int | None = None  # keep only so many of the recorded rollouts

    def __call__(self):
        from wmpo_lite.recipes.shipped import ship_run

        print(ship_run(self.run, rollouts=self.rollouts))


@dataclass(frozen=True)
class Convert:
    """Write recorded episodes as HDF5 (a target that ends in .hdf5), as a Minari data set (one that
    ends in -v0) or as a LeRobot v3.0 folder.

    The source is HDF5 of the kit, LIBERO or robomimic, or such a folder. Actions, states and
    pictures stay exactly as they are.
    """

    source: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]
    camera: str | None = None
    """whose pictures are the frames, where a LeRobot folder has several"""
    pictures: Literal["before", "after"] | None = None
    """whether a frame is from before or after the action beside it, where an HDF5 file does not
    tell"""
    success: bool | None = None
    """of all episodes, where a LeRobot folder does not tell"""
    fps: int | None = None
    """control steps a second, where an HDF5 file does not tell"""
    observations: tuple[str, ...] | None = None
    """arrays beside the frames that are kept; by default all"""
    partial: bool = False
    """read what can be read of a LeRobot recording that was killed"""

    def __call__(self):
        from wmpo_lite.datagen.convert import convert

        options = dict(vars(self))
        made = convert(options.pop("source"), options.pop("target"), **options)
        kept = ", ".join(made["observations"]) or "none"
        print(
            f"{self.target}: {made['episodes']} episodes, {made['steps']} steps,"
            f" {made['successes']} successes; arrays beside the frames: {kept}"
        )


@dataclass(frozen=True)
class Deploy(Settings):
    """Let a policy move an arm: a simulated one, an SO-101 on a serial port, or an emulated one.

    Every episode is recorded under runs/.
    """

    def __call__(self):
        from wmpo_lite.arms.session import main as deploy
        from wmpo_lite.train import set_threads

        set_threads()  # as all who compute
        sys.exit(deploy(self))


@dataclass(frozen=True)
class Release:
    """Make the students' notebooks of the exercises, their zip, and those with solutions."""

    out: Path = Path("build/release")

    def __call__(self):
        from wmpo_lite.course.sheets import release

        for path in release(self.out):
            print(path)


@dataclass(frozen=True)
class Grade:
    """Grade a folder of submissions: notebooks, or a folder of notebooks for each student.

    Writes grades.csv and, for Gradescope, a JSON file for each student.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    out: Path = Path("build/grades")
    only: tuple[str, ...] = ()
    """exercises whose names begin so, such as 05 or 05.mask; by default those of all sheets that
    somebody handed in"""
    seed: int | None = None
    """of the hidden inputs; drawn by default, and printed"""

    def __call__(self):
        from wmpo_lite.course.grading import grade_folder

        if self.seed is not None:
            require_between("--seed", self.seed, 0, LARGEST_SEED)
        grade_folder(self.folder, self.out, self.only, self.seed)


COMMANDS = {
    "demo": Demo,
    "config": Config,
    "plan": Plan,
    "assets": Assets,
    "upper-bound": UpperBound,
    "doctor": Doctor,
    "results": Results,
    "reproduce": Reproduce,
    "ship": Ship,
    "convert": Convert,
    "deploy": Deploy,
    "release": Release,
    "grade": Grade,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `wmpo-lite`.

    A UserError, or whatever a disk refuses, becomes one line on standard error and exit status 1.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # closed, or replaced by something simpler
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only
    try:
        try:
            command = (sys.argv[1:] if arguments is None else arguments)[:1]
            if command != ["demo"]:
                require_one_process("the command line but for `demo`")
            tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="wmpo-lite")()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # now, while there is somebody to tell of a full disk
    except UserError as error:
        _end(1, error)
    except BrokenPipeError:  # whoever read what is printed has seen enough
        _end(1)
    except OSError as error:
        from wmpo_lite.common.files import explain

        _end(1, explain(error))
    except KeyboardInterrupt:
        _end(130, "stopped; run the same command again to go on")


def require_one_process(what: str) -> None:
    """UserError where several processes were started: each would do, and write, the same."""
    if processes() > 1:
        raise UserError(
            f"{what} runs as one process and {processes()} were started; start it without a"
            " launcher"
        )


def _end(status: int, said=None):
    """Leave with one line on standard error.

    What standard output could not take is dropped, or the interpreter would complain once more.
    """
    if said is not None:
        with suppress(OSError):
            print(f"wmpo-lite: {said}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:
        pass
    sys.exit(status)


if __name__ == "__main__":
    main()
