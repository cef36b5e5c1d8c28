"""All input formats. A new one is a file beside this one, and an entry here."""

from megatron_mixcpt.data.reading.formats.arrow import Arrow
from megatron_mixcpt.data.reading.formats.json_lines import JsonLines
from megatron_mixcpt.data.reading.formats.parquet import Parquet
from megatron_mixcpt.data.reading.formats.plain_text import PlainText
from megatron_mixcpt.data.reading.input_format import InputFormat

FORMATS: tuple[InputFormat, ...] = (JsonLines(), PlainText(), Parquet(), Arrow())
