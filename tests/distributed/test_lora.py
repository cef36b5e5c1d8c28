"""Adapters through the real entries: the teacher is the student without them, at every layout, and resuming is exact.

The reference of layouts is a run on one rank whose teacher is a second model: the same base, held apart.
"""

from pathlib import Path

import pytest
from torch.distributed.checkpoint import FileSystemReader

from megatron_mixcpt.errors import CheckpointError, ConfigError
from tests.distributed.test_alignment_training import flags as alignment_flags
from tests.distributed.test_alignment_training import make_world as make_alignment_world
from tests.distributed.test_alignment_training import train as train_alignment
from tests.distributed.tiny_run import flags, make_world, train, train_rank

TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
PP2 = ["--pipeline-model-parallel-size", "2"]
RECOMPUTE = ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]
LAYOUTS = {
    "TP2xPP2": (4, [*TP2_SP, *PP2]),
    "TP2 chunks": (2, [*TP2_SP[:2], "--loss-chunk-tokens", "16"]),
    "PP2 interleaved, recomputed": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2", *RECOMPUTE]),
    "CP2": (2, ["--context-parallel-size", "2"]),
    "DP2 distributed optimizer": (2, ["--use-distributed-optimizer"]),
}
LORA = ["--lora-rank", "4", "--lora-alpha", "12"]
KEYS = ("loss", "ntp loss", "lssd loss", "swapped fraction", "grad-norm")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), ["llama", "mixtral", "deepseek-v2"])


def lora_flags(world: Path, kind: str = "llama", *, iterations: int = 5, teacher: str | None = None) -> list[str]:
    """Flags of a run with adapters, by default with the student as its own teacher."""
    argv = flags(world, kind, iterations=iterations)
    place = argv.index("--teacher")
    argv[place : place + 2] = ["--teacher", str(world / teacher)] if teacher else []
    return [*argv, *LORA]


@pytest.fixture(scope="module")
def apart(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Curves on one rank, the teacher a model of its own."""
    return train(1, lora_flags(world, teacher="llama"), tmp_path_factory.mktemp("log"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_without_adapters_is_the_teacher(layout: str, world: Path, apart, tmp_path: Path) -> None:
    world_size, more = LAYOUTS[layout]
    curves = train(world_size, [*lora_flags(world), *more], tmp_path)
    for key in KEYS:  # float32: other orders of sums
        assert curves[key] == pytest.approx(apart[key], rel=1e-4), key


def test_a_teacher_has_no_dropout(world: Path, tmp_path: Path) -> None:
    """The student draws the same, whichever teacher it has: neither draws."""
    more = ["--hidden-dropout", "0.2", "--attention-dropout", "0.2", "--lora-dropout", "0.2"]
    own, other = (
        train(1, [*lora_flags(world, iterations=2, teacher=teacher), *more], tmp_path / str(teacher))
        for teacher in (None, "llama")
    )
    for key in KEYS:
        assert own[key] == pytest.approx(other[key], rel=1e-6), key


def test_adapters_start_as_nothing(world: Path, apart, tmp_path: Path) -> None:
    """B is zero: the first losses are those of the base model beside itself, bit for bit, as full training has them."""
    argv = lora_flags(world, iterations=1)
    full = train(1, argv[: argv.index("--lora-rank")], tmp_path)
    assert [full[key][0] for key in KEYS[:4]] == [apart[key][0] for key in KEYS[:4]]
    assert full["grad-norm"][0] > apart["grad-norm"][0] > 0.1  # of all weights, of B
    assert apart["lssd loss"][-1] > apart["lssd loss"][0]  # the student leaves its teacher


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("mixtral", ["--expert-model-parallel-size", "2"]),
        ("deepseek-v2", [*TP2_SP, "--lora-target-modules", "linear_q_proj,linear_kv_up_proj,linear_proj,linear_fc1"]),
    ],
)
def test_other_layers_agree(kind: str, layout: list[str], world: Path, tmp_path: Path) -> None:
    targets = layout[layout.index("--lora-target-modules") :] if "--lora-target-modules" in layout else []
    single = train(1, [*lora_flags(world, kind, iterations=3), *targets], tmp_path / "1")
    curves = train(2, [*lora_flags(world, kind, iterations=3), *layout], tmp_path / "2")
    for key in KEYS:
        assert curves[key] == pytest.approx(single[key], rel=1e-4), key


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Checkpoints at iterations 3 and 6 of a run at TP2 with dropout, and its curves."""
    root = tmp_path_factory.mktemp("uninterrupted")
    argv = [*lora_flags(world, iterations=6), *TP2_SP, "--lora-dropout", "0.2", "--use-distributed-optimizer"]
    return root / "save", train(2, [*argv, "--save", str(root / "save"), "--save-interval", "3"], root / "log")


def test_resumed_run_is_the_same_bit_for_bit(uninterrupted, world: Path, tmp_path: Path) -> None:
    checkpoint, curves = uninterrupted
    argv = [*lora_flags(world, iterations=6), *TP2_SP, "--lora-dropout", "0.2", "--use-distributed-optimizer"]
    resumed = train(2, [*argv, "--load", str(checkpoint), "--ckpt-step", "3"], tmp_path)
    for key in KEYS:
        assert resumed[key] == curves[key][3:], key


def test_a_checkpoint_holds_adapters_alone(uninterrupted) -> None:
    checkpoint, _ = uninterrupted
    metadata = FileSystemReader(checkpoint / "iter_0000006").read_metadata().state_dict_metadata
    shapes = {name: entry.size for name, entry in metadata.items() if hasattr(entry, "size")}
    weights = {name: tuple(shape) for name, shape in shapes.items() if not name.startswith(("optimizer", "rng"))}
    layer = "adapters.decoder.layers.3."
    assert weights[f"{layer}mlp.linear_fc1.lora_a"] == (4, 48)
    assert weights[f"{layer}mlp.linear_fc1.lora_b"] == (144, 4)
    assert weights[f"{layer}self_attention.linear_proj.lora_a"] == (4, 48)
    assert len(weights) == 4 * 4 * 2 and all(name.startswith("adapters.") for name in weights)


def test_another_layout_goes_on_from_a_checkpoint(uninterrupted, world: Path, tmp_path: Path) -> None:
    """Both without dropout, which no two layouts draw alike: the layout that saved it, and another."""
    checkpoint, _ = uninterrupted
    argv = [*lora_flags(world, iterations=6), "--load", str(checkpoint), "--ckpt-step", "3", "--resume-with-changes"]
    argv += ["--use-distributed-optimizer"]
    runs = [train(size, [*argv, *more], tmp_path / str(size)) for size, more in ((2, TP2_SP), (1, []))]
    for key in KEYS:
        assert runs[0][key] == pytest.approx(runs[1][key], rel=1e-4), key


def test_what_is_refused(uninterrupted, world: Path, tmp_path: Path) -> None:
    checkpoint, _ = uninterrupted
    argv = lora_flags(world, iterations=6)
    for more, message in (
        (["--lora-target-modules", "linear_q_proj"], "llama has no linear_q_proj .*choose from linear_qkv,linear_proj"),
        (["--distillation", "l2"], "--distillation l2 penalizes"),
        (["--teacher-offload", "cpu"], "--teacher-offload cpu with --lora-rank: the teacher is the student"),
        (["--pretrained-checkpoint", str(checkpoint)], "--pretrained-checkpoint cannot be used with --lora-rank"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_rank([*argv, *more, "--dry-run"])
    other = [str(world / "llama-teacher") if flag == str(world / "llama") else flag for flag in argv]
    with pytest.raises(ConfigError, match="the base model's weights .* this one has"):
        train_rank([*other, "--lora-dropout", "0.2", "--load", str(checkpoint), "--dry-run"])
    with pytest.raises(CheckpointError, match="holds adapters: add the --lora-rank that it had"):
        train_rank([*flags(world, "llama", iterations=6), "--load", str(checkpoint), "--dry-run"])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_alignment_world(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_alignment_agrees_at_every_layout(stage: str, samples: Path, tmp_path: Path) -> None:
    argv = [*alignment_flags(samples, stage), *LORA]
    keys = ("loss", "grad-norm", *(("chosen reward", "reward margin") if stage == "dpo" else ()))
    runs = {
        "single": (1, ["--precompute-reference"] if stage == "dpo" else []),
        "TP2xPP2": (4, [*TP2_SP, *PP2]),
    }
    curves = {
        name: train_alignment(size, stage, [*argv, *more], tmp_path / name) for name, (size, more) in runs.items()
    }
    for key in keys:
        assert curves["single"][key] == pytest.approx(curves["TP2xPP2"][key], rel=1e-3, abs=1e-5), key
    assert curves["single"]["loss"][-1] < curves["single"]["loss"][0]
