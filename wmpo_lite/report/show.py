"""Pictures and films of episodes.

A film is uint8 (T, H, W, 3). The film functions return films (or one image), `to_mp4` / `to_gif`
turn them into bytes, `video_html` and `image_html` into self-contained HTML for a notebook
(`IPython.display.HTML(video_html(film))`) or a report. Heavy libraries are imported where they are
used, so importing this module costs nothing.
"""

import base64
import html
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import write_atomic

# RGB of borders; labels say it in words too
SUCCESS, FAILURE, NEUTRAL = ((34, 150, 87), (205, 62, 70), (190, 194, 201))
LABEL_HEIGHT, BORDER, GAP = 20, 4, 8  # pixels


def check_film(frames) -> np.ndarray:
    """`frames` as an array, if it is a film: uint8 (T, H, W, 3) with T >= 1. Raises UserError
    otherwise.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise UserError(
            "a film is a uint8 array (T, H, W, 3) with at least one frame; "
            f"got {frames.dtype} {frames.shape}"
        )
    return frames


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    if scale < 1 or int(scale) != scale:
        raise UserError(
            f"scale is {scale}; expected a whole number, 1 or more, by which each pixel is enlarged"
        )
    return frames.repeat(int(scale), axis=-3).repeat(int(scale), axis=-2)


def _write_text(canvas: np.ndarray, text: str, top: int, left: int, width: int) -> None:
    """Draw one line of text into canvas (H, W, 3) in place; what does not fit into `width` pixels
    ends in dots.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text = text.rstrip() + "..."
    area = Image.fromarray(canvas[top : top + LABEL_HEIGHT, left : left + width])
    ImageDraw.Draw(area).text(
        (0, LABEL_HEIGHT // 2), text, fill=(35, 38, 43), font=font, anchor="lm"
    )
    canvas[top : top + LABEL_HEIGHT, left : left + width] = np.asarray(area)


def film_grid(
    films: Sequence,
    labels: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    scale: int = 2,
    success: Sequence[bool | None] | None = None,
) -> np.ndarray:
    """Films of one picture size (H, W) in a grid with `columns` columns (default: about square):
    uint8 (T, H', W', 3).

    A shorter film holds its last frame until the longest ends. labels: a line of text above each;
    success: the border of each, green for True, red for False, gray for None or without `success`.
    scale enlarges every pixel. Raises UserError where lengths or sizes disagree.
    """
    films = [check_film(film) for film in films]
    if not films or len({film.shape[1:] for film in films}) != 1:
        raise UserError(
            "films to be shown together need one picture size and at least one film; "
            f"got {[film.shape for film in films]}"
        )
    for name, values in (("labels", labels), ("success", success)):
        if values is not None and len(values) != len(films):
            raise UserError(
                f"{len(films)} films were given {len(values)} {name}; expected one each"
            )
    columns = min(columns or int(np.ceil(np.sqrt(len(films)))), len(films))
    films = [_enlarge(film, scale) for film in films]
    length, (height, width) = max(map(len, films)), films[0].shape[1:3]
    bar = LABEL_HEIGHT if labels is not None else 0
    cell_height, cell_width = bar + height + 2 * BORDER, width + 2 * BORDER
    rows = -(-len(films) // columns)
    size = rows * (cell_height + GAP) - GAP, columns * (cell_width + GAP) - GAP
    page = np.full((*size, 3), 255, np.uint8)
    corners = [
        ((i // columns) * (cell_height + GAP), (i % columns) * (cell_width + GAP))
        for i in range(len(films))
    ]
    for i, (top, left) in enumerate(corners):
        outcome = None if success is None else success[i]
        color = NEUTRAL if outcome is None else SUCCESS if outcome else FAILURE
        page[top + bar : top + cell_height, left : left + cell_width] = color
        if labels is not None:
            _write_text(page, str(labels[i]), top, left, cell_width)
    grid = np.repeat(page[None], length, axis=0)
    for film, (top, left) in zip(films, corners):
        y, x = top + bar + BORDER, left + BORDER
        film = np.concatenate([film, film[-1:].repeat(length - len(film), axis=0)])
        grid[:, y : y + height, x : x + width] = film
    return grid


def side_by_side(
    films: Sequence,
    labels: Sequence[str] | None = None,
    scale: int = 3,
    success: Sequence[bool | None] | None = None,
) -> np.ndarray:
    """Films in one row (real beside imagined, before beside after): film uint8 (T, H', W', 3). See
    `film_grid`.
    """
    return film_grid(films, labels, columns=max(1, len(films)), scale=scale, success=success)


def film_strip(frames, every: int = 8, scale: int = 2) -> np.ndarray:
    """Every n-th frame of a film and its last one in a row, each under its frame number: image
    uint8 (H', W', 3).
    """
    frames = check_film(frames)
    if every < 1:
        raise UserError(f"every is {every}; expected 1 or more")
    steps = sorted({*range(0, len(frames), every), len(frames) - 1})
    return side_by_side([frames[[step]] for step in steps], [str(step) for step in steps], scale)[0]


# Of crf 0 (lossless) to 51, 24 is small and looks clean. Untagged colors are guessed at by each
# player; one thread and no encoder tags make the bytes reproducible.
ENCODER = (
    "-crf 24 -preset medium -threads 1 -fflags +bitexact -flags:v +bitexact -movflags +faststart"
    " -vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709"
)


def to_mp4(frames, fps: float = 5) -> bytes:
    """A film as MP4 (H.264, yuv420p), which every browser plays; the same film gives the same
    bytes.

    Odd sizes are padded by one pixel. yuv420p halves the resolution of color: enlarge small films
    first.
    """
    import imageio_ffmpeg

    frames = check_film(frames)
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.ascontiguousarray(np.pad(frames, ((0, 0), *odd, (0, 0)), mode="edge"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path),
            frames.shape[2:0:-1],
            fps=fps,
            codec="libx264",
            quality=None,
            pix_fmt_out="yuv420p",
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=ENCODER.split(),
        )
        writer.send(None)
        for frame in frames:
            writer.send(frame)
        writer.close()
        if not path.is_file() or not path.stat().st_size:
            raise UserError(
                "ffmpeg wrote no film (its message stands above); "
                "check that imageio-ffmpeg is installed with its binary"
            )
        return path.read_bytes()


def to_gif(frames, fps: float = 5) -> bytes:
    """A film as an endlessly repeated GIF with one palette of 256 colors for all frames (so that
    nothing flickers).
    """
    from PIL import Image

    frames = check_film(frames)
    sample = frames[np.unique(np.linspace(0, len(frames) - 1, 16).astype(int))]
    plain = {"dither": Image.Dither.NONE}
    palette = Image.fromarray(sample.reshape(-1, *sample.shape[2:])).quantize(256, **plain)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, **plain) for frame in frames)
    buffer, options = io.BytesIO(), {"duration": round(1000 / fps), "loop": 0, "optimize": False}
    first.save(buffer, "GIF", save_all=True, append_images=rest, **options)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that carries them; kind: such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def mp4_html(data: bytes, alt: str = "film") -> str:
    """MP4 bytes as an HTML <video> that carries its data with it."""
    return (
        f'<video controls autoplay loop muted playsinline aria-label="{html.escape(alt)}" '
        f'src="{data_uri(data, "video/mp4")}"></video>'
    )


def video_html(frames, fps: float = 5, alt: str = "film") -> str:
    """A film as an HTML <video> that carries its data with it:
    `IPython.display.HTML(video_html(film))`.
    """
    return mp4_html(to_mp4(frames, fps), alt)


def film_rows(pairs) -> np.ndarray:
    """Every fourth frame of each film in a row, the films of each pair one below the other: image
    uint8 (H', W', 3).
    """
    return np.concatenate([np.concatenate(list(f[::4]), axis=1) for pair in pairs for f in pair])


def write_png(image, path) -> Path:
    """Write an image, uint8 (H, W, 3) or PIL's, as a PNG file, whole or not at all."""
    from PIL import Image

    buffer, image = io.BytesIO(), Image.fromarray(image) if hasattr(image, "shape") else image
    image.save(buffer, "PNG", optimize=True)
    write_atomic(Path(path), buffer.getvalue())
    return Path(path)


def image_html(image, alt: str = "picture") -> str:
    """An image uint8 (H, W, 3) or a matplotlib Figure as an HTML <img> that carries its data with
    it.
    """
    from PIL import Image

    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        drawn = io.BytesIO()
        image.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
        # A plot has few colors: 256 of them look the same and take a third of the bytes.
        made = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    else:
        made = Image.fromarray(check_film(np.asarray(image)[None])[0])
    made.save(buffer, "PNG", optimize=True)
    return f'<img alt="{html.escape(alt)}" src="{data_uri(buffer.getvalue(), "image/png")}">'
