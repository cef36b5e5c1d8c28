"""Power cuts: the disk that forgets against outcomes listed by hand, the recorder, and small runs of the drill."""

import functools
import mmap
import os
import random
import shutil
from pathlib import Path

import pytest

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.data.datasets.mixture_datasets import build_mixture_datasets
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import plan_mixture
from megatron_mixcpt.jobs.whole_outputs import flush, make_folder
from megatron_mixcpt.training.engine.checkpoints import _settle_saved
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_run import make_mixture
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.faults.cut_power import PowerCuts
from tests.faults.disk import MODELS, ROOT, Change, Data, Disk, Flush, Names, Recording
from tests.faults.power_kinds import KINDS, Kind, files_of, run_alone, units_of_training, write_texts
from tests.faults.system_calls import is_missing, record
from tests.unit.data.datasets.test_mixture_datasets import SEQUENCE_LENGTH, engine_config
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

needs_strace = pytest.mark.skipif(is_missing(), reason="strace is not installed")
A, B, FILE = 1, 2, 3
CREATED = [Names(((ROOT, "new", FILE),)), Data(FILE, 0, b"text")]
RENAMED = Names(((ROOT, "new", None), (ROOT, "name", FILE)))


def outcomes(changes: list[Change], model: str, folders: tuple[int, ...] = ()) -> set[str]:
    """What is there after all changes, over many cuts, as text."""
    recording = Recording(Disk(), changes, {FILE: False} | dict.fromkeys(folders, True))
    cuts = (recording.cut(len(changes), model, random.Random(seed)) for seed in range(300))
    return {" ".join(f"{name}={content}" for name, content in sorted(cut.tree().items())) for cut in cuts}


@pytest.mark.parametrize("model", MODELS)
def test_what_a_power_failure_leaves_of_a_file(model: str) -> None:
    torn = {f"name={content}" for content in (b"", b"text", b"\0\0\0\0")} | {
        f"new={content}" for content in (b"", b"text", b"\0\0\0\0")
    }
    assert outcomes([*CREATED, RENAMED], model) == {"", *torn}
    flushed = [*CREATED, Flush(FILE), RENAMED]
    kept = {"", f"new={b'text'}"} if model == "loose" else {f"new={b'text'}"}  # a journal takes the name along
    assert outcomes(flushed, model) == {*kept, f"name={b'text'}"}
    assert outcomes([*flushed, Flush(ROOT)], model) == {f"name={b'text'}"}


def test_names_in_any_order_or_in_that_of_the_journal() -> None:
    changes = [Names(((ROOT, "a", A),)), Names(((A, "f", FILE),)), Names(((ROOT, "b", B),)), Flush(A)]
    loose, ordered = (outcomes(changes, model, (A, B)) for model in MODELS)
    a, f, b = "a=None", f"a/f={b''}", "b=None"
    assert loose == {"", b, f"{a} {f}", f"{a} {f} {b}"}  # f is safe in its folder, whose own name may be lost
    assert ordered == {f"{a} {f} {b}"}


def test_a_rename_between_folders_is_one_transaction() -> None:
    changes = [Names(((ROOT, "a", A), (ROOT, "b", B), (A, "f", FILE))), Flush(ROOT)]
    changes.append(Names(((A, "f", None), (B, "g", FILE))))
    assert outcomes(changes, "loose", (A, B)) == {f"a=None a/f={b''} b=None", f"a=None b=None b/g={b''}"}


def test_large_writes_are_torn_at_pages() -> None:
    changes = [*CREATED[:1], Flush(ROOT), Data(FILE, 0, b"x" * 8192)]
    page, zeros = b"x" * 4096, bytes(4096)
    expected = (b"", page, zeros + page, page + page, page + zeros, zeros + zeros)
    assert outcomes(changes, "loose") == {f"new={content}" for content in expected}


def writes(folder: Path) -> None:
    """Most ways to write."""
    (folder / "a" / "b").mkdir(parents=True)
    with open(folder / "a" / "é", "wb") as file:
        file.write(b"hello")
        os.fsync(file.fileno())
        file.seek(2)
        file.write(b"LL")
    with open(folder / "old", "ab") as file:
        file.write(b"more")
    with open(folder / "holes", "wb") as file:
        os.pwrite(file.fileno(), b"end", 5000)
        os.pwritev(file.fileno(), [b"st", b"art"], 0)
    os.truncate(folder / "holes", 4999)
    shutil.copy(folder / "a" / "é", folder / "copied")
    os.link(folder / "copied", folder / "linked")
    (folder / "a" / "é").rename(folder / "a" / "b" / "moved")
    shutil.copytree(folder / "a", folder / "c")
    shutil.rmtree(folder / "a")


def writes_through_memory(folder: Path) -> None:
    with open(folder / "old", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:3] = b"new"


@needs_strace
def test_the_recorder_sees_every_write_or_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    recording = record([functools.partial(writes, root)], root, tmp_path / "log")  # compares with the folder itself
    assert sum(isinstance(change, Flush) for change in recording.changes) == 1
    assert recording.replayed(()).tree() == {"old": b"old"}
    with pytest.raises(RuntimeError, match="1 paths are not as recorded, old among them"):
        record([functools.partial(writes_through_memory, root)], root, tmp_path / "log")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its checkpoint, and texts."""
    folder = tmp_path_factory.mktemp("inputs")
    model = folder / "world" / "chat"
    build_model("llama", 0).save_pretrained(model)
    save_tiny_tokenizer(model, vocab_size=VOCAB_SIZE)
    make_mixture(folder / "mixture", model)
    convert_from_hf(model, folder / "release")
    write_texts(folder)
    return folder


def save_three_times(inputs: Path, root: Path) -> None:
    """What the engine and our settling do at each save; of its own the engine flushes tensors and index."""
    make_folder(root / "save")
    for iteration in (1, 2, 3):
        folder = root / "save" / f"iter_{iteration:07d}"
        shutil.copytree(inputs / "release" / "release", folder)
        for path in folder.iterdir():
            if path.name != "metadata.json":
                flush(path)
        (root / "save" / "latest_checkpointed_iteration.txt").write_text(str(iteration))
        _settle_saved(root / "save", keep_last=1)


def build_indices(inputs: Path, root: Path) -> None:
    """Datasets of one and of two passes, their indices in a cache."""
    manifest = MixtureManifest.load(inputs / "mixture")
    epochs = {"cpt": 1, "sft": 2, "dpo": 1}
    plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, split="100,0,0", epochs=epochs)
    config = engine_config(manifest, "100,0,0")
    config.path_to_cache = str(root / "cache")
    build_mixture_datasets(manifest, plan, config, num_valid_sequences=0)


SMALL = {
    "saving": Kind(run_alone(save_three_times), units_of_training, True),
    "indices": Kind(run_alone(build_indices), files_of),
    **{name: KINDS[name] for name in ("preprocess", "to Hugging Face")},
}


@needs_strace
@pytest.mark.parametrize("name", SMALL)
def test_what_has_its_final_name_is_whole(name: str, inputs: Path, tmp_path: Path) -> None:
    """And is found again; a command that is started again ends with the same bytes."""
    cuts = PowerCuts(SMALL[name], inputs, tmp_path / "drill", seed=1)
    for number in range(120):
        cuts.cut(MODELS[number % 2])
    if not SMALL[name].trains:
        cuts.resume()
    cuts.lose_all_after_the_end()
    assert not +cuts.found
