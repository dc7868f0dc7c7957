"""Which coded pictures decoding may truly start at, by their own bits: a container's key flags are only a claim.

Intra refresh, open groups and files whose list of keyframes is wrong or absent all flag pictures that lean on earlier
ones. Axes: none; a packet is one coded picture as its container stores it.
"""

from collections.abc import Iterator

# Every picture of these stands alone.
_INTRA_CODECS = {"mjpeg", "png", "prores", "dnxhd"}

# H.264, table 7-1: an instantaneous decoding refresh, and the parameter sets that later pictures need.
_H264_IDR, _H264_PARAMETERS = 5, {7, 8}
# H.265, table 7-1: pictures of random access (16 to 21), of which those shown after them lean on nothing earlier.
_HEVC_RANDOM_ACCESS, _HEVC_PARAMETERS = range(16, 22), {32, 33, 34}
# AV1, section 6.2.2.
_AV1_SEQUENCE, _AV1_HEADERS = 1, {3, 6}


class AccessTest:
    """Tells packets at which decoding may start from others; shown every packet of a stream, in order."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        """Look at nothing yet.

        Args:
            codec: FFmpeg's name of the codec.
            extradata: What the container holds of the codec beside the pictures.
        """
        self._codec = codec
        self._extradata = extradata or b""
        # Parameter sets among the pictures: what starts at a picture must carry its own.
        self._in_band = False

    @property
    def is_exact(self) -> bool:
        """Whether the bits of this codec, as it is stored here, are understood at all."""
        if self._codec in ("h264", "hevc"):
            return self._extradata[:1] == b"\1"  # units behind their lengths, as in MP4 and Matroska
        return self._codec in _INTRA_CODECS | {"vp8", "vp9", "av1"}

    def __call__(self, packet: memoryview) -> bool:
        """Return whether this picture, and all that are shown after it, decode without what came before."""
        if not self.is_exact or not packet:
            return False
        match self._codec:
            case "h264":
                kinds = [unit[0] & 31 for unit in self._units(packet, 4)]
                return self._refreshes(_H264_IDR in kinds, {*kinds} & _H264_PARAMETERS, _H264_PARAMETERS)
            case "hevc":
                kinds = [unit[0] >> 1 & 63 for unit in self._units(packet, 21)]
                is_access = any(kind in _HEVC_RANDOM_ACCESS for kind in kinds)
                return self._refreshes(is_access, {*kinds} & _HEVC_PARAMETERS, {33, 34})
            case "vp8":
                return not packet[0] & 1
            case "vp9":
                return _starts_vp9(packet[0])
            case "av1":
                return _starts_av1(packet)
            case _:
                return True

    def _refreshes(self, is_access: bool, carried: set[int], wanted: set[int]) -> bool:
        """Return whether a picture of random access has the parameter sets it needs, its own or the container's."""
        self._in_band |= bool(carried)
        return is_access and (not self._in_band or wanted <= carried)

    def _units(self, packet: memoryview, place: int) -> Iterator[memoryview]:
        """Yield the units of a packet, each behind its length, whose width the configuration record states."""
        width = (self._extradata[place] & 3) + 1 if len(self._extradata) > place else 4
        start = 0
        while start + width < len(packet):
            length = int.from_bytes(packet[start : start + width], "big")
            start += width
            if length:
                yield packet[start : start + length]
            start += length


def _starts_vp9(head: int) -> bool:
    """Return whether a picture is a key frame and none that is shown again (VP9 bitstream, section 6.2)."""
    has_reserved_bit = head & 0b00110000 == 0b00110000  # profile 3
    return head >> 6 == 2 and head & (0b110 if has_reserved_bit else 0b1100) == 0


def _starts_av1(packet: memoryview) -> bool:
    """Return whether a temporal unit has its sequence header and begins with a key frame that is shown."""
    has_sequence, start = False, 0
    while start < len(packet):
        kind = packet[start] >> 3 & 15
        if not packet[start] & 2:  # without a size it reaches to the end
            return False
        start += 2 if packet[start] & 4 else 1
        size, start = _leb128(packet, start)
        if kind == _AV1_SEQUENCE:
            has_sequence = True
        if kind in _AV1_HEADERS:  # not repeated, key frame (0), shown
            return has_sequence and start < len(packet) and packet[start] >> 4 == 0b0001
        start += size
    return False


def _leb128(packet: memoryview, start: int) -> tuple[int, int]:
    """Return a number of AV1 (section 4.10.5) and where it ends."""
    value = 0
    for place, byte in enumerate(packet[start : start + 8]):
        value |= (byte & 127) << 7 * place
        if not byte & 128:
            return value, start + place + 1
    return len(packet), len(packet)
