"""Find the coded pictures at which decoding may start, from their bits. A container's keyframe flags may be wrong.

Intra refresh, open GOPs, and files with a wrong or missing list of keyframes all flag pictures that depend on earlier
ones. Axes: none; a packet is one coded picture as its container stores it.
"""

from collections.abc import Iterator

# In these codecs no picture depends on another.
_INTRA_CODECS = {"mjpeg", "png", "prores", "dnxhd"}

# H.264, table 7-1: an instantaneous decoding refresh, and the parameter sets that later pictures need.
_H264_IDR, _H264_PARAMETERS = 5, {7, 8}
# H.265, table 7-1: random access pictures (16 to 21). Pictures shown after one do not depend on pictures before it.
_HEVC_RANDOM_ACCESS, _HEVC_PARAMETERS = range(16, 22), {32, 33, 34}
# AV1, section 6.2.2.
_AV1_SEQUENCE, _AV1_HEADERS = 1, {3, 6}


class AccessTest:
    """Tells whether decoding may start at a packet. Call it with every packet of a stream, in order."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        """Start before the first packet.

        Args:
            codec: FFmpeg's name of the codec.
            extradata: Codec configuration that the container stores outside the packets.
        """
        self._codec = codec
        self._extradata = extradata or b""
        # Whether packets hold parameter sets. If so, an access point must carry its own.
        self._in_band = False

    @property
    def is_exact(self) -> bool:
        """Whether this class can parse the codec, as it is stored here."""
        if self._codec in ("h264", "hevc"):
            return self._extradata[:1] == b"\1"  # length-prefixed units, as in MP4 and Matroska
        return self._codec in _INTRA_CODECS | {"vp8", "vp9", "av1"}

    def __call__(self, packet: memoryview) -> bool:
        """Return whether this picture, and all pictures shown after it, decode without earlier packets."""
        if not self.is_exact or not packet:
            return False
        match self._codec:
            case "h264":
                kinds = [unit[0] & 31 for unit in self._split_units(packet, 4)]
                return self._is_usable(_H264_IDR in kinds, {*kinds} & _H264_PARAMETERS, _H264_PARAMETERS)
            case "hevc":
                kinds = [unit[0] >> 1 & 63 for unit in self._split_units(packet, 21)]
                is_access = any(kind in _HEVC_RANDOM_ACCESS for kind in kinds)
                return self._is_usable(is_access, {*kinds} & _HEVC_PARAMETERS, {33, 34})
            case "vp8":
                return not packet[0] & 1
            case "vp9":
                return _starts_vp9(packet[0])
            case "av1":
                return _starts_av1(packet)
            case _:
                return True

    def _is_usable(self, is_access: bool, carried: set[int], wanted: set[int]) -> bool:
        """Return whether this is a random access picture whose parameter sets are in the packet or the container."""
        self._in_band |= bool(carried)
        return is_access and (not self._in_band or wanted <= carried)

    def _split_units(self, packet: memoryview, place: int) -> Iterator[memoryview]:
        """Yield the units of a packet. Each follows its length, whose width is in the configuration record."""
        width = (self._extradata[place] & 3) + 1 if len(self._extradata) > place else 4
        start = 0
        while start + width < len(packet):
            length = int.from_bytes(packet[start : start + width], "big")
            start += width
            if length:
                yield packet[start : start + length]
            start += length


def _starts_vp9(head: int) -> bool:
    """Return whether a picture is a key frame and not a repeat of an earlier one (VP9 bitstream, section 6.2)."""
    has_reserved_bit = head & 0b00110000 == 0b00110000  # profile 3
    return head >> 6 == 2 and head & (0b110 if has_reserved_bit else 0b1100) == 0


def _starts_av1(packet: memoryview) -> bool:
    """Return whether a temporal unit has its sequence header and begins with a key frame that is shown."""
    has_sequence, start = False, 0
    while start < len(packet):
        kind = packet[start] >> 3 & 15
        if not packet[start] & 2:  # a unit without a size extends to the end
            return False
        start += 2 if packet[start] & 4 else 1
        size, start = _read_leb128(packet, start)
        if kind == _AV1_SEQUENCE:
            has_sequence = True
        if kind in _AV1_HEADERS:  # first bits: not a repeat (0), key frame (00), shown (1)
            return has_sequence and start < len(packet) and packet[start] >> 4 == 0b0001
        start += size
    return False


def _read_leb128(packet: memoryview, start: int) -> tuple[int, int]:
    """Return a leb128 number of AV1 (section 4.10.5) and the position after it."""
    value = 0
    for place, byte in enumerate(packet[start : start + 8]):
        value |= (byte & 127) << 7 * place
        if not byte & 128:
            return value, start + place + 1
    return len(packet), len(packet)
