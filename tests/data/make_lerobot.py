"""How the folders beside this file were made: lerobot 0.6.1 (torch 2.11.0, PyAV 15.1.0, pyarrow
26.0.1, Python 3.13) wrote them.

    pip install 'lerobot[dataset]==0.6.1' && python make_lerobot.py FOLDER

`lerobot_images` keeps PNG in its parquet files, `lerobot_video` is coded as LeRobot does by
default, `lerobot_killed` is a recording whose process was killed in its third episode. Pictures
are gray noise that stays, with a white square that moves a pixel a frame (`picture`); states and
actions are `numbers`.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TASKS = ("put the red cube on the plate", "put the green cube on the plate")
LENGTHS, SIDE, FPS = (6, 9, 4), 64, 10


def picture(episode: int, step: int) -> np.ndarray:
    """uint8 (64, 64, 3)"""
    frame = np.random.default_rng(episode).integers(60, 100, (SIDE // 8, SIDE // 8, 1), np.uint8)
    frame = np.repeat(frame.repeat(8, 0).repeat(8, 1), 3, axis=2)
    frame[24:36, 8 + 4 * step : 20 + 4 * step] = 255
    return frame


def numbers(episode: int, step: int, kind: int) -> np.ndarray:
    """float32 (6,): degrees, the gripper 0 to 100. kind: 0 for the state, 1 for the action."""
    return np.random.default_rng([episode, step, kind]).uniform(-90, 90, 6).astype(np.float32)


def write(folder: Path, dtype: str, killed: bool = False):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"{joint}.pos" for joint in JOINTS]
    vector = {"dtype": "float32", "shape": (6,), "names": names}
    image = {"dtype": dtype, "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id="test/tiny",
        root=folder,
        fps=FPS,
        robot_type="so101_follower",
        features={"observation.state": vector, "action": vector, "observation.images.front": image},
        use_videos=dtype == "video",
    )
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            dataset.add_frame(
                {
                    "observation.state": numbers(episode, step, 0),
                    "action": numbers(episode, step, 1),
                    "observation.images.front": picture(episode, step),
                    "task": TASKS[episode % 2],
                }
            )
        if killed and episode == len(LENGTHS) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    home = Path(sys.argv[1])
    write(home / "lerobot_images", "image")
    write(home / "lerobot_video", "video")
    if os.fork() == 0:
        write(home / "lerobot_killed", "image", killed=True)
    os.wait()
