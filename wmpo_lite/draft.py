"""A deterministic first guess at the next frames: read where things are, move them by the actions, paint what changed.

A small network that must find out by itself what a picture holds needs hours on a CPU to learn that a gripper takes a cube along, because small
things are next to nothing of a squared error (figures in the README). Pre-training in a simulator can say where things are: read, move and paint
then are three small problems of minutes. Labels are needed for pre-training alone: on other recordings the reader labels its own frames.
"""
import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite.mover import Mover, Scene


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


class ConvResidual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mix, self.out = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.out(F.silu(self.mix(F.silu(self.norm(x)))))


class Reader(nn.Module):
    """One frame's latents -> Scene. Every slot looks with one attention map, four times finer than the latents; its mean is the slot's place in
    the picture, which a soft maximum gives to a fraction of a pixel, and with the height read there it becomes a point in the room."""

    FINER = 4

    def __init__(self, channels: int, size: int, width: int, slots: int, looks: int):
        super().__init__()
        self.slots, self.size = slots, size
        self.stem, self.position = nn.Conv2d(channels, width, 3, padding=1), nn.Parameter(torch.randn(1, width, size, size) * 0.02)
        self.body = nn.Sequential(*(ConvResidual(width) for _ in range(3)), nn.GroupNorm(8, width), nn.SiLU())
        self.attend, self.value = nn.Conv2d(width, slots * self.FINER**2, 1), nn.Conv2d(width, slots * 3, 1)
        self.look = nn.Conv2d(width, slots * looks, 1)
        fine = size * self.FINER
        self.register_buffer("grid", (torch.arange(fine) + 0.5) / fine * 2 - 1, persistent=False)

    def features(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, width, h, w)."""
        return self.body(self.stem(latents) + self.position)

    def forward(self, features: torch.Tensor):
        """(B, width, h, w) -> picture coordinates (B, S, 2) in [-1, 1], height (B, S), presence logits (B, S), opening (B,), looks (B, S, A)."""
        f, n = self.FINER, self.size
        sharp = F.pixel_shuffle(self.attend(features), f).flatten(2).softmax(-1).unflatten(-1, (n * f, n * f))  # (B, S, nf, nf)
        place = torch.stack([sharp.sum(2) @ self.grid, sharp.sum(3) @ self.grid], dim=-1)  # right, down
        coarse = sharp.unflatten(2, (n, f)).unflatten(4, (n, f)).sum((3, 5))
        pool = lambda layer, x, where: torch.einsum("bsvhw,bshw->bsv", layer(x).unflatten(1, (self.slots, -1)), where)  # noqa: E731
        value = pool(self.value, features, coarse)
        look = pool(self.look, features.detach(), coarse.detach())  # the painter learns what to look for, not where
        return place, value[..., 0], value[..., 1], value[:, -1, 2], look


class Painter(nn.Module):
    """Latents of a frame from the newest known frame and the scenes then and now. Each cell asks how far every slot is and was from it, so a
    thing that moves a fraction of a cell moves in the picture, wherever it is; the arm, which is a smooth function of the hand, has a branch that
    sees the whole frame."""

    def __init__(self, channels: int, size: int, reader_width: int, width: int, slots: int, looks: int):
        super().__init__()
        self.size, self.channels = size, channels
        state = slots * (2 * 3 + 1 + looks) + 2
        self.cell = nn.Parameter(torch.randn(1, 1, size * size, width) * 0.02)
        self.local, self.near, self.whole = nn.Linear(reader_width + channels, width), nn.Linear(slots * 8, width), nn.Linear(state, width)
        self.frame = nn.Sequential(nn.Linear(state, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 24 * size * size))
        self.from_frame = nn.Linear(24, width)
        self.body = nn.Sequential(Residual(width), Residual(width), nn.LayerNorm(width))
        self.out = nn.Linear(width, channels + 1)
        centres = (torch.arange(size) + 0.5) / size * 2 - 1
        self.register_buffer("centres", torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1), persistent=False)  # right, down

    def _distances(self, place, present):
        """place (B, T, S, 2) in the picture -> (B, T, N, 4 S): clipped offsets in cells, and two bells around each slot."""
        away = (place[:, :, None] - self.centres[:, None]) * (self.size / 2)  # (B, T, N, S, 2)
        square = away.square().sum(-1, keepdim=True)
        bells = torch.cat([(-square / 2).exp(), (-square / 8).exp()], dim=-1)
        return (torch.cat([away.clamp(-2.5, 2.5), bells], dim=-1) * present[:, :, None, :, None]).flatten(3)

    def forward(self, newest: torch.Tensor, features: torch.Tensor, old: Scene, old_place: torch.Tensor, new: Scene, new_place: torch.Tensor):
        """newest (B, C, h, w), features of it (B, width, h, w), old: its Scene; new: Scene with time (B, T, ...) -> latents (B, T, C, h, w)."""
        frames = new.points.shape[1]
        along = lambda x: x[:, None].expand(-1, frames, *x.shape[1:])  # noqa: E731
        known = old.present[..., None]
        state = torch.cat([(new.points * known[:, None]).flatten(2), along((old.points * known).flatten(1)), along(old.present), along(old.look.flatten(1)),
                           new.opening[..., None], along(old.opening[:, None])], dim=-1)
        near = torch.cat([along(self._distances(old_place[:, None], old.present[:, None])[:, 0]), self._distances(new_place, new.present)], dim=-1)
        local = self.local(torch.cat([features, newest], dim=1).flatten(2).transpose(1, 2))  # (B, N, width)
        frame = self.from_frame(self.frame(state).unflatten(-1, (self.size**2, 24)))
        x = self.body(self.cell + local[:, None] + self.near(near) + self.whole(state)[:, :, None] + frame)
        content, mask = self.out(x).transpose(2, 3).unflatten(-1, (self.size, self.size)).split((self.channels, 1), dim=2)
        return torch.lerp(newest[:, None].expand_as(content), content, mask.sigmoid())  # where the mask is 0 the frame is kept


class Draft(nn.Module):
    """Read, move, paint: context latents and actions -> a first guess at the next K frames' latents.

    keyframe: every frame is painted from the newest one that was recorded, however long ago, instead of from the newest one, which in imagination is
    painted itself. What nothing has touched since then is copied from a camera's picture, so it cannot fade from chunk to chunk.
    """

    def __init__(self, channels: int, size: int, action_dim: int, width: int = 128, memory: int = 64, slots: int = 5, looks: int = 6, fine: float = 0.0,
                 controller: bool = False, keyframe: bool = False, rest: bool = False):
        super().__init__()
        self.slots, self.keyframe, self.shape = slots, keyframe, (channels, size, size)
        self.reader, self.mover = Reader(channels, size, width, slots, looks), Mover(slots, action_dim, width, memory, fine, controller, rest)
        self.painter = Painter(channels, size, width, width, slots, looks)
        # Homogeneous point in the room -> homogeneous picture coordinates, (right, down) in [-1, 1]; until `calibrate`: from straight above.
        self.register_buffer("camera", torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]]))
        self.register_buffer("centre", torch.zeros(3)), self.register_buffer("unit", torch.ones(()))

    def calibrate(self, camera: torch.Tensor, centre, unit: float):
        """camera (3, 4): the projection of the recordings; centre (3,) and unit in metres: what the network counts as 0 and 1."""
        self.camera.copy_(camera), self.centre.copy_(torch.as_tensor(centre)), self.unit.fill_(unit)

    def calibrate_controller(self, step: float, box):
        """step: metres that an action of 1 moves the command; box (3, 2) in metres: where the command is kept. After `calibrate`."""
        box = (torch.as_tensor(box, dtype=torch.float32) - self.centre[:, None]) / self.unit
        self.mover.step.fill_(step / float(self.unit)), self.mover.low.copy_(box[:, 0]), self.mover.high.copy_(box[:, 1])

    def project(self, points: torch.Tensor) -> torch.Tensor:
        """Points (..., 3) in network units -> picture coordinates (..., 2)."""
        room = points * self.unit + self.centre
        seen = F.pad(room, (0, 1), value=1.0) @ self.camera.T
        return seen[..., :2] / seen[..., 2:]

    def _lift(self, place, height):
        """The point (..., 3) in network units that is seen at `place` (..., 2) and has this height (...)."""
        rows = self.camera[:2] - place[..., None] * self.camera[2]  # (..., 2, 4): each row times the point is 0
        room = height * self.unit + self.centre[2]
        (a, b), (c, d) = (rows[..., i, :2].unbind(-1) for i in (0, 1))
        p, q = (rows[..., i, 2] * room + rows[..., i, 3] for i in (0, 1))
        det = a * d - b * c
        return torch.stack([((b * q - d * p) / det - self.centre[0]) / self.unit, ((c * p - a * q) / det - self.centre[1]) / self.unit, height], dim=-1)

    def read(self, latents: torch.Tensor):
        """(B, C, h, w) -> Scene, features, presence logits, picture coordinates."""
        features = self.reader.features(latents)
        place, height, logits, opening, look = self.reader(features)
        return Scene(self._lift(place, height), logits.sigmoid(), opening, look), features, logits, place

    def forward(self, context: torch.Tensor, actions: torch.Tensor, past: torch.Tensor | None = None):
        """context (B, c, C, h, w), actions (B, K, D) -> latents (B, K, C, h, w), the scenes as vectors (B, K, 4 S + 1), and what to pass as `past`
        (B, M) when going on from the last of these frames.

        past=None reads where things are off the two newest frames. Imagined frames need not be read: how they were made is known, and so is what no
        picture shows, such as a firm grasp.
        """
        past = self.recall(context) if past is None else past
        past, picture, points = self._split_keyframe(past) if self.keyframe else (past, context[:, -1], None)
        old, features, _, _ = self.read(picture)
        now, memory = self._unpack(past, old.look)
        old = old._replace(points=points, present=now.present) if self.keyframe else now
        new, memory = self.mover.roll(now, actions, memory)
        painted = self.painter(picture, features, old, self.project(old.points), new, self.project(new.points))
        past = self._pack(Scene(*(part[:, -1] for part in new)), memory)
        past = self._with_keyframe(past, picture, points) if self.keyframe else past
        return painted, torch.cat([new.points.flatten(2), new.present, new.opening[..., None]], dim=-1), past

    def recall(self, context: torch.Tensor, doubt: float = 0.0, generator=None, keyframe: torch.Tensor | None = None) -> torch.Tensor:
        """What `past` is (B, M) after frames that were recorded, from the two newest of them.

        doubt: standard deviation in metres of a random shift across the table of everything but the hand. keyframe: an older recorded frame
        (B, C, h, w) of the same episodes to paint from (None: the newest one); a draft that does not paint from keyframes has no use for it.
        """
        now = self.read(context[:, -1])[0]
        before = self.read(context[:, -2])[0] if context.shape[1] > 1 else now
        old = self.read(keyframe)[0] if self.keyframe and keyframe is not None else now
        if doubt:
            shift = F.pad(torch.randn(len(context), self.slots - 1, 2, generator=generator).to(context) * doubt / self.unit, (0, 1, 0, 1))
            now, before, old = (scene._replace(points=scene.points + shift) for scene in (now, before, old))
        past = self._pack(now, self.mover.start(before, now))
        return self._with_keyframe(past, context[:, -1] if keyframe is None else keyframe, old.points) if self.keyframe else past

    @staticmethod
    def _with_keyframe(past, picture, points):
        return torch.cat([picture.flatten(1), points.flatten(1), past], dim=1)

    def _split_keyframe(self, past):
        """past -> what it is without a keyframe, the keyframe (B, C, h, w) and where things were in it (B, S, 3)."""
        picture, points, past = past.split([(size := self.shape[0] * self.shape[1] * self.shape[2]), 3 * self.slots, past.shape[1] - size - 3 * self.slots], dim=1)
        return past, picture.unflatten(1, self.shape), points.unflatten(1, (self.slots, 3))

    @torch.no_grad()
    def foresee(self, context, actions, past=None):
        """Where things will be, as `forward` paints them: points (B, K, S, 3) in metres and the gripper's opening (B, K)."""
        scenes = self(context, actions, past)[1]
        return scenes[..., : 3 * self.slots].unflatten(-1, (self.slots, 3)) * self.unit + self.centre, scenes[..., -1]

    def _pack(self, scene: Scene, memory) -> torch.Tensor:
        return torch.cat([scene.points.flatten(1), scene.present, scene.opening[:, None], memory[0], memory[1].flatten(1)], dim=-1)

    def scene_of(self, past):
        """Where things are in what `past` (B, M) remembers: points (B, S, 3) in metres and the gripper's opening (B,)."""
        if self.keyframe:
            past = self._split_keyframe(past)[0]
        now, _ = self._unpack(past, past[:, :0])
        return now.points * self.unit + self.centre, now.opening

    def _unpack(self, past, look):
        n, width, of_one = self.slots, self.mover.hand_memory, self.mover.object_memory
        points, present, opening, of_hand, of_objects = past.split([3 * n, n, 1, width, (n - 1) * of_one], dim=-1)
        return Scene(points.unflatten(-1, (n, 3)), present, opening[:, 0], look), (of_hand, of_objects.unflatten(-1, (n - 1, of_one)))

    def scene(self, points, present, opening) -> Scene:
        """Labels (points in metres) as a Scene in network units; what looks like what is not labelled."""
        return Scene((points - self.centre) / self.unit, present, opening, points[..., :0])

    # -- training ------------------------------------------------------------------------------------------------------------------------

    def read_loss(self, latents, labels: Scene, noise: float, generator=None):
        """latents (B, C, h, w) with labels of the same frames -> (loss, logs)."""
        latents = latents + noise * torch.randn(latents.shape, generator=generator)
        scene, _, logits, place = self.read(latents)
        there, count = labels.present, labels.present.sum()
        flat = (F.smooth_l1_loss(place, self.project(labels.points), reduction="none", beta=0.02).sum(-1) * there).sum() / count
        height = (F.smooth_l1_loss(scene.points[..., 2], labels.points[..., 2], reduction="none", beta=0.05) * there).sum() / count
        loss = 10 * flat + 6 * height + 0.2 * F.binary_cross_entropy_with_logits(logits, there) + F.smooth_l1_loss(scene.opening, labels.opening, beta=0.1)
        with torch.no_grad():
            error = ((scene.points - labels.points).norm(dim=-1) * there).sum() / count * self.unit
        return loss, {"read_error_m": float(error)}

    def move_loss(self, before: Scene, now: Scene, labels: Scene, actions, noise: float = 0.0, generator=None):
        """Labels of two frames (B, ...) and of the K frames that follow (B, K, ...) -> (loss, logs). noise: metres by which reading errs."""
        if noise:
            before, now = (s._replace(points=s.points + noise / self.unit * torch.randn(s.points.shape, generator=generator)) for s in (before, now))
        new, _ = self.mover.roll(now, actions, self.mover.start(before, now))
        error = F.smooth_l1_loss(new.points, labels.points, reduction="none", beta=0.01) * labels.present[..., None]
        loss = 10 * error.mean() + F.smooth_l1_loss(new.opening, labels.opening, beta=0.1)
        with torch.no_grad():
            far = ((new.points - labels.points).norm(dim=-1) * labels.present)[:, -1].sum() / labels.present[:, -1].sum() * self.unit
        return loss, {"move_error_m": float(far)}

    def paint(self, newest, labels: Scene):
        """Latents (B, T, C, h, w) of the labelled scenes (B, T, ...) after the frame `newest` (B, C, h, w). Trains the painter and the looks."""
        now, features, _, _ = self.read(newest)
        now = now._replace(points=now.points.detach(), present=now.present.detach(), opening=now.opening.detach())
        return self.painter(newest, features.detach(), now, self.project(now.points), labels, self.project(labels.points))

    @torch.no_grad()
    def label(self, latents: torch.Tensor, chunk: int = 512) -> Scene:
        """What the reader sees in recordings without labels (E, T + 1, C, h, w): a Scene (E, T + 1, ...) to train mover and painter on.

        Nothing comes or goes in an episode, so what is there is decided over all of its frames.
        """
        parts = [self.read(part.float())[0] for part in latents.flatten(0, 1).split(chunk)]
        points, present, opening, _ = (torch.cat(part).unflatten(0, latents.shape[:2]) for part in zip(*parts))
        present = (present.mean(dim=1, keepdim=True) > 0.5).float().expand_as(present)
        return Scene(points, present, opening, points[..., :0])
