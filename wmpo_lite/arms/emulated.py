"""The process behind `emulator.Emulator`: servos that answer on a pseudo-terminal in one thread,
the scene and its camera in the other.
"""

import json
import os
import select
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np

from wmpo_lite.arms import protocol
from wmpo_lite.arms.calibration import Calibration, load_calibration
from wmpo_lite.arms.cameras import SharedCamera
from wmpo_lite.arms.interface import LIMITS
from wmpo_lite.common.errors import UserError

TICK = 0.005  # s between two looks of the physics at the servos
BYTE = 1e-5  # s on the line
UNLOADING = 4 | 8 | 32  # errors at which a servo lets go: heat, current, overload
UNLIMITED = 1e6  # ticks/s where no speed limit is set: how fast a servo can be is not emulated
SETTINGS = {
    "firmware_major": 3,
    "firmware_minor": 10,
    "model": 777,
    "return_delay": 250,
    "answers": 1,
    "max_temperature": 70,
    "max_voltage": 80,
    "min_voltage": 40,
    "max_torque": 1000,
    "phase": 12,
    "protection_current": 500,
    "overload_torque": 80,
    "maximum_acceleration": 0,
    "p": 32,
    "d": 32,
    "torque_limit": 1000,
    "lock": 1,
    "voltage": 74,
    "temperature": 31,
}
STILL = (0.02, 0.05, 0.1)  # rad/s: speeds whose last time is remembered


class Servo:
    """128 bytes of registers."""

    def __init__(self, ident: int, offset: int, low: int, high: int):
        self.table, self.waiting, self.fault = bytearray(128), None, 0
        own = {"id": ident, "homing_offset": offset, "min_position": low, "max_position": high}
        for name, value in (SETTINGS | own).items():
            self[name] = value

    def __getitem__(self, name: str) -> int:
        address, size = protocol.REGISTERS[name]
        return protocol.decode(name, self.table[address : address + size])

    def __setitem__(self, name: str, value: int):
        address, size = protocol.REGISTERS[name]
        self.table[address : address + size] = protocol.encode(name, value)

    def store(self, address: int, data: bytes):
        """What WRITE does: everything but read-only registers."""
        for n, byte in enumerate(data):
            if address + n < len(self.table) and address + n not in FIXED:
                self.table[address + n] = byte


FIXED = {
    protocol.REGISTERS[name][0] + n
    for name in protocol.READ_ONLY
    for n in range(protocol.REGISTERS[name][1])
}


class Servos:
    """All servos of one line: packets in, answers out. Faults lie on the answers."""

    def __init__(self, calibration: Calibration, seed: int = 0):
        rows = zip(
            calibration.id, calibration.homing_offset, calibration.range_min, calibration.range_max
        )
        self.all = [Servo(*map(int, row)) for row in rows]
        self.lock, self.rng = threading.Lock(), np.random.default_rng([11, seed])
        self.heal()

    def heal(self):
        self.faults = {"drop": {"count": 0, "share": 0.0}, "corrupt": {"count": 0, "share": 0.0}}
        self.faults["slow"] = {"count": None, "seconds": 0.0}
        for servo in self.all:
            servo.fault = servo["status"] = 0

    def answer(self, ident: int, instruction: int, data: bytes) -> bytes:
        """All status packets that the line carries after one instruction, faults included."""
        with self.lock:
            return b"".join(map(self._spoil, self._answers(ident, instruction, data)))

    def _answers(self, ident, instruction, data):
        meant = [servo for servo in self.all if ident in (servo["id"], protocol.BROADCAST)]
        if instruction == protocol.SYNC_READ and ident == protocol.BROADCAST and len(data) >= 2:
            named = {servo["id"]: servo for servo in self.all}
            return [
                self._status(named[i], named[i].table[data[0] : data[0] + data[1]])
                for i in data[2:]
                if i in named
            ]
        if instruction == protocol.SYNC_WRITE and len(data) >= 2:
            address, size = data[0], data[1]
            for start in range(2, len(data) - size, size + 1):
                for servo in self.all:
                    if servo["id"] == data[start]:
                        servo.store(address, data[start + 1 : start + 1 + size])
            return []
        replies = []
        for servo in meant:
            if instruction == protocol.READ and len(data) == 2:
                replies.append(self._status(servo, servo.table[data[0] : data[0] + data[1]]))
                continue
            if instruction == protocol.WRITE and data:
                servo.store(data[0], data[1:])
            elif instruction == protocol.REG_WRITE and data:
                servo.waiting = data
            elif instruction == protocol.ACTION:
                if servo.waiting:
                    servo.store(servo.waiting[0], servo.waiting[1:])
                servo.waiting = None
            elif instruction != protocol.PING:
                continue
            replies.append(self._status(servo))
        # all at once they would drown each other
        return replies if ident != protocol.BROADCAST else []

    def _status(self, servo, data=b""):
        return protocol.packet(servo["id"], servo.fault, bytes(data))

    def _spoil(self, packet: bytes) -> bytes:
        if self._hit("drop"):
            return b""
        if self._hit("corrupt"):
            return packet[:-1] + bytes([packet[-1] ^ int(self.rng.integers(1, 256))])
        return packet

    def delay(self) -> float:
        """Seconds by which the adapter holds back the next answer."""
        slow = self.faults["slow"]
        if slow["count"] is None:
            return slow["seconds"]
        slow["count"] -= 1
        return slow["seconds"] if slow["count"] >= 0 else 0.0

    def _hit(self, name):
        fault = self.faults[name]
        if fault["count"] > 0:
            fault["count"] -= 1
            return True
        return fault["share"] > 0 and self.rng.random() < fault["share"]


class Port:
    """The pseudo-terminal and the thread that answers on it. `pull` is what a pulled cable does;
    the link `path` leads to the present terminal.
    """

    def __init__(self, path: Path, servos: Servos):
        self.path, self.servos, self.master = path, servos, None
        self._thread = None

    def plug(self):
        import tty

        if self.master is not None:
            return
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self._slave = slave  # held open, so that a driver may come and go
        link = self.path.with_name("port.new")
        link.symlink_to(os.ttyname(slave))
        link.replace(self.path)
        self._quit, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="servos", daemon=True)
        self._thread.start()

    def pull(self):
        if self.master is None:
            return
        os.write(self._wake, b"x")
        self._thread.join()
        for descriptor in (self.master, self._slave, self._quit, self._wake):
            os.close(descriptor)
        self.master = None

    def _serve(self):
        buffer, held = bytearray(), []  # held: (when to let it go, answer)
        while True:
            rest = max(0.0, held[0][0] - time.monotonic()) if held else None
            ready, _, _ = select.select([self.master, self._quit], [], [], rest)
            if self._quit in ready:
                return
            while held and held[0][0] <= time.monotonic():
                os.write(self.master, held.pop(0)[1])
            if self.master not in ready:
                continue
            try:
                buffer += os.read(self.master, 4096)
            except OSError:
                return
            while (packet := protocol.take(buffer)) is not None:
                answer = self.servos.answer(*packet)
                if answer:
                    time.sleep(BYTE * (len(packet[2]) + 6 + len(answer)))
                    held.append((time.monotonic() + self.servos.delay(), answer))
                    held.sort()


class Desk:
    """The scene: follows the servos' registers in real time, tells them where the joints are, and
    takes pictures.
    """

    def __init__(self, folder, task, size, disturbance, seed, fps, **start):
        from wmpo_lite.arms.world import World
        from wmpo_lite.envs.tabletop.env import Disturbance
        from wmpo_lite.envs.tabletop.tasks import get_task

        folder = Path(folder)
        self.calibration = load_calibration(folder / "calibration.json")
        self.offsets = self.calibration.homing_offset
        look = Disturbance(**disturbance)
        self.world = World(get_task(task), size=size, disturbance=look, seed=seed)
        self.servos = Servos(self.calibration, seed)
        self.folder = folder
        self.port = Port(folder / "port", self.servos)
        self.pictures = SharedCamera(folder / "pictures", writable=True)
        self.pause = 1 / fps
        self.camera_fault = None
        self.picture = None
        self.moved = dict.fromkeys(STILL, 0.0)
        self.next_picture = 0.0
        self.reset(**start)
        self.port.plug()

    def reset(self, states, instructions, split, indices, row):
        from wmpo_lite.trajectory import InitialStates

        known = np.array(states), None, tuple(instructions), split, np.array(indices)
        self.world.reset(InitialStates(*known), row)
        self.clock, self.next_picture = time.monotonic(), 0.0
        with self.servos.lock:
            self._tell()
            # where each servo's own ramp is
            self.points = np.array([servo["position"] for servo in self.servos.all], dtype=float)
            for servo, point in zip(self.servos.all, self.points):
                servo["goal_position"] = int(point)
        self._photograph(time.monotonic())

    def step(self):
        """Up to now: physics, registers, and a picture if one is due."""
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        with self.servos.lock:
            holding = self._follow(seconds)
        shift = self._shift()
        joints = self.calibration.from_ticks(self.points - shift)
        self.world.torque(bool(holding.any()))
        self.world.target(np.where(holding, joints, self.world.joints.clip(*LIMITS.T)))
        self.world.advance(seconds)
        speed = np.abs(self.world.velocities).max()
        for limit in STILL:
            if speed > limit:
                self.moved[limit] = now
        with self.servos.lock:
            self._tell()
        if now >= self.next_picture:
            self.next_picture = max(self.next_picture + self.pause, now)
            self._photograph(now)

    def _shift(self):
        """Ticks by which servos tell more than the file's calibration says, because their homing
        offset was changed.
        """
        return self.offsets - np.array([servo["homing_offset"] for servo in self.servos.all])

    def _follow(self, seconds):
        """Move each servo's ramp towards its goal at its speed limit; which (6,) servos hold."""
        holds = lambda servo: servo["torque_enable"] == 1 and not servo.fault & UNLOADING
        holding = np.array([holds(servo) for servo in self.servos.all])
        for n, servo in enumerate(self.servos.all):
            if holding[n]:
                goal = np.clip(servo["goal_position"], servo["min_position"], servo["max_position"])
                reach = (servo["goal_velocity"] or UNLIMITED) * seconds
                self.points[n] += np.clip(goal - self.points[n], -reach, reach)
            else:
                self.points[n] = servo["position"]
        return holding

    def _tell(self):
        ticks = self.calibration.to_ticks(self.world.joints) + self._shift()
        speed, load = self.world.velocities * self.calibration.ticks_per_unit, self.world.loads
        for n, servo in enumerate(self.servos.all):
            turns = protocol.TURN * bool(servo["phase"] & protocol.MANY_TURNS)
            servo["position"] = int(ticks[n] - turns)  # as if turned back once by hand
            servo["velocity"] = int(np.clip(speed[n], -32767, 32767))
            servo["load"] = int(1000 * np.clip(load[n], -1, 1))
            servo["moving"], servo["status"] = int(abs(speed[n]) > 10), servo.fault

    def _photograph(self, now):
        if self.camera_fault == "stop":
            return
        if self.camera_fault is None or self.picture is None:
            self.picture = self.world.frame()
        self.pictures.show(self.picture, now)

    def fault(self, name, joint=None, bits=4, how="stop", count=None, share=None, seconds=0.016):
        begin = time.monotonic()
        if name in ("drop", "corrupt"):
            self.servos.faults[name] = {
                "count": count or 0,
                "share": (0.0 if count else 1.0) if share is None else share,
            }
        elif name == "slow":
            self.servos.faults[name] = {"count": count, "seconds": seconds}
        elif name == "error":
            self.servos.all[joint].fault = bits
        elif name == "camera":
            self.camera_fault = how
        elif name == "pull":
            self.port.pull()
        else:
            self.servos.heal()
            self.camera_fault = None
            self.port.plug()
        return begin

    def do(self, do, **what):
        if do == "last_motion":
            return self.moved[what["faster"]]
        known = {
            "reset": self.reset,
            "fault": self.fault,
            "success": self.world.success,
            "joints": lambda: self.world.joints.tolist(),
            "moving": lambda: self.world.velocities.tolist(),
        }
        return known[do](**what)

    def close(self):
        self.port.pull()
        self.world.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # whoever made it may have been killed


def main(descriptor: int) -> None:
    """Serve one Emulator over a socket of JSON lines until it is closed."""
    control = socket.socket(fileno=descriptor)
    questions = control.makefile("rb")
    desk = None

    def answer():
        nonlocal desk
        line = questions.readline()
        if not line:
            return False
        what = json.loads(line)
        try:
            if desk is None:
                desk = Desk(**{key: value for key, value in what.items() if key != "do"})
                reply = {"result": True}
            else:
                reply = {"result": desk.do(**what)}
        except UserError as error:
            reply = {"error": str(error)}
        control.sendall(json.dumps(reply).encode() + b"\n")
        return desk is not None

    try:
        if answer():
            due = time.monotonic()
            while True:
                due = max(due + TICK, time.monotonic())
                while (rest := due - time.monotonic()) > 0:
                    if select.select([control], [], [], rest)[0] and not answer():
                        return
                desk.step()
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        if desk is not None:
            desk.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
