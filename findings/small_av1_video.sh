#!/bin/bash
# Videos of small pictures in the coding that lerobot 0.6.1 records with by default (SVT-AV1 through
# PyAV, g=2, crf 30, preset 12, yuv420p): at 64 pixels many a frame between the key frames shows a
# thing that moves where it was a frame earlier. With g=1, or from 128 pixels on, none does.
source "$(dirname "$0")/common.sh"
export SVT_LOG=1
packages av==15.1.0 numpy==2.4.6
measure <<'PYTHON'
import io
import av
import numpy as np


def coded(frames, g):
    memory = io.BytesIO()
    options = {"g": str(g), "crf": "30", "preset": "12"}
    with av.open(memory, "w", format="mp4") as out:
        stream = out.add_stream("libsvtav1", 10, options=options)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", *frames.shape[1:3]
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    memory.seek(0)
    with av.open(memory) as back:
        return np.stack([f.to_ndarray(format="rgb24") for f in back.decode(video=0)])


def scene(side, steps=20):
    """A gray table on which a red cube, an eighth of the picture wide, moves to the right."""
    y, x = np.mgrid[:side, :side] / side
    frames = np.repeat(np.stack([120 + 30 * y, 115 + 30 * y, 110 + 20 * x], -1)[None], steps, 0)
    for s in range(steps):
        left = int(side * (0.1 + 0.7 * s / steps))
        frames[s, side // 2 : side // 2 + side // 8, left : left + side // 8] = (170, 60, 50)
    return frames.round().astype(np.uint8)


def late(side, g):
    """How many frames resemble the one before them more than themselves, where things move."""
    frames = scene(side)
    shown = coded(frames, g)
    moving = (frames.max(0).astype(int) - frames.min(0)).max(-1) > 20
    error = np.abs(shown[:, None, moving].astype(float) - frames[None, :, moving]).mean((2, 3))
    return int((error.argmin(1) == np.arange(len(frames)) - 1).sum())


found = {(side, g): late(side, g) for side in (64, 96, 128, 256) for g in (2, 1)}
print("PyAV", av.__version__, "frames of 20 that show the cube a frame late, by (pixels, g):", found)
assert found[64, 2] >= 4
assert all(count == 0 for (side, g), count in found.items() if g == 1 or side >= 128)
print(f"late frames of 20: {found[64, 2]} at 64 pixels, {found[96, 2]} at 96, none from 128 on or with g=1")
PYTHON
