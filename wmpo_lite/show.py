"""Pictures, films and plots of episodes and results.

A film is uint8 (T, H, W, 3). The film functions return films (or one image), `to_mp4` / `to_gif` turn them into bytes,
`video_html` and `image_html` into self-contained HTML for a notebook (`IPython.display.HTML(video_html(film))`) or a
report. The plots return a matplotlib Figure without touching pyplot's global state. Heavy libraries are imported where
they are used, so importing this module costs nothing.
"""
import base64
import html
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wmpo_lite.errors import UserError

SUCCESS, FAILURE, NEUTRAL = (34, 150, 87), (205, 62, 70), (190, 194, 201)  # RGB of borders; labels say it in words too
COLOURS = {"base": "#8d949e", "grpo": "#d98a2b", "dpo": "#8a6bb0", "wmpo": "#1f6fb4"}
NAMES = {"base": "base", "grpo": "online GRPO", "dpo": "offline DPO", "wmpo": "WMPO"}
LABEL_HEIGHT, BORDER, GAP = 20, 4, 8  # pixels


def check_film(frames) -> np.ndarray:
    """`frames` as an array, if it is a film: uint8 (T, H, W, 3) with T >= 1. Raises UserError otherwise."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise UserError("a film is a uint8 array (T, H, W, 3) with at least one frame; "
                        f"got {frames.dtype} {frames.shape}")
    return frames


def policy_colour(name: str) -> str:
    return COLOURS.get(name, "#4f9d8f")


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    if scale < 1 or int(scale) != scale:
        raise UserError(f"scale is {scale}; expected a whole number, 1 or more, by which each pixel is enlarged")
    return frames.repeat(int(scale), axis=-3).repeat(int(scale), axis=-2)


def _write_text(canvas: np.ndarray, text: str, top: int, left: int, width: int) -> None:
    """Draw one line of text into canvas (H, W, 3) in place; what does not fit into `width` pixels ends in dots."""
    from PIL import Image, ImageDraw, ImageFont
    font = ImageFont.load_default(size=13)
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text = text.rstrip() + "..."
    area = Image.fromarray(canvas[top:top + LABEL_HEIGHT, left:left + width])
    ImageDraw.Draw(area).text((0, LABEL_HEIGHT // 2), text, fill=(35, 38, 43), font=font, anchor="lm")
    canvas[top:top + LABEL_HEIGHT, left:left + width] = np.asarray(area)


def film_grid(films: Sequence, labels: Sequence[str] | None = None, *, columns: int | None = None, scale: int = 2,
              success: Sequence[bool | None] | None = None) -> np.ndarray:
    """Films of one picture size (H, W) in a grid with `columns` columns (default: about square): uint8 (T, H', W', 3).

    A shorter film holds its last frame until the longest ends. labels: a line of text above each; success: the border
    of each, green for True, red for False, grey for None or without `success`. scale enlarges every pixel. Raises
    UserError where lengths or sizes disagree.
    """
    films = [check_film(film) for film in films]
    if not films or len({film.shape[1:] for film in films}) != 1:
        raise UserError("films to be shown together need one picture size and at least one film; "
                        f"got {[film.shape for film in films]}")
    for name, values in (("labels", labels), ("success", success)):
        if values is not None and len(values) != len(films):
            raise UserError(f"{len(films)} films were given {len(values)} {name}; expected one each")
    columns = min(columns or int(np.ceil(np.sqrt(len(films)))), len(films))
    films = [_enlarge(film, scale) for film in films]
    length, (height, width) = max(map(len, films)), films[0].shape[1:3]
    bar = LABEL_HEIGHT if labels is not None else 0
    cell_height, cell_width = bar + height + 2 * BORDER, width + 2 * BORDER
    rows = -(-len(films) // columns)
    page = np.full((rows * (cell_height + GAP) - GAP, columns * (cell_width + GAP) - GAP, 3), 255, np.uint8)
    corners = [((i // columns) * (cell_height + GAP), (i % columns) * (cell_width + GAP)) for i in range(len(films))]
    for i, (top, left) in enumerate(corners):
        outcome = None if success is None else success[i]
        colour = NEUTRAL if outcome is None else SUCCESS if outcome else FAILURE
        page[top + bar:top + cell_height, left:left + cell_width] = colour
        if labels is not None:
            _write_text(page, str(labels[i]), top, left, cell_width)
    grid = np.repeat(page[None], length, axis=0)
    for film, (top, left) in zip(films, corners):
        film = np.concatenate([film, film[-1:].repeat(length - len(film), axis=0)])
        grid[:, top + bar + BORDER:top + bar + BORDER + height, left + BORDER:left + BORDER + width] = film
    return grid


def side_by_side(films: Sequence, labels: Sequence[str] | None = None, scale: int = 3,
                 success: Sequence[bool | None] | None = None) -> np.ndarray:
    """Films in one row (real beside imagined, before beside after): film uint8 (T, H', W', 3). See `film_grid`."""
    return film_grid(films, labels, columns=max(1, len(films)), scale=scale, success=success)


def film_strip(frames, every: int = 8, scale: int = 2) -> np.ndarray:
    """Every n-th frame of a film and its last one in a row, each under its frame number: image uint8 (H', W', 3)."""
    frames = check_film(frames)
    if every < 1:
        raise UserError(f"every is {every}; expected 1 or more")
    steps = sorted({*range(0, len(frames), every), len(frames) - 1})
    return side_by_side([frames[step][None] for step in steps], [str(step) for step in steps], scale)[0]


def to_mp4(frames, fps: float = 5, crf: int = 24) -> bytes:
    """A film as MP4 (H.264, yuv420p), which every browser plays; the same film gives the same bytes.

    Odd sizes are padded by one pixel. crf: 0 (lossless) to 51; 24 is small and looks clean. yuv420p halves the
    resolution of colour: enlarge small films first.
    """
    import imageio_ffmpeg
    frames = check_film(frames)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    # Untagged colours are guessed at by each player; one thread and no encoder tags make the bytes reproducible.
    colours = ["-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", "-color_primaries", "bt709",
               "-color_trc", "bt709"]
    options = ["-crf", str(crf), "-preset", "medium", "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact",
               "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        writer = imageio_ffmpeg.write_frames(str(path), (frames.shape[2], frames.shape[1]), fps=fps, codec="libx264",
                                             quality=None, pix_fmt_out="yuv420p", macro_block_size=1,
                                             ffmpeg_log_level="error",
                                             output_params=colours + options)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        if not path.is_file() or not path.stat().st_size:
            raise UserError("ffmpeg wrote no film (its message stands above); "
                            "check that imageio-ffmpeg is installed with its binary")
        return path.read_bytes()


def to_gif(frames, fps: float = 5) -> bytes:
    """A film as an endlessly repeated GIF with one palette of 256 colours for all frames (so that nothing flickers)."""
    from PIL import Image
    frames = check_film(frames)
    sample = frames[np.unique(np.linspace(0, len(frames) - 1, 16).astype(int))]
    palette = Image.fromarray(sample.reshape(-1, *sample.shape[2:])).quantize(256, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0,
                     optimize=False)
    return buffer.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def mp4_html(data: bytes, alt: str = "film") -> str:
    """MP4 bytes as an HTML <video> that carries its data with it."""
    return (f'<video controls autoplay loop muted playsinline aria-label="{html.escape(alt)}" '
            f'src="{_data_uri(data, "video/mp4")}"></video>')


def video_html(frames, fps: float = 5, alt: str = "film") -> str:
    """A film as an HTML <video> that carries its data with it: `IPython.display.HTML(video_html(film))`."""
    return mp4_html(to_mp4(frames, fps), alt)


def image_html(image, alt: str = "picture") -> str:
    """An image uint8 (H, W, 3) or a matplotlib Figure as an HTML <img> that carries its data with it."""
    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        image.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    else:
        from PIL import Image
        Image.fromarray(check_film(np.asarray(image)[None])[0]).save(buffer, "PNG", optimize=True)
    return f'<img alt="{html.escape(alt)}" src="{_data_uri(buffer.getvalue(), "image/png")}">'


# ---------------------------------------------------------------------------------------------------------------- plots

def _figure(width: float, height: float):
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _clean(axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _say(axes, text: str) -> None:
    """A panel without data says so, instead of showing empty axes."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="#777")


def ordered_policies(evaluation: dict) -> list[str]:
    """Names of the evaluated policies that have outcomes, base first, WMPO last of the four, then any others."""
    policies = evaluation.get("policies") or {}
    names = [*(name for name in COLOURS if name in policies), *(name for name in policies if name not in COLOURS)]
    return [name for name in names if policies[name].get("success")]


def success_bars(evaluation: dict):
    """Figure: success of each policy of an evaluation.json with 95 % Wilson intervals. Raises UserError without any."""
    from wmpo_lite.evaluate import success_rate
    names = ordered_policies(evaluation)
    if not names:
        raise UserError("the evaluation holds no policy with outcomes; "
                        "expected {'policies': {'base': {'success': [true, ...]}, ...}}")
    rates = [success_rate(evaluation["policies"][name]["success"]) for name in names]
    figure = _figure(1.6 + 1.25 * len(names), 3.4)
    axes = figure.subplots()
    values = 100 * np.array([rate.rate for rate in rates])
    low, high = (100 * np.array([getattr(rate, side) for rate in rates]) for side in ("low", "high"))
    axes.bar(range(len(names)), values, width=0.62, color=[policy_colour(name) for name in names])
    # Rounding may leave a bound a hair on the wrong side at 0 and 100 %, which errorbar refuses.
    axes.errorbar(range(len(names)), values, np.maximum(0, [values - low, high - values]), fmt="none", ecolor="#23262b",
                  capsize=4, lw=1.2)
    for i, rate in enumerate(rates):
        axes.text(i, high[i] + 1, f"{values[i]:.1f} %", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(names)), [f"{NAMES.get(name, name)}\n{rate.successes} of {rate.n}"
                                        for name, rate in zip(names, rates)])
    axes.set_ylim(0, min(112, max(20, 1.25 * high.max())))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 100])
    axes.grid(axis="y", color="#e6e8eb", lw=0.7)
    axes.set_axisbelow(True)
    _clean(axes, "Success in the real environment, 95 % intervals", y="success (%)")
    return figure


def _series(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the finite values under `key`."""
    pairs = [(record["step"], record[key]) for record in records
             if isinstance(record.get(key), (int, float)) and np.isfinite(record[key])]
    return tuple(np.array(pairs, dtype=float).reshape(-1, 2).T)


def _curve(axes, records, key: str, colour: str, label: str, factor: float = 1.0) -> None:
    """The values, pale, under their running mean (at most 9 records): single iterations are noisy."""
    x, y = _series(records, key)
    width = min(9, len(y) // 5)
    if width < 2:
        axes.plot(x, factor * y, color=colour, lw=1.6, marker="o" if len(y) < 4 else None, ms=4,
                  label=label if len(y) else None)
        return
    half = width // 2
    mean = [y[max(0, i - half):i + half + 1].mean() for i in range(len(y))]
    axes.plot(x, factor * y, color=colour, lw=0.9, alpha=0.35)
    axes.plot(x, factor * np.array(mean), color=colour, lw=1.8, label=label)


def learning_curves(records: Sequence[dict]):
    """Figure: what the policy updates did (stages wmpo, grpo) and the loss of every other stage, from metrics.jsonl.

    Success is the share of the iteration's sampled trajectories: imagined ones for WMPO, real ones for online GRPO.
    """
    stages: dict[str, list[dict]] = {}
    for record in records:
        if "stage" in record and "step" in record:
            stages.setdefault(record["stage"], []).append(record)
    if not stages:
        raise UserError("the metrics hold no record with a stage and a step, so there is no curve to draw")
    updates = [name for name in ("wmpo", "grpo") if name in stages]
    fits = [name for name in stages if name not in updates and len(_series(stages[name], "loss")[0])]
    panels = (4 if updates else 0) + len(fits)
    if not panels:
        raise UserError(f"the stages {sorted(stages)} of the metrics hold no loss and no success, "
                        "so there is no curve to draw")
    columns = min(4, panels) if panels != 5 else 3
    rows = -(-panels // columns)
    figure = _figure(max(2.9 * columns, 3.4), 2.6 * rows)
    figure.get_layout_engine().set(h_pad=0.1)
    flat = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in flat[panels:]:
        axes.set_axis_off()
    if updates:
        for name in updates:
            label = {"wmpo": "WMPO (imagined)", "grpo": "online GRPO (real)"}[name]
            _curve(flat[0], stages[name], "success", COLOURS[name], label, 100)
            _curve(flat[1], stages[name], "entropy", COLOURS[name], NAMES[name])
            _curve(flat[2], stages[name], "approx_kl", COLOURS[name], NAMES[name])
        flat[0].set_ylim(0, 100)
        flat[2].set_ylim(bottom=min(0, flat[2].get_ylim()[0]))
        if flat[0].lines:
            flat[0].legend(fontsize=7, frameon=False, loc="upper left")
        for axes, title in zip(flat, ("Success of sampled trajectories (%)", "Policy entropy (nats a token)",
                                      "Approximate KL to the sampler")):
            _clean(axes, title, "iteration")
        _group_fates(flat[3], stages[updates[0]], NAMES[updates[0]])
    for axes, name in zip(flat[4 if updates else 0:], fits):
        _curve(axes, stages[name], "loss", "#4b5563", "loss")
        _clean(axes, f"Loss: {name}", "step")
    return figure


def _group_fates(axes, records, name: str) -> None:
    """Stacked areas: which groups of trajectories taught something, and why the others did not (dynamic sampling)."""
    fates = {"kept": ("kept", "#1f6fb4"), "all_success": ("all succeed", "#7cc49b"),
             "all_failure": ("all fail", "#e39a9f"),
             "out_of_range": ("out of range", "#c9ccd2")}
    x = _series(records, "kept")[0]
    if not len(x):
        return _say(axes, "groups: not recorded")
    known = [record for record in records if record.get("kept") is not None]
    shares = np.array([[float(record.get(key) or 0) for record in known] for key in fates])
    axes.stackplot(x, shares, labels=[label for label, _ in fates.values()],
                   colors=[colour for _, colour in fates.values()])
    axes.set_ylim(0, 1.35 * max(1.0, shares.sum(axis=0).max()))  # room for the legend
    axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    _clean(axes, f"Groups of trajectories ({name})", "iteration")


def trust_plot(trust: dict):
    """Figure of six panels: can the imagination be trusted? From trust.json, all measured on held-out real rollouts.

    PSNR by horizon against repeating the last known frame; PSNR under true, shuffled and zero actions; F1 of the reward
    model on real and imagined video; imagined score by real outcome; its ROC curve; the confusion matrix at the
    threshold. A missing part says so in its panel.
    """
    figure = _figure(10.5, 6.2)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    panels = figure.subplots(2, 3)
    drawings = ((_psnr_panel, "PSNR by horizon"), (_sensitivity_panel, "Sensitivity to actions"),
                (_f1_panel, "Reward model F1"),
                (_scores_panel, "Imagined scores"), (_roc_panel, "ROC curve"), (_confusion_panel, "Confusion matrix"))
    for axes, (draw, title) in zip(panels.flat, drawings):
        try:
            draw(axes, trust)
        except (KeyError, TypeError, ValueError):  # absent, null, or of another shape
            axes.clear()
            _say(axes, f"{title}: not recorded")
    return figure


def _psnr_panel(axes, trust):
    curves = trust["psnr"]
    for key, label, colour in (("model", "world model", COLOURS["wmpo"]),
                               ("copy_last", "last known frame repeated", COLOURS["base"])):
        axes.plot(curves["horizons"], np.array(curves[key], float), marker="o", ms=4, color=colour, label=label)
    axes.set_xticks(curves["horizons"])
    axes.legend(fontsize=8, frameon=False)
    axes.grid(color="#eceef0", lw=0.7)
    _clean(axes, "How long does it stay true?", "imagined frames", "PSNR (dB)")


def _bars(axes, labels, values, colours, form: str, limits: tuple[float, float]):
    axes.bar(range(len(values)), values, width=0.6, color=colours)
    axes.set_xticks(range(len(values)), labels)
    axes.set_ylim(*limits)
    for i, value in enumerate(values):
        axes.text(i, value, form.format(value), ha="center", va="bottom", fontsize=8)


def _sensitivity_panel(axes, trust):
    part = trust["sensitivity"]
    values = np.array([part[key] for key in ("true", "shuffled", "zero")], float)
    labels = ["true\nactions"] + [f"{key}\n({part[key + '_cost']:.1f} dB worse)" if part[key + "_cost"] >= 0
                                  else f"{key}\n(no worse)"
                                  for key in ("shuffled", "zero")]
    _bars(axes, labels, values, [COLOURS["wmpo"], COLOURS["base"], COLOURS["base"]], "{:.1f}", (0, 1.15 * values.max()))
    _clean(axes, "Does it listen to the actions?", y="PSNR (dB)")


def _f1_panel(axes, trust):
    videos = (("real\nvideo", "reward_f1_real"), ("imagined\nvideo", "reward_f1_imagined"))
    known = [(name, float(trust[key])) for name, key in videos if trust.get(key) is not None]
    if not known:
        raise KeyError("reward_f1_real")
    names, values = zip(*known)
    _bars(axes, names, values, ["#5a9bd0", COLOURS["wmpo"]][:len(known)], "{:.2f}", (0, 1.12))
    axes.set_yticks(np.linspace(0, 1, 6))
    _clean(axes, "Does the judge see success?", y="F1 of the reward model")


def _scores_panel(axes, trust):
    scores, real = np.array(trust["scores"], float), np.array(trust["real"], bool)
    if scores.shape != real.shape:
        raise KeyError("scores")
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(scores))
    colours = np.where(real, "#229657", "#cd3e46")
    axes.scatter(real + jitter, scores, s=13, c=colours, alpha=0.65, linewidths=0)
    if trust.get("threshold") is not None:
        axes.axhline(trust["threshold"], color="#23262b", lw=1, ls="--")
        axes.text(0.5, trust["threshold"], "threshold", fontsize=7, ha="center", va="bottom")
    axes.set_xticks([0, 1], [f"real failures\n({(~real).sum()})", f"real successes\n({real.sum()})"])
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(-0.04, 1.06)
    _clean(axes, "Same actions, imagined", y="score in imagination")


def _roc_panel(axes, trust):
    scores, real = np.array(trust["scores"], float), np.array(trust["real"], bool)
    axes.plot([0, 1], [0, 1], color="#c9ccd2", lw=1, ls="--")
    if real.any() and not real.all() and scores.shape == real.shape:
        levels = np.concatenate([[np.inf], np.unique(scores)[::-1]])
        false_alarms, hits = (np.array([(scores[group] >= level).mean() for level in levels])
                              for group in (~real, real))
        axes.plot(false_alarms, hits, color=COLOURS["wmpo"], lw=1.8)
        axes.fill_between(false_alarms, hits, color=COLOURS["wmpo"], alpha=0.08, lw=0)
    auc = (trust.get("agreement") or {}).get("auc")
    if auc is not None:
        axes.text(0.96, 0.06, f"AUC {auc:.3f}", ha="right", fontsize=11)
    axes.set_aspect("equal")
    _clean(axes, "Does it rank outcomes rightly?", "false alarms", "successes recognised")


def _confusion_panel(axes, trust):
    counts = np.array(trust["agreement"]["confusion"], int).reshape(2, 2)  # [real][imagined]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    for i in range(2):
        for j in range(2):
            axes.text(j, i, f"{counts[i, j]}\n{100 * shares[i, j]:.0f} %", ha="center", va="center", fontsize=10,
                      color="white" if shares[i, j] > 0.6 else "#23262b")
    axes.set_xticks([0, 1], ["failure", "success"])
    axes.set_yticks([0, 1], ["failure", "success"], rotation=90, va="center")
    _clean(axes, "Does it judge outcomes rightly?", "imagined", "real")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
