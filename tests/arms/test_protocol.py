"""Packets against bytes that were worked out by hand from the manual, and a reader that finds sound
packets in anything.
"""

import numpy as np
import pytest

from wmpo_lite.arms import protocol
from wmpo_lite.arms.protocol import decode, encode, packet, take
from wmpo_lite.common.errors import UserError

GOLDEN = {
    # sum from the id on, inverted, lowest byte: 1 + 2 + 1 = 04 -> FB
    "FF FF 01 02 01 FB": (1, protocol.PING, b""),
    "FF FF 01 02 00 FC": (1, 0, b""),  # the answer to it: no error
    # READ from address 56 two bytes: 1 + 4 + 2 + 56 + 2 = 65 = 41 -> BE
    "FF FF 01 04 02 38 02 BE": (1, protocol.READ, bytes([56, 2])),
    "FF FF 01 04 00 00 08 F2": (1, 0, (2048).to_bytes(2, "little")),  # 2048, low byte first
    "FF FF 01 05 03 2A 00 08 C4": (1, protocol.WRITE, bytes([42, 0x00, 0x08])),
    # SYNC READ of servos 1 and 2: 254 + 6 + 130 + 56 + 2 + 1 + 2 = 451 = 1C3 -> 3C
    "FF FF FE 06 82 38 02 01 02 3C": (254, protocol.SYNC_READ, bytes([56, 2, 1, 2])),
    # SYNC WRITE, servo 1 to 2048 and servo 2 to 1024: 454 = 1C6 -> 39
    "FF FF FE 0A 83 2A 02 01 00 08 02 00 04 39": (
        254,
        protocol.SYNC_WRITE,
        bytes([42, 2, 1, 0x00, 0x08, 2, 0x00, 0x04]),
    ),
    "FF FF 03 02 24 D6": (3, 4 | 32, b""),  # too hot and overloaded: 3 + 2 + 36 = 41 = 29 -> D6
}


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_packets_both_ways(text):
    ident, code, data = GOLDEN[text]
    assert packet(ident, code, data) == bytes.fromhex(text)
    assert take(bytearray.fromhex(text)) == (ident, code, data)


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("position", 2048, "00 08"),
        ("position", 4095, "FF 0F"),
        ("velocity", -300, "2C 81"),
        ("velocity", 300, "2C 01"),
        ("load", -500, "F4 05"),
        ("homing_offset", -37, "25 08"),
        ("homing_offset", 2047, "FF 07"),
        ("torque_enable", 1, "01"),
        ("voltage", 74, "4A"),
    ],
)
def test_signs_are_a_bit_of_their_own(name, value, text):
    assert encode(name, value) == bytes.fromhex(text)
    assert decode(name, bytes.fromhex(text)) == value


@pytest.mark.parametrize(
    "name, value",
    [
        ("homing_offset", 2048),
        ("homing_offset", -2048),
        ("goal_position", 32768),
        ("load", 1024),
        ("torque_enable", 256),
        ("p", -1),
        ("max_torque", 65536),
    ],
)
def test_a_number_that_a_register_cannot_hold_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} of a servo is {str(value)[:2]}.*expected"):
        encode(name, value)


def test_the_reader_finds_every_sound_packet_in_noise_however_it_is_cut():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sent = [
            (
                int(rng.integers(0, 253)),
                int(rng.integers(0, 256)),
                rng.bytes(int(rng.integers(0, 20))),
            )
            for _ in range(4)
        ]
        stream = b"".join(
            rng.integers(0, 255, int(rng.integers(0, 6))).astype(np.uint8).tobytes() + packet(*one)
            for one in sent
        )  # noise without FF
        buffer, got = bytearray(), []
        while stream:
            cut = int(rng.integers(1, 9))
            buffer += stream[:cut]
            stream = stream[cut:]
            while (found := take(buffer)) is not None:
                got.append(found)
        assert got == sent and not buffer


def test_a_broken_packet_is_dropped_and_the_next_one_found():
    good, broken = packet(2, 0, b"\x01\x02"), bytearray(packet(1, 0, b"\x01\x02"))
    broken[-1] ^= 0x10
    assert take(buffer := bytearray(broken + good)) == (2, 0, b"\x01\x02") and not buffer
    assert take(bytearray(b"\xff" + good)) == (2, 0, b"\x01\x02")  # one FF too many
    assert take(bytearray(good[:-1])) is None and take(bytearray()) is None


def test_error_bits_become_words():
    assert protocol.sentence("gripper", 4) == "the servo of gripper is too hot"
    assert "overloaded and has a supply" in protocol.sentence("gripper", 33)
    assert "unknown error (64)" in protocol.sentence("gripper", 64)
