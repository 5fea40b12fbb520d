"""The command line, `wmpo-lite`: one small class a command."""

import io
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wmpo_lite.arms.settings import Settings
from wmpo_lite.common.errors import LARGEST_SEED, UserError, require_between
from wmpo_lite.common.machine import require_one_process
from wmpo_lite.run_commands import Assets, Config, Demo, Plan, Reproduce, UpperBound


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
        if isinstance(stream, io.TextIOWrapper):  # not replaced by something simpler
            with suppress(ValueError):  # closed
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
