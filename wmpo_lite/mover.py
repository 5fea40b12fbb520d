"""Where things go: the part of a draft (`draft.Draft`) that moves a scene by the actions."""
from typing import NamedTuple

import torch
from torch import nn

from wmpo_lite.errors import UserError


class Scene(NamedTuple):
    """What a frame holds, in the units of the network. S slots; the last is the hand, the others are objects and targets.

    points (..., S, 3); present (..., S) in [0, 1]; opening (...) of the gripper, 1 open; look (..., S, A): free codes of appearance.
    """

    points: torch.Tensor
    present: torch.Tensor
    opening: torch.Tensor
    look: torch.Tensor


def mlp(inputs: int, outputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))


class Mover(nn.Module):
    """The scene after each action. The hand follows its command; every object stays, is carried with the hand (a gate) or is pushed.

    All objects share the weights; a memory for the hand and one per object hold what a picture does not show (a command ahead of the hand, a
    firm grasp), and start from the two newest frames.

    fine: distances between things are told a second time, so many times enlarged and cut off at 2: whether a nut goes over its peg is a matter of
    millimetres, a step that a small network does not find in distances of decimetres. 0: not told.
    controller: actions (dx, dy, dz, ...) move a commanded place, kept inside a box, that the arm's controller makes the hand follow; then the mover keeps
    that place and learns only how the hand falls short of it. A mover without one adds up its errors: after 24 steps of `square` the hand was off by 4 mm.
    rest: what has been out of the hand's reach for a step stays where it is: at 5 control steps a second things have fallen by then (in recordings of `square`
    one in a thousand still moved by a millimetre). A mover without that lets a nut that leans on its peg sink by half a millimetre a step under a hand that
    waits above it. Needs the controller, whose full step (3 cm) is what the hand's reach is measured in.
    """

    LEAD = 1.5  # full steps by which the command may be ahead of the hand
    ABOVE, ASIDE = 1.0, 2.3  # full steps: fingers so far above or aside do not touch a thing

    def __init__(self, slots: int, action_dim: int, width: int, memory: int, fine: float = 0.0, controller: bool = False, rest: bool = False):
        super().__init__()
        if rest and not controller:
            raise UserError("a mover that lets things rest needs the arm's controller; set draft_controller too")
        self.objects, self.fine, self.controller, self.rest, told = slots - 1, fine, controller, rest, 4 + action_dim + 3 * controller
        self.hand_memory, self.object_memory = memory + 3 * controller, memory + rest
        n = self.objects
        pair = 3 * n + n + n  # where the other objects are, which of them exist, which object this is
        self.follow_command = nn.Linear(action_dim, 4)
        self.hand_start, self.hand = nn.Linear(8, memory), nn.GRUCell(told, memory)
        self.hand_out = mlp(memory + told, 4, width)
        self.object_start, self.object_in = mlp(15 + pair, memory, width), mlp(12 + action_dim + pair + memory + (3 * n + 3) * (fine > 0), width, width)
        self.object, self.object_out = nn.GRUCell(width, memory), mlp(memory + width, 4, width)
        for last in (self.hand_out[-1], self.object_out[-1]):
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        if controller:  # in network units; until `Draft.calibrate_controller`: a full step is 1, the box endless
            self.register_buffer("step", torch.ones(())), self.register_buffer("low", torch.full((3,), -torch.inf)), self.register_buffer("high", torch.full((3,), torch.inf))
            self.lag = nn.Parameter(torch.full((3,), 0.1))  # of its newest motion, by which a moving hand is behind its command
            with torch.no_grad():
                self.follow_command.weight[:3], self.follow_command.bias[:3] = 0, 0

    def _command(self, hand, command, action):
        """Where the controller now wants the hand (B, 3)."""
        wanted = command + self.step * action[:, :3].clamp(-1, 1) - hand
        return torch.minimum(torch.maximum(hand + wanted.clamp(-self.LEAD * self.step, self.LEAD * self.step), self.low), self.high)

    def _pairs(self, points, present):
        """(B, n, 5 n): how each object stands to the others."""
        n = self.objects
        away = (points[:, None, :n] - points[:, :n, None]) * present[:, None, :n, None]
        which = torch.eye(n, device=points.device).expand(len(points), n, n)
        return torch.cat([away.flatten(2), present[:, None, :n].expand(-1, n, n), which], dim=-1)

    def _enlarged(self, points, present):
        """(B, n, 3 n + 3): from each object to the others and to the hand, or nothing."""
        n = self.objects
        if not self.fine:
            return points[:, :n, :0]
        away = (points[:, None] - points[:, :n, None]) * present[:, None, :, None]
        return (self.fine * away).clamp(-2, 2).flatten(2)

    def start(self, before: Scene, now: Scene):
        n = self.objects
        hand, moved = now.points[:, -1], now.points[:, -1] - before.points[:, -1]
        gap = torch.stack([now.opening, before.opening], dim=-1)
        everyone = lambda x: x[:, None].expand(-1, n, -1)  # noqa: E731
        seen = torch.cat([now.points[:, :n] - hand[:, None], now.points[:, :n] - before.points[:, :n], now.points[:, :n, 2:], everyone(hand), everyone(moved),
                          everyone(gap), self._pairs(now.points, now.present)], dim=-1)
        of_hand = self.hand_start(torch.cat([hand, moved, gap], dim=-1)).tanh()
        of_objects = self.object_start(seen).tanh()
        if self.rest:
            of_objects = torch.cat([of_objects, self._out_of_reach(before.points[:, :n], before.points[:, -1])], dim=-1)
        return torch.cat([of_hand, hand + self.lag * moved], dim=-1) if self.controller else of_hand, of_objects

    def _out_of_reach(self, objects, hand):
        """How surely the hand (B, 3) is too far from each object (B, n, 3) to touch it: (B, n, 1)."""
        away = (hand[:, None] - objects) / self.step
        above, aside = ((away[..., 2:] - self.ABOVE) / 0.1).sigmoid(), ((away[..., :2].norm(dim=-1, keepdim=True) - self.ASIDE) / 0.1).sigmoid()
        return 1 - (1 - above) * (1 - aside)

    def forward(self, scene: Scene, memory, action):
        """One control step: action (B, D) -> the next Scene and memory."""
        n, (of_hand, of_objects) = self.objects, memory
        hand, opening = scene.points[:, -1], scene.opening[:, None]
        told = [hand, opening, action]
        if self.controller:
            of_hand, command = of_hand.split([of_hand.shape[1] - 3, 3], dim=-1)
            command = self._command(hand, command, action)
            told.append((command - hand) / self.step)
        of_hand = self.hand(torch.cat(told, dim=-1), of_hand)
        step = self.follow_command(action) + self.hand_out(torch.cat([of_hand, *told], dim=-1))
        moved, then = 0.3 * step[:, :3], step[:, 3:]
        if self.controller:
            moved, of_hand = command - hand + moved, torch.cat([of_hand, command], dim=-1)
        everyone = lambda x: x[:, None].expand(-1, n, -1)  # noqa: E731
        seen = torch.cat([scene.points[:, :n] - hand[:, None], everyone(moved), scene.points[:, :n, 2:], everyone(hand), everyone(opening), everyone(then),
                          everyone(action), self._pairs(scene.points, scene.present), of_objects[..., : self.object.hidden_size], self._enlarged(scene.points, scene.present)], dim=-1)
        seen = self.object_in(seen)
        of_objects, before = of_objects.split([self.object.hidden_size, self.object_memory - self.object.hidden_size], dim=-1)
        of_objects = self.object(seen.flatten(0, 1), of_objects.flatten(0, 1)).unflatten(0, (len(hand), n))
        push, carried = self.object_out(torch.cat([of_objects, seen], dim=-1)).split((3, 1), dim=-1)
        objects = scene.points[:, :n] + (3 * carried - 2).sigmoid() * everyone(moved) + 0.1 * push
        if self.rest:
            far = self._out_of_reach(scene.points[:, :n], hand)
            resting = before * far * self._out_of_reach(scene.points[:, :n], hand + moved)
            of_objects, objects = torch.cat([of_objects, far], dim=-1), scene.points[:, :n] + (objects - scene.points[:, :n]) * (1 - resting)
        return scene._replace(points=torch.cat([objects, (hand + moved)[:, None]], dim=1), opening=then[:, 0]), (of_hand, of_objects)

    def roll(self, now: Scene, actions: torch.Tensor, memory):
        """Scenes after each of actions (B, K, D), a Scene with time second, and the memory then. memory: what `start` or an earlier `roll` gave."""
        points, opening = [], []
        for action in actions.unbind(1):
            now, memory = self(now, memory, action)
            points.append(now.points), opening.append(now.opening)
        along = lambda x: x[:, None].expand(-1, len(points), *x.shape[1:])  # noqa: E731
        return Scene(torch.stack(points, dim=1), along(now.present), torch.stack(opening, dim=1), along(now.look)), memory
