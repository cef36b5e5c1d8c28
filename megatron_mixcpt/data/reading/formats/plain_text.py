"""Plain text: the whole file is one document."""

from collections.abc import Iterator, Set
from typing import Any

from megatron_mixcpt.data.long_text import LONG_BYTES, LongText
from megatron_mixcpt.data.reading.formats.compression import open_unpacked
from megatron_mixcpt.data.reading.formats.text_encoding import UTF8_MARK, recoding, wide_encoding
from megatron_mixcpt.data.reading.input_format import InputFormat, Row, Source
from megatron_mixcpt.data.records import BadRecord

BLOCK_BYTES = 1 << 16


class PlainText(InputFormat):
    """A file of text in UTF-8."""

    name = "txt"
    suffixes = (".txt",)
    is_compressible = True
    kinds = ("cpt",)

    def read(
        self, source: Source, fields: Set[str] | None, start: int, end: int | None, keep_long: bool
    ) -> Iterator[list[Row]]:
        """The file's contents, as one row."""
        content = bytearray()
        with open_unpacked(source) as file:
            while block := file.read(BLOCK_BYTES):
                content += block
        yield [content]

    def parse(self, row: Row, keep_long: bool) -> Any:
        """The contents as the field ``text``. Raises BadRecord where they are not UTF-8."""
        assert isinstance(row, bytes | bytearray)
        if encoding := wide_encoding(row):
            raise BadRecord("not_utf8", recoding(encoding))
        start = len(UTF8_MARK) if row.startswith(UTF8_MARK) else 0
        try:
            if keep_long and len(row) > LONG_BYTES:
                return {"text": LongText(row, start, len(row), is_json=False)}
            return {"text": row[start:].decode("utf-8")}
        except UnicodeDecodeError as error:
            raise BadRecord("not_utf8", f"byte {error.start + 1} is not UTF-8") from error
