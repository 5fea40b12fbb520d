"""The servos' language: packets on the wire and the registers of the STS3215 (Feetech SMS/STS
protocol, little-endian).

instruction   FF FF id length instruction parameters... checksum status        FF FF id length error
data... checksum          length counts everything behind itself; the checksum is ~(sum from id on)
& 255
"""

from wmpo_lite.common.errors import require_between

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST, HIGHEST_ID = 0xFE, 252
HEADER = b"\xff\xff"

# name: (address, bytes). Below TORQUE_ENABLE and from 80 on a register keeps its value without
# power, and is written only while the lock is open.
REGISTERS = {
    "firmware_major": (0, 1),
    "firmware_minor": (1, 1),
    "model": (3, 2),
    "id": (5, 1),
    "baud_rate": (6, 1),
    "return_delay": (7, 1),
    "answers": (8, 1),
    "min_position": (9, 2),
    "max_position": (11, 2),
    "max_temperature": (13, 1),
    "max_voltage": (14, 1),
    "min_voltage": (15, 1),
    "max_torque": (16, 2),
    "phase": (18, 1),
    "p": (21, 1),
    "d": (22, 1),
    "i": (23, 1),
    "protection_current": (28, 2),
    "homing_offset": (31, 2),
    "mode": (33, 1),
    "overload_torque": (36, 1),
    "torque_enable": (40, 1),
    "acceleration": (41, 1),
    "goal_position": (42, 2),
    "goal_time": (44, 2),
    "goal_velocity": (46, 2),
    "torque_limit": (48, 2),
    "lock": (55, 1),
    "position": (56, 2),
    "velocity": (58, 2),
    "load": (60, 2),
    "voltage": (62, 1),
    "temperature": (63, 1),
    "status": (65, 1),
    "moving": (66, 1),
    "current": (69, 2),
    "maximum_acceleration": (85, 1),
}
SIGN_BITS = {
    "homing_offset": 11,
    "goal_position": 15,
    "goal_velocity": 15,
    "position": 15,
    "velocity": 15,
    "load": 10,
    "current": 15,
}
READ_ONLY = (
    "firmware_major",
    "firmware_minor",
    "model",
    "position",
    "velocity",
    "load",
    "voltage",
    "temperature",
    "status",
    "moving",
    "current",
)
MODELS = {777: "STS3215", 2825: "STS3250"}  # the same registers
TURN = 4096  # ticks
MANY_TURNS = 0x10  # bit of `phase`: positions count turns, and leave 0 to 4095
# Bits of a status packet's error byte, and of the register `status`, worst first.
ERRORS = {
    4: "is too hot",
    32: "is overloaded",
    8: "draws too much current",
    1: "has a supply voltage out of range",
    2: "has a faulty angle sensor",
}


def encode(name: str, value: int) -> bytes:
    """The bytes of a register's value; negative values as sign and magnitude, where the register
    has a sign. UserError for a value that the register cannot hold.
    """
    size, bit = REGISTERS[name][1], SIGN_BITS.get(name)
    high = (1 << (8 * size if bit is None else bit)) - 1
    low = 0 if bit is None else -high
    require_between(f"{name} of a servo", value, low, high)
    return int(value if value >= 0 else -value | 1 << bit).to_bytes(size, "little")


def decode(name: str, data: bytes) -> int:
    value, bit = int.from_bytes(data, "little"), SIGN_BITS.get(name)
    return value if bit is None or not value >> bit & 1 else -(value & (1 << bit) - 1)


def packet(ident: int, code: int, data: bytes = b"") -> bytes:
    """A whole packet: `code` is the instruction, or the error byte of a status packet."""
    body = bytes([ident, len(data) + 2, code]) + data
    return HEADER + body + bytes([~sum(body) & 0xFF])


def take(buffer: bytearray) -> tuple[int, int, bytes] | None:
    """Remove the first whole and sound packet from `buffer`: (id, instruction or error, data). None
    where there is none yet; garbage is dropped.
    """
    while True:
        start = buffer.find(HEADER)
        if start < 0:
            del buffer[: len(buffer) - buffer.endswith(b"\xff")]  # half a header may be there
            return None
        del buffer[:start]
        if len(buffer) < 4:
            return None
        # a third 255 is the header's beginning; no packet is shorter than 2
        if buffer[2] == 0xFF or buffer[3] < 2:
            del buffer[:1]
            continue
        end = 4 + buffer[3]
        if len(buffer) < end:
            return None
        if ~sum(buffer[2 : end - 1]) & 0xFF != buffer[end - 1]:
            del buffer[:2]  # the header was chance, or the packet is broken
            continue
        found = buffer[2], buffer[4], bytes(buffer[5 : end - 1])
        del buffer[:end]
        return found


def sentence(joint: str, bits: int) -> str:
    """What error bits mean, for people."""
    told = (
        " and ".join(text for bit, text in ERRORS.items() if bits & bit)
        or f"reports an unknown error ({bits})"
    )
    return f"the servo of {joint} {told}"
