"""The losses of a training run as its checkpoint's folder remembers them: the TensorBoard log, up to an iteration."""

import re
from pathlib import Path

# The engine writes every figure twice (over iterations, over samples) and a perplexity for each validation figure.
_FIGURES = re.compile(r"(.* )?(loss|fraction|accuracy|rewards?|margin)( validation( .*)?)?")
_DOUBLES = re.compile(r".*( vs samples| ppl)")


def logged_figures(load_dir: Path, iteration: int, tensorboard_dir: str | None) -> dict[str, float]:
    """The last value of each loss and of its companions logged at or before the checkpoint's iteration.

    Args:
        load_dir: the checkpoint folder; its ``tensorboard/`` is where training logs by default.
        iteration: of the checkpoint.
        tensorboard_dir: where else the run may have logged.

    Returns:
        Name, with the iteration it was logged at, to value. Empty where there is no log (any more).
    """
    folders = [load_dir / "tensorboard", *(Path(path) for path in [tensorboard_dir] if path)]
    folder = next((path for path in folders if any(path.glob("events.out.tfevents.*"))), None)
    if folder is None:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # heavy

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    figures = {}
    for tag in sorted(events.Tags()["scalars"]):
        if not _FIGURES.fullmatch(tag) or _DOUBLES.fullmatch(tag):
            continue
        logged = [event for event in events.Scalars(tag) if event.step <= iteration]
        if logged:
            last = max(logged, key=lambda event: (event.step, event.wall_time))
            figures[f"{tag} at iteration {last.step:,}"] = float(f"{last.value:.5g}")
    return figures
