"""Random scenes for play: a few things of many kinds, sizes and colors on the table.

A kit is drawn for every shard of play, so a few hundred different sets of things are seen. No task
is singled out: every kind has the same rule, half of the things have the size that the kit's own
tasks use (the pieces that lie in this lab) and half a random one.
"""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.envs.tabletop.env import HOME, WORKSPACE

FREE = ("cube", "box", "cylinder", "nut")  # what a hand can carry
FIXED = ("disc", "peg", "pole", "block", "tray")  # what stands where the episode puts it
AREA = np.array([[0.138, 0.232], [-0.105, 0.105]])  # m, where things start
WHITE = (0.93, 0.93, 0.95)


@dataclass(frozen=True)
class Thing:
    """One body. geoms: (type, size, position) of its primitives, lengths in meters.

    height: of its top when it stands on the table; half: of its center then; radius: what another
    thing has to be let go within to end on, in or round it; rim: beyond which it certainly misses.
    """

    name: str
    kind: str
    free: bool
    geoms: tuple
    half: float
    height: float
    radius: float
    grip: float  # half width between the fingers, 0 for what cannot be gripped


def draw_thing(rng: np.random.Generator, kind: str, name: str) -> Thing:
    """A thing of `kind`, of standard or random size."""
    standard = rng.random() < 0.5
    u = lambda usual, low, high: usual if standard else rng.uniform(low, high)
    if kind == "cube":
        h = u(0.014, 0.011, 0.018)
        return Thing(name, kind, True, (("box", (h, h, h), (0, 0, 0)),), h, 2 * h, h, h)
    if kind == "box":
        x, y, z = u(0.018, 0.010, 0.024), u(0.012, 0.010, 0.020), u(0.009, 0.008, 0.020)
        geoms = (("box", (x, y, z), (0, 0, 0)),)
        return Thing(name, kind, True, geoms, z, 2 * z, min(x, y), y)
    if kind == "cylinder":
        r, h = u(0.013, 0.010, 0.018), u(0.014, 0.008, 0.020)
        return Thing(name, kind, True, (("cylinder", (r, h), (0, 0, 0)),), h, 2 * h, r, r)
    if kind == "nut":
        outer, inner, h = u(0.021, 0.018, 0.024), u(0.0135, 0.010, 0.015), u(0.008, 0.006, 0.011)
        inner = min(inner, outer - 0.006)
        geoms = _frame(outer, inner, h, 0.0)
        return Thing(name, kind, True, geoms, h, 2 * h, inner, outer)
    if kind == "disc":
        r, h = u(0.040, 0.024, 0.048), u(0.006, 0.004, 0.014)
        geoms = (("cylinder", (r, h / 2), (0, 0, 0)),)
        return Thing(name, kind, False, geoms, h / 2, h, r, 0)
    if kind == "peg":
        r, h = u(0.009, 0.006, 0.011), u(0.030, 0.018, 0.044)
        return Thing(name, kind, False, (("box", (r, r, h / 2), (0, 0, 0)),), h / 2, h, r, 0)
    if kind == "pole":
        r, h = u(0.008, 0.005, 0.011), u(0.030, 0.018, 0.044)
        geoms = (("cylinder", (r, h / 2), (0, 0, 0)),)
        return Thing(name, kind, False, geoms, h / 2, h, r, 0)
    if kind == "block":
        x, y, h = u(0.025, 0.014, 0.036), u(0.025, 0.014, 0.036), u(0.020, 0.008, 0.036)
        geoms = (("box", (x, y, h / 2), (0, 0, 0)),)
        return Thing(name, kind, False, geoms, h / 2, h, min(x, y), 0)
    if kind == "tray":
        outer, h = u(0.036, 0.026, 0.042), u(0.016, 0.010, 0.024)
        geoms = (
            *_frame(outer, outer - 0.005, h / 2, 0.0),
            ("box", (outer, outer, 0.0015), (0, 0, 0.0015 - h / 2)),
        )
        return Thing(name, kind, False, geoms, h / 2, h, outer, 0)
    raise ValueError(kind)


def _frame(outer: float, inner: float, half_height: float, z: float) -> tuple:
    middle, bar = (outer + inner) / 2, (outer - inner) / 2
    return (
        ("box", (outer, bar, half_height), (0, middle, z)),
        ("box", (outer, bar, half_height), (0, -middle, z)),
        ("box", (bar, inner, half_height), (middle, 0, z)),
        ("box", (bar, inner, half_height), (-middle, 0, z)),
    )


class Kit:
    """The things of one shard of play, with the interface that `TabletopEnv` asks of a task."""

    name = "play"

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 41])
        # Each kit allows one kind of relation at least: something on, round, in or upon another.
        theme = rng.choice(4, p=(0.3, 0.35, 0.15, 0.2))
        first, stands = (
            (rng.choice(FREE), rng.choice(("disc", "block"), p=(0.7, 0.3))),
            ("nut", rng.choice(("peg", "pole"), p=(0.7, 0.3))),
            (rng.choice(("cube", "box", "cylinder")), "tray"),
            (rng.choice(("cube", "box", "cylinder")), rng.choice(FIXED)),
        )[theme]
        alike = rng.random() < 0.6 or theme == 3  # sets of like things, as a builder's box has
        more = rng.choice((1, 2), p=(0.7, 0.3))
        free = [first] + [first if alike else rng.choice(FREE) for _ in range(more)]
        fixed = [stands] + [rng.choice(FIXED)] * int(rng.random() < 0.25)
        names = [f"thing_{i}" for i in range(len(free) + len(fixed))]
        self.things = tuple(
            draw_thing(rng, kind, name)
            for kind, name in zip((*map(str, free), *map(str, fixed)), names)
        )
        if rng.random() < 0.5:  # like things are mostly of one size, too
            first = self.things[0]
            self.things = tuple(
                replace(first, name=t.name) if t.kind == first.kind else t for t in self.things
            )
        self.free = tuple(t for t in self.things if t.free)
        self.num_parameters = 3 * len(self.things)  # an RGB color each

    def bodies(self) -> str:
        """MJCF of all things."""
        return "".join(_body(t) for t in self.things)

    def colors(self, parameters: np.ndarray) -> dict:
        """Geom name -> RGB of one episode."""
        rgb = parameters.reshape(-1, 3)
        return {
            f"{t.name}_{i}": rgb[n] for n, t in enumerate(self.things) for i in range(len(t.geoms))
        }

    def instruction(self, state) -> str:
        """Play has none."""
        return ""

    def success(self, env) -> np.ndarray:
        """Play has no success."""
        return np.zeros(len(env.qpos), dtype=bool)

    def sample(self, rng: np.random.Generator, disturbance=None, split: str = "play") -> np.ndarray:
        """One initial state: joint positions, then colors. In a third of them a thing is in the
        hand.
        """
        spots = self._spots(rng)
        near = rng.random() < 0.5  # where episodes of a task begin, or anywhere
        if near:
            tip = HOME + rng.uniform(-1, 1, 3) * (0.02, 0.03, 0.01)
        else:
            tip = rng.uniform(WORKSPACE[:, 0], WORKSPACE[:, 1])
        opening = scene.FINGER_TRAVEL * (1.0 if near or rng.random() < 0.6 else rng.random())
        poses = []
        held = rng.integers(len(self.free)) if rng.random() < 0.35 else -1
        for n, (t, spot) in enumerate(zip(self.things, spots)):
            if not t.free:
                poses.append(spot)
                continue
            yaw = rng.uniform(-np.pi, np.pi) * (rng.random() < 0.25)
            place = [*spot, t.half + 5e-4]
            if n == held:
                tip[2] = rng.uniform(0.05, 0.12)
                yaw = 0.0
                opening = min(t.grip, scene.FINGER_TRAVEL)
                place = tip + rng.normal(size=3) * (0.003, 0.0005, 0.002)
            poses.append(np.array([*place, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]))
        colors = np.concatenate([_color(rng, t.free) for t in self.things])
        return np.concatenate([arm.inverse_kinematics(tip), [opening] * 2, *poses, colors])

    def _spots(self, rng) -> np.ndarray:
        """Places (things, 2) that leave each thing room, as far as the table has it."""
        best, gap = None, -1.0
        for _ in range(60):
            spots = rng.uniform(AREA[:, 0], AREA[:, 1], (len(self.things), 2))
            away = np.linalg.norm(spots[:, None] - spots[None], axis=-1)
            size = np.array([max(t.radius, t.grip) for t in self.things])
            need = size[:, None] + size[None] + 0.012
            slack = (away - need)[np.triu_indices(len(spots), 1)].min()
            if slack > 0.02:
                return spots
            if slack > gap or best is None:
                best, gap = spots, slack
        return best


def _color(rng, free: bool) -> np.ndarray:
    if not free and rng.random() < 0.6:
        return np.clip(np.array(WHITE) * rng.uniform(0.75, 1.05), 0, 1)
    if rng.random() < 0.5:
        names = tuple(scene.COLORS)
        return np.array(scene.COLORS[names[rng.integers(len(names))]])
    return np.array(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.45, 0.95))
    )


def _body(t: Thing) -> str:
    number = lambda values: " ".join(f"{v:.5f}" for v in np.atleast_1d(values))
    mass, grip = (0.03, "1.2 0.02 0.001") if t.free else (0.3, "0.7 0.02 0.001")
    geoms = "".join(
        f'<geom name="{t.name}_{i}" type="{kind}" size="{number(size)}" pos="{number(pos)}" '
        f'mass="{mass / len(t.geoms):.5f}" friction="{grip}" condim="4" rgba="1 0 0 1"/>'
        for i, (kind, size, pos) in enumerate(t.geoms)
    )
    joints = f'<freejoint name="{t.name}"/>' if t.free else scene.slides(t.name)
    still = "" if t.free else ' gravcomp="1"'
    return f'<body name="{t.name}" pos="0 0 {t.half:.5f}"{still}>{joints}{geoms}</body>'
