"""Films, plots and the report of a small made-up run: what can be read back, what is said when
something is missing.
"""

import dataclasses
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.evaluate import agreement
from wmpo_lite.report import plots, show
from wmpo_lite.report import write as report
from wmpo_lite.report.run_files import read_metrics

POLICIES = {"base": 0.31, "grpo": 0.36, "dpo": 0.33, "wmpo": 0.55}


def moving_square(frames: int, size: int, seed: int) -> np.ndarray:
    """A film uint8 (frames, size, size, 3) of a red square that wanders over a table."""
    rng = np.random.default_rng(seed)
    film = np.full((frames, size, size, 3), (205, 196, 180), np.uint8)
    x, y = rng.integers(0, size - size // 4, 2)
    for frame in film:
        frame[y : y + size // 4, x : x + size // 4] = (200, 40, 40)
        x, y = np.clip([x, y] + rng.integers(-1, 2, 2), 0, size - size // 4)
    return film


def make_run(folder, *, films=2, frames=9, size=16, states=64, iterations=12, film=moving_square):
    """Every file of a run folder, in the sizes asked for."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(
        folder / "config.json",
        {
            "task": "place",
            "profile": "smoke",
            "seed": 0,
            "rollout_budget": 128,
            "horizon": frames - 1,
            "chunk": 8,
            "grpo": {"group_size": 8, "lr": 3e-4},
        },
    )
    luck = rng.random(states)
    outcomes = {
        name: luck + 0.2 * rng.random(states) < rate + 0.1 for name, rate in POLICIES.items()
    }
    checkpoint.write_json(
        folder / "evaluation.json",
        {
            "n": states,
            "policies": {
                name: {"success": won.tolist(), "finish_step": np.where(won, 20, 40).tolist()}
                for name, won in outcomes.items()
            },
            "comparisons": {},
            "length_ratio": {"wmpo": 94.6},
            "instruction_swap": {"n": 100, "as_said": 0.31, "swapped_follows_new": 0.28},
        },
    )
    real = rng.random(states) < 0.4
    scores = np.clip(np.where(real, 0.8, 0.2) + 0.2 * rng.normal(size=states), 0, 1)
    found = agreement(real, scores, 0.5)
    checkpoint.write_json(
        folder / "trust.json",
        {
            "n": states,
            "psnr": {
                "horizons": [8, 16, 32, 40],
                "model": [29.1, 26.8, 24.9, 24.1],
                "copy_last": [22.0, 20.4, 18.8, 18.3],
            },
            "sensitivity": {
                "true": 26.1,
                "shuffled": 21.9,
                "zero": 20.8,
                "delayed": 23.0,
                "shuffled_cost": 4.2,
                "zero_cost": 5.3,
                "delayed_cost": 3.1,
            },
            "before_alignment": {"agreement": {"auc": 0.7012, "success_agreement": 0.432}},
            "valid_frames": 21.34,
            "agreement": dataclasses.asdict(found),
            "reward_f1_real": 0.968,
            "reward_f1_imagined": 0.91,
            "threshold": 0.5,
            "scores": scores.tolist(),
            "real": real.tolist(),
        },
    )
    clips = [np.stack([film(frames, size, 10 * k + i) for i in range(films)]) for k in range(4)]
    words = np.array(["put the red cube on the plate"] * films)
    flags = [np.arange(films) % 2 == k for k in (0, 1)]
    np.savez_compressed(
        folder / "trust_films.npz",
        real=clips[0],
        imagined=clips[1],
        real_success=flags[0],
        scores=np.linspace(0.9, 0.1, films),
        instructions=words,
    )
    np.savez_compressed(
        folder / "episodes.npz",
        before=clips[2],
        after=clips[3],
        before_success=flags[1],
        after_success=flags[0],
        instructions=words,
    )
    records = [
        {"stage": stage, "step": 50 * i, "loss": float(np.exp(-i / 8))}
        for stage in ("align", "reward", "dpo")
        for i in range(1, 9)
    ]
    for stage, length in (("grpo", max(2, iterations // 8)), ("wmpo", iterations)):
        for i in range(length):
            fates = rng.multinomial(16, [0.6, 0.1, 0.2, 0.1])
            records.append(
                {
                    "stage": stage,
                    "step": i + 1,
                    "success": 0.3 + 0.3 * i / iterations + 0.05 * rng.normal(),
                    "entropy": 2.0 - i / iterations,
                    "approx_kl": 0.01 + 0.002 * rng.random(),
                    "clip_fraction": 0.05,
                    "seconds": 9.5,
                    "valid_fraction": 0.7,
                    **dict(
                        zip(("kept", "all_success", "all_failure", "out_of_range"), fates.tolist())
                    ),
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    checkpoint.write_json(folder / "stages" / "align.json", {"result": {}, "seconds": 61.5})
    checkpoint.write_json(
        folder / "seen.json",
        {
            "base": {"demonstrations": [32, 1312], "rollouts": None, "play": None},
            "world_model": {
                "demonstrations": [32, 1312],
                "rollouts": [128, 5248],
                "play": [7104, 348096],
            },
        },
    )
    checkpoint.write_json(
        folder / "result.json",
        {
            "task": "place",
            "seed": 0,
            "n": states,
            "gain": 0.24,
            "versions": {"torch": "2.13.0"},
            "commit": "abc123",
        },
    )
    return folder


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "place_0")


def decode(data: bytes, folder) -> tuple[dict, np.ndarray]:
    import imageio_ffmpeg

    path = folder / "film.mp4"
    path.write_bytes(data)
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    return facts, np.stack(
        [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    )


# ------------------------------------------------------------------------------------------- films


def test_side_by_side_places_films_borders_and_labels():
    films = [np.full((3, 4, 6, 3), 10, np.uint8), np.full((5, 4, 6, 3), 200, np.uint8)]
    page = show.side_by_side(films, ["real", "imagined"], scale=3, success=[True, False])
    bar, edge, gap = show.LABEL_HEIGHT, show.BORDER, show.GAP
    cell = 18 + 2 * edge
    assert page.dtype == np.uint8 and page.shape == (5, bar + 12 + 2 * edge, 2 * cell + gap, 3)
    assert (page[:, bar + edge : -edge, edge : edge + 18] == 10).all()
    assert (page[:, bar + edge : -edge, cell + gap + edge : -edge] == 200).all()
    assert (page[:, bar : bar + edge, :cell] == show.SUCCESS).all()
    assert (page[:, bar : bar + edge, cell + gap :] == show.FAILURE).all()
    assert (page[:, :, cell : cell + gap] == 255).all()
    assert (page[:, :bar, :cell] < 255).any() and (
        page[:, :bar, :cell] != page[:, :bar, cell + gap :]
    ).any()


def test_a_shorter_film_holds_its_last_frame_and_borders_are_gray_without_an_outcome():
    short, long = moving_square(2, 8, 0), moving_square(6, 8, 1)
    page = show.film_grid([short, long], columns=1, scale=1)
    edge = show.BORDER
    assert (page[2:, edge : edge + 8, edge : edge + 8] == short[-1]).all()
    assert (page[:, -edge - 8 : -edge, edge : edge + 8] == long).all() and (
        page[:, :edge, :8] == show.NEUTRAL
    ).all()


def test_film_grid_counts_rows_and_enlarges_each_pixel():
    films = [moving_square(2, 8, i) for i in range(5)]
    page = show.film_grid(films, columns=3, scale=2)
    cell = 16 + 2 * show.BORDER
    assert page.shape == (2, 2 * cell + show.GAP, 3 * cell + 2 * show.GAP, 3)
    assert (
        page[:, cell + show.GAP :, 2 * (cell + show.GAP) :] == 255
    ).all()  # the sixth place is empty
    inner = page[:, show.BORDER : show.BORDER + 16, show.BORDER : show.BORDER + 16]
    assert (inner[:, ::2, ::2] == films[0]).all() and (inner[:, 1::2, 1::2] == films[0]).all()


def test_long_labels_stay_inside_their_film():
    films = [np.zeros((1, 20, 20, 3), np.uint8)] * 2
    page = show.side_by_side(films, ["a label much longer than the picture below it", ""], scale=1)
    assert (page[:, : show.LABEL_HEIGHT, 20 + 2 * show.BORDER :] == 255).all()


def test_film_strip_takes_every_nth_frame_and_the_last():
    film = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    strip = show.film_strip(film, every=5, scale=2)
    cell = 16 + 2 * show.BORDER
    assert strip.shape == (show.LABEL_HEIGHT + cell, 4 * cell + 3 * show.GAP, 3)
    assert [
        int(strip[-show.BORDER - 1, i * (cell + show.GAP) + cell // 2, 0]) for i in range(4)
    ] == [0, 5, 10, 11]


@pytest.mark.parametrize(
    "call",
    [
        lambda film: show.side_by_side([film.astype(float)], ["a"]),
        lambda film: show.side_by_side([film[0]], ["a"]),
        lambda film: show.side_by_side([film[:0]], ["a"]),
        lambda film: show.side_by_side([film, film[:, :4]], ["a", "b"]),
        lambda film: show.side_by_side([film], ["a", "b"]),
        lambda film: show.side_by_side([film], ["a"], success=[True, False]),
        lambda film: show.side_by_side([film], ["a"], scale=0),
        lambda film: show.side_by_side([], []),
        lambda film: show.film_strip(film, every=0),
        lambda film: show.to_mp4(film[..., :1]),
    ],
)
def test_wrong_films_are_refused_in_one_sentence(call):
    with pytest.raises(UserError) as error:
        call(moving_square(3, 8, 0))
    assert "\n" not in str(error.value)


def test_mp4_is_h264_yuv420p_with_even_sides_and_the_same_pictures(tmp_path):
    film = show.side_by_side([moving_square(7, 15, 0)], ["one"], success=[True])[:, :-1]
    assert film.shape[1] % 2 or film.shape[2] % 2
    data = show.to_mp4(film, fps=5)
    facts, decoded = decode(data, tmp_path)
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p") and facts["fps"] == 5
    assert decoded.shape[1] % 2 == 0 and decoded.shape[2] % 2 == 0 and len(decoded) == 7
    error = np.abs(decoded[:, : film.shape[1], : film.shape[2]].astype(int) - film)
    assert error.mean() < 6
    assert data == show.to_mp4(film, fps=5)


def test_gif_keeps_frames_colors_and_speed():
    from PIL import Image

    film = show.side_by_side([moving_square(6, 8, 3)], ["one"], success=[False])
    picture = Image.open(io.BytesIO(show.to_gif(film, fps=4)))
    times = []
    for i in range(picture.n_frames):
        picture.seek(i)
        times.append(picture.info["duration"])
    assert sum(times) == 6 * 250 and picture.info["loop"] == 0
    picture.seek(0)
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - film[0]).max() < 24


def test_html_carries_its_data():
    video = show.video_html(moving_square(3, 8, 0), alt='a "film"')
    assert (
        video.startswith("<video ")
        and 'src="data:video/mp4;base64,' in video
        and "&quot;film&quot;" in video
    )
    assert 'src="data:image/png;base64,' in show.image_html(moving_square(1, 8, 0)[0])


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_show_is_light():
    heavy = ("matplotlib", "torch", "scipy", "PIL", "imageio_ffmpeg")
    assert (
        run_python(
            "import sys, wmpo_lite.report.show, wmpo_lite.report.plots; "
            f"print([name for name in {heavy} if name in sys.modules])"
        )
        == "[]"
    )


# ------------------------------------------------------------------------------------------- plots


def test_success_bars_show_rates_and_wilson_intervals():
    figure = plots.success_bars(
        {
            "policies": {
                "wmpo": {"success": [True] * 6 + [False] * 4},
                "base": {"success": [False] * 10},
            }
        }
    )
    axes = figure.axes[0]
    assert [patch.get_height() for patch in axes.patches] == [0, 60]  # base first
    assert (
        "60.0 %" in [text.get_text() for text in axes.texts]
        and "6 of 10" in axes.get_xticklabels()[1].get_text()
    )
    segments = axes.collections[0].get_segments()
    assert segments[1][:, 1] == pytest.approx([31.27, 83.18], abs=0.01)
    with pytest.raises(UserError):
        plots.success_bars({"policies": {}})


def test_learning_curves_draw_what_was_recorded(full_run):
    figure = plots.learning_curves(read_metrics(full_run / "metrics.jsonl"))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert (
        titles[4:7] == ["Loss: align", "Loss: reward", "Loss: dpo"] and len(titles) == 8
    )  # the eighth place is empty
    only_fit = plots.learning_curves(
        [
            {"stage": "align", "step": 1, "loss": 0.5},
            {"stage": "align", "step": 2, "loss": float("nan")},
        ]
    )
    assert len(only_fit.axes) == 1 and list(only_fit.axes[0].lines[0].get_ydata()) == [0.5]
    for nothing in ([], [{"stage": "align", "step": 1}], [{"step": 1}]):
        with pytest.raises(UserError):
            plots.learning_curves(nothing)


def test_success_in_the_real_environment_is_drawn_with_its_intervals():
    imagined = [{"stage": "wmpo", "step": i, "success": 0.5, "entropy": 1.0} for i in range(1, 8)]
    assert not plots.learning_curves(imagined).axes[0].containers
    real = [
        {"stage": "real", "step": step, "success": rate, "n": 10}
        for step, rate in ((0, 0.0), (7, 0.6))
    ]
    axes = plots.learning_curves(imagined + real).axes[0]
    line, _, (bars,) = axes.containers[0]
    assert line.get_xdata().tolist() == [0, 7] and line.get_ydata().tolist() == [0, 60]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([0, 27.75], abs=0.01), pytest.approx([31.27, 83.18], abs=0.01)]
    assert "WMPO, greedy (real)" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_kind_of_wrong_actions_that_was_measured_has_a_bar(full_run):
    trust = checkpoint.read_json(full_run / "trust.json")
    axes = plots.trust_plot(trust).axes[1]
    assert [patch.get_height() for patch in axes.patches] == [26.1, 21.9, 20.8, 23.0]
    assert [label.get_text() for label in axes.get_xticklabels()][3] == "delayed\n(3.1 dB worse)"
    del trust["sensitivity"]["delayed"]
    fewer = plots.trust_plot(trust).axes[1]
    assert [patch.get_height() for patch in fewer.patches] == [26.1, 21.9, 20.8]


def test_trust_plot_says_which_parts_are_missing(full_run):
    trust = checkpoint.read_json(full_run / "trust.json")
    words = lambda figure: " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    full = words(plots.trust_plot(trust))
    assert "not recorded" not in full and f"AUC {trust['agreement']['auc']:.3f}" in full
    assert words(plots.trust_plot({})).count("not recorded") == 6
    del trust["sensitivity"]
    assert words(plots.trust_plot(trust)).count("not recorded") == 1
    one_class = {**trust, "real": [True] * len(trust["real"])}
    show.image_html(plots.trust_plot(one_class))  # no ROC curve, and no crash


def test_the_roc_curve_spans_the_area_of_the_auc():
    rng = np.random.default_rng(1)
    real, scores = rng.random(200) < 0.4, rng.integers(0, 20, 200) / 20  # with ties
    scores = np.clip(scores + 0.2 * real, 0, 1)
    axes = plots.trust_plot({"scores": scores, "real": real}).axes[4]
    x, y = axes.lines[1].get_data()
    assert np.trapezoid(y, x) == pytest.approx(agreement(real, scores, 0.5).auc)


def test_the_methods_picture_stresses_the_boxes_of_a_notebook():
    from matplotlib.patches import FancyBboxPatch

    def widths(figure):
        patches = figure.axes[0].patches
        return [patch.get_linewidth() for patch in patches if isinstance(patch, FancyBboxPatch)]

    assert len(set(widths(plots.method_loop()))) == 1
    stressed = widths(plots.method_loop("world", "judge"))
    assert sorted(stressed)[-2:] == [max(stressed)] * 2 > sorted(stressed)[-4:-2]
    with pytest.raises(UserError, match="no box 'wrold'"):
        plots.method_loop("wrold")


def test_a_diagram_of_shapes_says_every_step_within_the_picture():
    rows = [[("image", (2, 64, 64, 3)), ("tower", (2, 64, 96))], [("words", "7 numbers")]]
    figure = plots.shape_diagram(rows)
    figure.canvas.draw()
    texts = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert set(texts) == {"image", "2x64x64x3", "tower", "2x64x96", "words", "7 numbers"}
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in texts.values())
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 for box in texts.values())


def test_every_word_of_the_methods_picture_stays_in_its_box_and_in_the_picture():
    from matplotlib.patches import FancyBboxPatch

    figure = plots.method_loop()
    figure.canvas.draw()
    axes, page = figure.axes[0], figure.bbox
    boxes = [
        patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)
    ]
    words = [text.get_window_extent() for text in axes.texts]
    inside = lambda small, large: (
        large.x0 <= small.x0
        and small.x1 <= large.x1
        and large.y0 <= small.y0
        and small.y1 <= large.y1
    )
    assert (
        len(boxes) == 9
        and all(inside(text, box) for text, box in zip(words, boxes))
        and all(inside(text, page) for text in words)
    )
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_plots_leave_no_global_state(tmp_path):
    code = (
        "import sys; from wmpo_lite.report import plots; plots.success_bars({'policies': {'base':"
        " {'success': [True, False]}}}).savefig(sys.argv[1]); print('matplotlib.pyplot' in"
        " sys.modules)"
    )
    assert run_python(code, str(tmp_path / "bars.png")) == "False"


# ------------------------------------------------------------------------------------------ report


def outside(page: str) -> list[str]:
    """Addresses the page would fetch: every src, href and url() that carries no data of its own."""
    return [
        address
        for address in re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)""", page)
        if not any(part.startswith("data:") for part in address)
    ]


def test_a_full_run_gives_a_self_contained_report(full_run):
    path = report.write_report(full_run)
    page = path.read_text()
    assert path == full_run / "report.html" and len(page) < 6e6
    assert outside(page) == [] and "<script" not in page and "@import" not in page
    assert "missing" not in page and "incomplete" not in page
    assert page.count("<video ") == 4 and page.count("<img ") == 3
    evaluation = checkpoint.read_json(full_run / "evaluation.json")
    rate = 100 * np.mean(evaluation["policies"]["wmpo"]["success"])
    assert (
        f"<b>{rate:.1f}&nbsp;%</b> of 64 held-out initial states" in page
        and "128 real rollouts" in page
    )
    for words in (
        "WMPO against offline DPO",
        "put the red cube on the plate",
        "94.6",
        "abc123",
        "2.13.0",
        "31.0 % [22.8, 40.6] (n=100)",
        "Time of each stage",
    ):
        assert words in page
    values = dict(re.findall(r"<tr><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td>", page))
    assert values["AUC before alignment"] == "0.701"
    assert values["Real successes imagined as successes, before alignment"] == "0.43"
    assert values["Frames until a thing is off by its own width (mean)"] == "21.3"
    assert values["Cost of shuffled actions (dB)"] == "4.2"
    assert "WMPO: its world model" in page and "7,104 episodes, 348,096 frames" in page
    assert not list(full_run.glob("*.part"))
    assert report.write_report(full_run).read_text() == page  # the same run gives the same report


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are made but not drawn, which takes most of a report's time."""
    monkeypatch.setattr(show, "image_html", lambda image, alt="": f'<img alt="{alt}">')


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics.jsonl",
        "trust.json",
        "trust_films.npz",
        "evaluation.json",
        "episodes.npz",
        "result.json",
        "seen.json",
    ],
)
def test_a_truncated_file_is_named_and_the_rest_is_shown(tmp_path, undrawn, name):
    run = make_run(tmp_path / "run", films=1, frames=2, states=8)
    (run / name).write_bytes((run / name).read_bytes()[:20])
    page = report.write_report(run).read_text()
    assert "This run is incomplete" in page and f"<li>{name} " in page and page.count("<li>") == 1


def test_an_empty_run_is_reported_and_no_run_is_refused(tmp_path):
    page = report.write_report(tmp_path).read_text()
    assert "No result yet" in page and page.count("<li>") == 8 and outside(page) == []
    with pytest.raises(UserError, match="not a run folder"):
        report.write_report(tmp_path / "nowhere")


def headline(tmp_path, base, wmpo):
    checkpoint.write_json(
        tmp_path / "evaluation.json",
        {"policies": {"base": {"success": base}, "wmpo": {"success": wmpo}}},
    )
    return re.search(
        r'class="headline">(.*?)</p>', report.write_report(tmp_path).read_text()
    ).group(1)


def test_the_headline_claims_no_more_than_the_interval(tmp_path, undrawn):
    lost, won, mixed = [False] * 40, [True] * 20 + [False] * 20, [True] * 2 + [False] * 38
    gain = headline(tmp_path, lost, won)
    assert "+50.0 points [" in gain and "zero" not in gain and "loss" not in gain
    assert "That is a loss" in headline(tmp_path, won, lost)
    assert "does not show a difference" in headline(tmp_path, lost, mixed)
    assert "no paired interval" in headline(tmp_path, lost, won[:30])


def test_metrics_survive_a_kill_and_a_resume(tmp_path):
    lines = [
        '{"stage": "wmpo", "step": 1, "success": 0.1}',
        '{"stage": "wmpo", "step": 2, "success": 0.2}',
        '{"stage": "wmpo", "step": 2, "success": 0.3}',
        "[1]",
        '{"stage": "wmpo", "st',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [record["success"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [
        0.1,
        0.3,
    ]
    with pytest.raises(UserError):
        read_metrics(tmp_path / "none.jsonl")


def test_words_from_a_run_cannot_become_markup(tmp_path, undrawn):
    run = make_run(tmp_path / "run", films=1, frames=2, states=8)
    checkpoint.write_json(
        run / "config.json", {"task": "<script>alert(1)</script>", "note": {"<b>": "<i>"}}
    )
    page = report.write_report(run).read_text()
    assert "<script" not in page and "<i>" not in page


def test_films_stop_at_the_byte_budget_and_say_so(tmp_path, undrawn, monkeypatch):
    run = make_run(tmp_path / "run", films=3, frames=3, states=8)
    monkeypatch.setattr(report, "FILM_BYTES", 2 * len(show.to_mp4(moving_square(3, 64, 0))))
    page = report.write_report(run).read_text()
    assert page.count("<video ") < 6 and "films were left out" in page
