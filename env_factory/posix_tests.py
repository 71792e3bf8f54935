"""What test scripts in POSIX sh need of the host: sums as `cksum` tells them, and the line that writes the reward."""

HARBOR = "[ ! -d /logs/verifier ] || echo $((1 - ${bad:-0})) > /logs/verifier/reward.txt"
"""Last line of a test script that has set `bad` where something failed: the reward, where Harbor looks for it."""


def cksum(data: bytes) -> str:
    """What POSIX `cksum` prints for `data`: CRC-32 (polynomial 04C11DB7, length appended, complemented), a blank, the length."""
    crc = 0
    size = len(data)
    tail = size.to_bytes((size.bit_length() + 7) // 8, "little")
    for byte in data + tail:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC[crc >> 24 ^ byte]
    return f"{crc ^ 0xFFFFFFFF} {size}"


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return tuple(table)


_CRC = _crc_table()
