"""assets/results/main_job.json and libero.json, and the tables that the README shows from them."""

from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS, read_arrays
from wmpo_lite.evaluate import wilson_interval
from wmpo_lite.report.markdown import markdown

RESULTS = ASSETS / "results"
PATH = RESULTS / "main_job.json"
BUDGET = 128  # P of the README's runs, which have the plain names of these variants
NOT_ALIGNED, ALIGNED = "not aligned", "aligned on P and demonstrations"
# settings that change what is told of a run, not what is done
REPORTS = ("evaluation_", "track_", "trust_")
BOUND = {"task": str, "upper_bound_success": float}
RECORD = {
    "task": str,
    "seed": int,
    "profile": str,
    "n": int,
    **{f"{name}_success": float for name in ("base", "grpo", "dpo", "wmpo")},
}
PANEL = {
    "agreement": {"auc": float, "success_agreement": float, "failure_agreement": float},
    "auc_interval": [float],
    "valid_frames": float,
    "psnr": {"horizons": [int], "model": [float]},
    "sensitivity": {"shuffled_cost": float},
}
# apart from the run, and kept when it is replaced
MEASURED = ("upper_bound_success", "unet_ratio", "demo_ratio", "peak_ratio")


def collect(runs, folder: Path = RESULTS):
    """Add the records of finished run folders to main_job.json and, where the task is one of
    LIBERO's, to libero.json; one per task, budget and seed, newer ones replace older. Measures of
    the machine already stored are kept.

    An upper bound (a folder with upper_bound.json) is written into every record of its task.
    """
    new, bounds = [], []
    for run in map(Path, runs):
        if (run / "upper_bound.json").exists():
            bounds.append(checkpoint.read_json(run / "upper_bound.json", BOUND))
            _require_usual(run, bounds[-1].get("profile", "laptop"), bounds[-1]["task"])
            continue
        if not (run / "result.json").exists():
            raise UserError(
                f"{run} holds neither result.json nor upper_bound.json; run the same demo again to"
                " finish it"
            )
        new.append(checkpoint.read_json(run / "result.json", RECORD))
        _require_usual(run, new[-1]["profile"], new[-1]["task"])
    for name, libero in (("main_job.json", False), ("libero.json", True)):
        here = [[r for r in part if ("/" in r["task"]) == libero] for part in (new, bounds)]
        if not any(here):
            continue
        records = {_key(r): r for r in _stored(folder / name, {"task": str, "seed": int})}
        for r in here[0]:
            old = records.get(_key(r), {})
            kept = {key: old[key] for key in MEASURED if key in old}
            records[_key(r)] = kept | r | (of_the_suite(r["task"], folder) if libero else {})
        stored = {r["task"]: r for r in records.values() if "upper_bound_success" in r}
        known = stored | {bound["task"]: bound for bound in here[1]}
        for row in records.values():
            if row["task"] in known:
                row["upper_bound_success"] = known[row["task"]]["upper_bound_success"]
        checkpoint.write_json(folder / name, [records[key] for key in sorted(records)])


def _require_usual(run: Path, profile: str, task: str) -> None:
    """UserError for a run of another profile, or with settings that are not its profile's."""
    wanted = "libero" if "/" in task else "laptop"
    if profile != wanted:
        raise UserError(
            f"{run} was run with profile '{profile}'; only {wanted} runs are collected for its"
            " task, a smoke run proves nothing"
        )
    path = run / "config.json"
    changes = checkpoint.read_json(path).get("changes", {}) if path.exists() else {}
    if changed := sorted(name for name in changes if not name.startswith(REPORTS)):
        raise UserError(
            f"{run} was run with other settings than its profile's ({', '.join(changed)}), and is"
            " no row of this table; `wmpo-lite reproduce` keeps ablations apart"
        )


def _key(record: dict):
    shape = record["task"], record.get("rollout_budget", 0), record["seed"]
    return *shape, record.get("round", 1)


def _stored(path: Path, shape: dict) -> list[dict]:
    return checkpoint.read_json(path, [shape]) if path.exists() else []


def collect_panels(runs, folder: Path = RESULTS):
    """Add the trust panels of finished runs to world_model.json: the world model as pre-trained and
    as aligned, one record per task and variant; of runs with several seeds, seed 0. With another P
    than 128 the aligned one alone, whose variant says so: it is judged by another reward model.
    """
    path = folder / "world_model.json"
    stored = _stored(path, {"task": str, "variant": str})
    records = {(r["task"], r["variant"]): r for r in stored}
    for run in map(Path, runs):
        if not (run / "trust.json").exists():
            continue
        shape = {"n": int, **PANEL, "before_alignment": PANEL}
        trust = checkpoint.read_json(run / "trust.json", shape)
        shape = dict.fromkeys(("seed", "rollout_budget", "align_steps", "align_batch"), int)
        config = checkpoint.read_json(run / "config.json", {"task": str, **shape})
        usual, panels = config["rollout_budget"] == BUDGET, {}
        aligned = ALIGNED if usual else ALIGNED.replace("P", f"P = {config['rollout_budget']}")
        if config["seed"] and (config["task"], aligned) in records:
            continue
        weights = checkpoint.load_tensors(run / "world_model" / "model.safetensors")
        frames = 2 * config["align_steps"] * config["align_batch"]
        if usual:
            panels[NOT_ALIGNED] = trust["before_alignment"]
        panels[aligned] = trust
        for variant, panel in panels.items():
            records[config["task"], variant] = {
                "task": config["task"],
                "variant": variant,
                "n": trust["n"],
                **panel_record(panel),
                "parameters": sum(w.numel() for w in weights.values()),
                "frames": frames if variant == aligned else 0,
            }
    if records:
        checkpoint.write_json(path, [records[key] for key in sorted(records)])


def panel_record(panel: dict) -> dict:
    """One side of a trust panel (`trust.panel`) as the flat fields of world_model.json."""
    agreement, (low, high) = panel["agreement"], panel["auc_interval"]
    psnr = dict(zip(panel["psnr"]["horizons"], panel["psnr"]["model"]))
    return {
        "auc": agreement["auc"],
        "auc_low": low,
        "auc_high": high,
        "tpr": agreement["success_agreement"],
        "tnr": agreement["failure_agreement"],
        "psnr_8": psnr[8],
        "psnr_24": psnr[24],
        "psnr_end": panel["psnr"]["model"][-1],
        "shuffled_db": panel["sensitivity"]["shuffled_cost"],
        "valid_frames": panel["valid_frames"],
    }


FLAT = "auc auc_low auc_high tpr tnr psnr_8 psnr_24 psnr_end shuffled_db valid_frames".split()


def panel_table(path: Path = RESULTS / "world_model.json") -> str:
    """world_model.json as a Markdown table."""
    header = (
        "task|world model|n|AUC|true-positive / true-negative rate|PSNR after 8 / 24 / all frames"
        " (dB)|shuffled actions cost (dB)|valid frames"
    )
    cells = (
        "{task}|{variant}|{n}|{auc:.3f} [{auc_low:.3f}, {auc_high:.3f}]|{tpr:.2f} / {tnr:.2f}|"
        "{psnr_8:.1f} / {psnr_24:.1f} / {psnr_end:.1f}|{shuffled_db:.1f}|{valid_frames:.1f}"
    )
    shape = {"task": str, "variant": str, "n": int, **dict.fromkeys(FLAT, float)}
    records = checkpoint.read_json(path, [shape])
    return markdown(header.split("|"), [cells.format(**r).split("|") for r in records])


def of_the_suite(task: str, folder: Path) -> dict:
    """What tests/bench/bench_libero.py measured that a record of `task` names: how its expert
    fares, the simulator's speed and imagination's.
    """
    suite, _, number = task.partition("/")
    read = lambda name: (
        checkpoint.read_json(folder / name).get(suite, {}) if (folder / name).exists() else {}
    )
    expert, speed = read("libero_experts.json").get(number), read("libero_speed.json")
    more = {"suite": suite, "task_number": int(number)}
    if expert and expert["states"]:
        more["expert_success"] = expert["solved"] / expert["states"]
    if speed:
        more |= {"renderer_speedup": speed["fast_64"]["times_default"]}
    if "imagination" in speed:
        more["imagination_ratio"] = speed["imagination"]["ratio"]
    return more


def picture(run: Path, folder: Path = RESULTS.parent / "figures"):
    """The README's picture: real episodes (odd rows) above what the world model made of the same
    first frame and actions (even rows). Of `place` it is real_and_imagined.png in `folder`; other
    names say their task, or that it is one of LIBERO's.
    """
    from PIL import Image

    from wmpo_lite.report.show import film_rows, write_png

    films = run / "trust_films.npz"
    if not films.exists():
        raise UserError(
            f"{films} is missing; the run was stopped before its trust panel, run the same demo"
            " again to finish it"
        )
    data = read_arrays(films)
    if absent := sorted({"real", "imagined"} - set(data)):
        raise UserError(f"{films} lacks '{absent[0]}'; delete it and run the same demo again")
    grid = film_rows(zip(*(data[name][[0, 1, -2, -1]] for name in ("real", "imagined"))))
    size = [side * 3 // 2 for side in grid.shape[1::-1]]
    grid = Image.fromarray(grid).resize(size, Image.Resampling.NEAREST)
    task = checkpoint.read_json(run / "config.json", {"task": str})["task"]
    which = "_libero" if "/" in task else "" if task == "place" else f"_{task}"
    write_png(grid, Path(folder) / f"real_and_imagined{which}.png")


def table(path: Path = PATH) -> str:
    """The records of either file as a Markdown table; success in percent with 95 % Wilson
    intervals, the gain with its paired bootstrap interval.
    """
    figures = dict.fromkeys(("gain", "gain_low", "gain_high", "agreement_auc"), float)
    rate = lambda p, n: "{:.1f} [{:.0f}, {:.0f}]".format(
        100 * p, *(100 * x for x in wilson_interval(round(p * n), n))
    )
    rows = []
    for r in checkpoint.read_json(path, [{**RECORD, **figures, "rollout_budget": int}]):
        gain = (100 * r[key] for key in ("gain", "gain_low", "gain_high"))
        rows.append(
            [
                *(r[key] for key in ("task", "seed", "rollout_budget", "n")),
                *(rate(r[f"{name}_success"], r["n"]) for name in ("base", "grpo", "dpo", "wmpo")),
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*gain),
                f"{r['agreement_auc']:.3f}",
            ]
        )
    header = "task|seed|P|n|base|online GRPO|DPO|WMPO|WMPO - base|AUC"
    return markdown(header.split("|"), rows)


SPEEDS = {
    "default": "LIBERO as it comes (128 px, 2 views)",
    "official_128_wrist": "128 px, 2 views, official look",
    "fast_128_wrist": "128 px, 2 views",
    "fast_128": "128 px",
    "smooth_64": "64 px, antialiased",
    "fast_64": "64 px",
    "fast_64_two_workers": "64 px, 2 workers",
    "per_policy_step_64": "64 px, a frame a policy step",
}


def speed_table(path: Path = RESULTS / "libero_speed.json") -> str:
    """What tests/bench/bench_libero.py measured: rendered simulator steps a second by suite and
    look (how many times LIBERO's default), then imagination.
    """
    row = {"steps_s": float, "times_default": float}
    suite = {
        **dict.fromkeys(SPEEDS, row),
        "imagination": dict.fromkeys(("simulator_frames_s", "frames_s", "ratio"), float),
    }
    found = checkpoint.read_json(path)
    found = checkpoint.read_json(
        path, {name: suite for name, value in found.items() if isinstance(value, dict)}
    )
    suites = [value for value in found.values() if isinstance(value, dict)]
    names = [name for name, value in found.items() if isinstance(value, dict)]
    speed = "{steps_s:.0f} ({times_default:.1f} x)"
    rows = [[words, *(speed.format(**s[look]) for s in suites)] for look, words in SPEEDS.items()]
    for key, words in (
        (
            "simulator_frames_s",
            "**frames of policy steps a second**: simulator, 64 px, all workers",
        ),
        ("frames_s", "the same, imagined and judged"),
        ("ratio", "imagination, times the simulator"),
    ):
        rows.append([words, *(f"{s['imagination'][key]:.3g}" for s in suites)])
    return markdown(["rendered simulator steps a second", *names], rows)


def scale_table(path: Path = RESULTS / "scale.json") -> str:
    """What tests/bench/bench_scale.py measured: a line for each measurement, then what they say
    together.
    """
    row = {"part": str, "what": str, "machine": str, "device": str, "threads": int}
    found = checkpoint.read_json(path, {"rows": [row], "exponents": dict, "gpu_run": bool})
    gib = lambda row: f", {row['peak_bytes'] / 2**30:.2f} GiB" if row["peak_bytes"] else ""
    describe = {
        "imagination": lambda r: (
            f"imagination of {r['batch']} x {r['horizon']} frames,"
            f" {r['parameters'] / 1e6:.1f} M parameters",
            f"{r['frames_s']:.0f} frames/s{gib(r)}",
        ),
        "budget": lambda r: (
            f"{r['budget']} imagined episodes of {r['horizon']} steps, with the policy",
            f"{r['seconds']:.1f} s{gib(r)}",
        ),
        "backbone update": lambda r: (
            f"GRPO update of {r['trajectories']} trajectories, backbone of"
            f" {r['parameters'] / 1e6:.0f} M, LoRA of {r['trained'] / 1e6:.1f} M",
            f"{r['seconds']:.0f} s{gib(r)}",
        ),
        "two processes": lambda r: (
            f"two processes against one, {r['training']}",
            f"{r['ratio']:.2f} times as fast",
        ),
    }
    choice = lambda r: (
        f"{r['what']}, {r['choice']}",
        f"{r['times_as_fast']:.2f} times as fast{gib(r)}",
    )
    lines = [describe.get(r["what"], choice)(r) for r in found["rows"]]
    lines += [
        (f"seconds grow as {name} to the power", f"{k:.2f}")
        for name, k in found["exponents"].items()
    ]
    for name, form in (("two_rank_ratio", "{:.2f}"), ("two_rank_error", "{:.1e}")):
        value = found.get(name)
        lines.append((name, "not measured" if value is None else form.format(value)))
    lines.append(("gpu_run", str(found["gpu_run"]).lower()))
    return markdown(["measured", ""], lines)
