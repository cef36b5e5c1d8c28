"""Encodings of text that are not UTF-8 and can be told from a file's first bytes."""

UTF8_MARK = b"\xef\xbb\xbf"
MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks, the longer ones first."""


def wide_encoding(start: bytes | bytearray) -> str:
    """UTF-16 or UTF-32, by a byte order mark or by the zero bytes beside the first two characters; empty for others."""
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return name
    zeros = "".join("0" if byte == 0 else "x" for byte in start[:4])
    return {"0x0x": "UTF-16", "x0x0": "UTF-16", "000x": "UTF-32", "x000": "UTF-32"}.get(zeros, "")


def recoding(encoding: str) -> str:
    """What is wrong with a file in ``encoding``, and how to convert it."""
    return f"the file is {encoding}, not UTF-8; convert it, for example with: iconv -f {encoding} -t UTF-8"
