"""Lines of a scores file, made up."""

import json
import random
from pathlib import Path


def line(number: int, fas: float, perplexity: float = 2.0, kind: str = "sft") -> dict:
    messages = [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": "A"}]
    record = {"messages": messages}
    where = {"source": "file", "line": number + 1}
    return {"id": f"{number:032x}", "kind": kind, **where, "fas": fas, "perplexity": perplexity, "record": record}


def shuffled_lines() -> list[dict]:
    """60 samples with many ties, in no order."""
    draw = random.Random(0)
    made = [line(number, 0.5 + draw.randrange(12) / 10, draw.randrange(1, 9) / 1) for number in range(60)]
    draw.shuffle(made)
    return made


def save(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ranked(lines: list[dict], key) -> list[str]:
    return [line["id"] for line in sorted(lines, key=lambda line: (key(line), line["id"]))]
