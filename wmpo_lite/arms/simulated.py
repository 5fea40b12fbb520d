"""The simulated arm: the table-top scene in real time behind the interface of an arm, as late,
noisy and strange-looking as asked for.
"""

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from wmpo_lite.arms.interface import JOINTS, Arm, ArmStopped, Observation
from wmpo_lite.arms.safety import Guard
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import Disturbance

TICK = 0.005  # s between two turns of the physics thread, wall clock
KEPT = 512  # pictures that wait for their latency at most
# s of simulated time that one turn makes up for at most: a slow machine slows the world down,
# nothing in it leaps
BEHIND = 0.05


@dataclass(frozen=True)
class SimulatedConfig:
    """size: pixels of the picture; latency: s by which every picture is old; camera_noise: standard
    deviation in gray levels of 255; jitter: standard deviation of noise on every joint command,
    rad; disturbance: how the scene looks unlike the training's; camera_rate: pictures a second;
    stuck: s without a new picture after which the arm stops; speed: seconds of the simulated world
    in one of the wall clock; seed: of the noise and of the look.
    """

    size: int = 64
    latency: float = 0.0
    camera_noise: float = 0.0
    jitter: float = 0.0
    disturbance: Disturbance = Disturbance()
    camera_rate: float = 30.0
    stuck: float = 0.3
    speed: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, bad, wanted in (
            ("latency", not 0 <= self.latency <= 2, "between 0 and 2 s"),
            ("camera_noise", not self.camera_noise >= 0, "0 or more gray levels"),
            ("jitter", not self.jitter >= 0, "0 rad or more"),
            ("camera_rate", not 1 <= self.camera_rate <= 200, "between 1 and 200 Hz"),
            ("stuck", not self.stuck * self.camera_rate > 2, "more than the time of two pictures"),
            ("speed", not 0 < self.speed <= 20, "above 0 and at most 20"),
        ):
            if bad:
                raise UserError(
                    f"SimulatedConfig.{name} is {getattr(self, name)}; expected {wanted}"
                )


class SimulatedArm(Arm):
    """The arm and the desk of `states` row `row` of `task`. One thread of its own owns the physics
    and the camera, as MuJoCo's renderer wants it.

    `reset` sets the desk anew; `success()` is
    the task's own test; `fault` breaks something on purpose. Times of the interface are of the wall
    clock; the limits of speed count in the world's seconds.
    """

    def __init__(self, task, states, row: int = 0, config: SimulatedConfig = SimulatedConfig()):
        self.task, self.config, self.guard = task, config, Guard()
        self.speed = config.speed
        self._desk = (states, row)
        self._thread = None
        self._cause = None
        self._broken = set()
        self._lock = threading.Lock()  # over what the physics thread publishes and takes

    # -- the interface of an arm -------------------------------------------------------------------

    def connect(self) -> None:
        self.close()
        self._reason, self._cause, self._broken, self._target = None, None, set(), None
        self._requests = queue.SimpleQueue()
        self._pictures = deque(maxlen=KEPT)
        self._ended = threading.Event()
        self._off = True
        self._tremor, self._grain = (
            np.random.default_rng([self.config.seed, stream]) for stream in (3, 4)
        )
        self._thread = threading.Thread(target=self._live, name="simulated arm", daemon=True)
        self._thread.start()
        self.reset(*self._desk)

    def reset(self, states, row: int = 0) -> None:
        """Set the desk to initial state `row` of `states`; the arm jumps there and holds still. For
        between two episodes.
        """
        self._alive()
        self.guard.rest()
        self._ask(lambda world: self._set_up(world, states, row))
        self._desk = (states, row)
        self.guard.start(self, self._joints)

    def observe(self) -> Observation:
        self._alive()
        delay = self.config.latency / self.speed
        with self._lock:
            now = time.monotonic()
            while len(self._pictures) > 1 and self._pictures[1][0] <= now - delay:
                self._pictures.popleft()
            taken, frame = self._pictures[0]
            joints = self._joints.copy()
            joint_time = self._joint_time
        return Observation(frame=frame, joints=joints, frame_time=taken, joint_time=joint_time)

    def command(self, joints) -> None:
        self._alive()
        allowed = self._allowed(joints, time.monotonic() * self.speed)
        if self.config.jitter:
            allowed[:5] += self.config.jitter * self._tremor.normal(size=len(JOINTS) - 1)
        with self._lock:
            if self._reason is None:
                self._target = allowed
        self.guard.fed()

    def stop(self, reason: str) -> None:
        with self._lock:
            if self._reason is None:
                self._reason, self._target = reason, "hold"

    def close(self) -> None:
        self.guard.close()
        if self._thread is not None:
            self._ended.set()
            self._thread.join(timeout=10)
            self._thread = None
        self._reason = self._reason or Arm._reason

    # -- what only a simulated arm can do ----------------------------------------------------------

    @property
    def instruction(self) -> str:
        states, row = self._desk
        return states.instructions[row]

    @property
    def moving(self) -> float:
        """Fastest joint now, rad/s of the world."""
        return self._fastest

    def success(self) -> bool:
        """Whether the task's test held when the newest picture was taken."""
        return self._success

    def fault(self, kind: str) -> None:
        """Break something: 'camera' gives no new picture from now on; 'dropout': the arm does not
        answer any more, as if its cable had been pulled.
        """
        if kind not in ("camera", "dropout"):
            raise UserError(f"fault '{kind}' is unknown; use 'camera' or 'dropout'")
        self._broken.add(kind)

    # -- the physics thread ------------------------------------------------------------------------

    def _live(self):
        from wmpo_lite.arms.world import World

        world = None
        try:
            c = self.config
            world = World(self.task, size=c.size, disturbance=c.disturbance, seed=c.seed)
            last = next_picture = time.monotonic()
            while not self._ended.is_set():
                if self._serve(world):
                    last = next_picture = time.monotonic()
                if self._off:  # no desk yet
                    time.sleep(TICK)
                    continue
                self._take_target(world)
                now = time.monotonic()
                world.advance(min((now - last) * self.speed, BEHIND))
                last = now
                self._publish(world)
                if now >= next_picture and "camera" not in self._broken:
                    self._photograph(world)
                    # after a pause the camera goes on in its rhythm instead of catching up
                    next_picture = max(next_picture + 1 / (c.camera_rate * self.speed), now)
                if now - self._pictured > c.stuck:
                    self.stop(f"the camera has given no new picture for {c.stuck:g} s")
                time.sleep(max(0.0, TICK - (time.monotonic() - now)))
            world.torque(False)
        except Exception as error:  # shown by the next call of whoever uses the arm
            self._cause = error
            self.stop(f"the simulation failed: {error}")
        finally:
            self._ended.set()
            if world is not None:
                world.close()

    def _serve(self, world) -> bool:
        """Do what other threads have asked for; whether anything was."""
        served = False
        while not self._requests.empty():
            work, reply = self._requests.get()
            try:
                reply.put((work(world), None))
            except Exception as error:  # belongs to who asked
                reply.put((None, error))
            served = True
        return served

    def _ask(self, work):
        """Run `work(world)` in the physics thread and return what it gives or raise
        what it raises.
        """
        reply = queue.SimpleQueue()
        self._requests.put((work, reply))
        while True:
            try:
                result, error = reply.get(timeout=0.1)
            except queue.Empty:
                if self._thread is None or not self._thread.is_alive():
                    raise self._cause or ArmStopped("the simulated arm has ended") from None
                continue
            if error is not None:
                raise error
            return result

    def _set_up(self, world, states, row):
        world.reset(states, row)
        self._pictures.clear()
        self._target, self._off = None, False
        self._publish(world)
        self._photograph(world)

    def _take_target(self, world):
        if "dropout" in self._broken:
            return
        with self._lock:
            target, self._target = self._target, None
        if target is not None:
            world.target(
                world.joints.clip(*self.guard.limits.T) if isinstance(target, str) else target
            )

    def _publish(self, world):
        joints, fastest = world.joints, float(np.abs(world.velocities[:5]).max())
        with self._lock:
            self._joints, self._joint_time, self._fastest = joints, time.monotonic(), fastest

    def _photograph(self, world):
        taken, frame, success = time.monotonic(), world.frame(), world.success()
        if self.config.camera_noise:
            noise = self.config.camera_noise * self._grain.normal(size=frame.shape)
            frame = np.clip(frame + noise, 0, 255).round().astype(np.uint8)
        with self._lock:
            self._pictures.append((taken, frame))
            self._success = success
        # not `taken`: a machine that was busy for a while has no stuck camera
        self._pictured = time.monotonic()

    def _alive(self):
        if "dropout" in self._broken:
            self.stop("the arm does not answer")
        if self._thread is not None and not self._thread.is_alive():
            self.stop("the physics of the simulated arm has ended")
        if self._reason is not None:
            raise ArmStopped(self._reason) from self._cause
