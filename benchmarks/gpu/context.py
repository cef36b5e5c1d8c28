"""What a check gets: sizes, folders, and how it starts the trainers and other work as separate processes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import NotRunError, Report

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ModelSize:
    """A Llama of random weights."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int

    @property
    def head_size(self) -> int:
        """Columns of a head."""
        return self.hidden_size // self.num_heads


LLAMA_1B = ModelSize(2048, 8192, 16, 32, 8, 128_256)
SMOLLM2 = ModelSize(576, 1536, 30, 9, 3, 49_152)


@dataclass(frozen=True)
class Sizes:
    """How large things are: on a GPU, and for the exercise of the kit on a CPU."""

    copy_bytes: int = 8 * 10**9
    product: int = 8192
    vocab_sizes: tuple[tuple[int, int], ...] = (
        (49_152, 49_152),
        (128_256, 128_256),
        (152_064, 152_064),
        (152_064, 151_936),
    )
    """Columns, and how many of them are true."""
    token_counts: tuple[int, ...] = (512, 384, 1024, 512)
    int64_shape: tuple[int, int] = (17_408, 128_256)
    reference_rows: int = 256
    fused_linear: tuple[int, int, int] = (2048, 2048, 128_256)
    fused_linear_speed: tuple[int, int, int] = (8192, 2048, 128_256)
    chunk_tokens: tuple[int, ...] = (512, 1024, 2048, 4096)
    loss_tokens: tuple[int, ...] = (2048, 8192)
    loss_vocab_sizes: tuple[int, ...] = (49_152, 128_256, 152_064)
    llama_1b: ModelSize = LLAMA_1B
    smollm2: ModelSize = SMOLLM2
    compared_tokens: int = 512
    seq_length: int = 2048
    loss_chunk_tokens: int = 512
    micro_batch_sizes: tuple[int, ...] = (1, 2, 4)
    rounds: int = 6
    offload_tokens: tuple[int, ...] = (2048, 8192, 16_384)
    mask_lengths: tuple[int, ...] = (2048, 8192)
    repeats: int = 15
    ranks_micro_batches: int = 4


_TINY_MODEL = ModelSize(64, 128, 2, 4, 2, 384)
TINY = Sizes(
    copy_bytes=2**20,
    product=64,
    vocab_sizes=((256, 256), (384, 380)),
    token_counts=(16, 12),
    int64_shape=(40, 384),
    reference_rows=16,
    fused_linear=(32, 32, 384),
    fused_linear_speed=(32, 32, 384),
    chunk_tokens=(8, 32),
    loss_tokens=(16,),
    loss_vocab_sizes=(384,),
    llama_1b=_TINY_MODEL,
    smollm2=_TINY_MODEL,
    compared_tokens=32,
    seq_length=32,
    loss_chunk_tokens=8,
    micro_batch_sizes=(1, 2),
    rounds=2,
    offload_tokens=(32, 64),
    mask_lengths=(32, 64),
    repeats=2,
    ranks_micro_batches=2,
)


@dataclass
class Context:
    """Of one check in one process."""

    report: Report
    work: Path
    """A folder that the checks of one call share: models, raw figures."""
    name: str
    tiny: bool = False
    """The exercise on a CPU."""
    num_ranks: int = 1
    """GPUs that the part ``ranks`` may use."""
    smollm2: Path | None = None
    """A folder with SmolLM2-135M, or None."""
    peers: Path | None = None
    """A folder with other libraries beside the installed ones, or None."""

    @property
    def sizes(self) -> Sizes:
        """How large things are."""
        return TINY if self.tiny else Sizes()

    @property
    def scratch(self) -> Path:
        """A folder of this check alone."""
        folder = self.work / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start(self, command: list[str], log: str, num_ranks: int = 1, **environment: str) -> subprocess.Popen:
        """Start Python with these arguments, under torchrun for more than one rank; its output goes to ``log``.

        NVIDIA_TF32_OVERRIDE=0: float32 means float32 in whatever it runs.
        """
        python = [sys.executable]
        if num_ranks > 1:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        settings = {"PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()]), "PYTHONWARNINGS": "ignore"}
        settings |= {"NVIDIA_TF32_OVERRIDE": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Ranks are given their threads: torchrun otherwise warns of its own choice.
        settings |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1" if self.tiny else "4")}
        if self.tiny:
            settings |= {"MIXCPT_DEVICE": "cpu"}
        with (self.scratch / log).open("wb") as output:
            return subprocess.Popen(
                [*python, *command],
                cwd=ROOT,
                env=_without_torchrun(dict(os.environ)) | settings | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def finish(self, process: subprocess.Popen, log: str, timeout_s: float | None = None) -> None:
        """Wait for it. Raises RuntimeError with what it printed last if it fails."""
        if process.wait(timeout_s):
            raise RuntimeError(f"{log} ended with code {process.returncode}: {self.last_words(log)}")

    def last_words(self, log: str) -> str:
        """The last line of an error in a log, else its last line."""
        lines = [line.strip() for line in (self.scratch / log).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
        return (errors or lines or ["it printed nothing"])[-1][:400]

    def call(self, function: str, arguments: dict[str, Any], label: str, num_ranks: int = 1, **environment: str) -> Any:
        """What ``module:function(**arguments)`` returns on rank 0, in separate processes (``inner.py``)."""
        folder = self.scratch
        given, result = folder / f"{label}.arguments.json", folder / f"{label}.result.json"
        given.write_text(json.dumps(arguments), encoding="utf-8")
        result.unlink(missing_ok=True)
        command = [str(ROOT / "benchmarks/gpu/inner.py"), function, str(given), str(result)]
        self.finish(self.start(command, f"{label}.log", num_ranks, **environment), f"{label}.log")
        return json.loads(result.read_text(encoding="utf-8"))

    def train(self, tool: str, argv: list[str], label: str, num_ranks: int = 1) -> dict[str, list[float]]:
        """Run ``tools/TOOL.py`` and return its curves: name -> value of each iteration."""
        started = self.start_training(tool, argv, label, num_ranks)
        self.finish(started, f"{label}.log")
        return self.curves(label)

    def start_training(self, tool: str, argv: list[str], label: str, num_ranks: int = 1) -> subprocess.Popen:
        """Start ``tools/TOOL.py``; :meth:`curves` reads what it logs."""
        shutil.rmtree(self.scratch / f"{label}.curves", ignore_errors=True)
        command = [str(ROOT / f"tools/{tool}.py"), *argv, "--tensorboard-dir", str(self.scratch / f"{label}.curves")]
        return self.start(command, f"{label}.log", num_ranks)

    def curves(self, label: str) -> dict[str, list[float]]:
        """The curves that a training has logged."""
        from megatron_mixcpt.training_log import read_log

        log = read_log(self.scratch / f"{label}.curves")
        return {name: [value for _, value in curve] for name, curve in log.curves.items()}

    def train_together(
        self, runs: dict[str, tuple[str, list[str]]], at_a_time: int = 3
    ) -> dict[str, dict[str, list[float]] | RuntimeError]:
        """Several trainings, label -> tool and flags, that are too small to fill a device; the curves or the failure of
        each. On a CPU one after the other."""
        pending, found = list(runs.items()), {}
        while pending:
            batch, pending = pending[:at_a_time], pending[at_a_time:]
            if self.tiny:
                batch, pending = batch[:1], [*batch[1:], *pending]
            started = {label: self.start_training(tool, argv, label) for label, (tool, argv) in batch}
            for label, process in started.items():
                try:
                    self.finish(process, f"{label}.log")
                    found[label] = self.curves(label)
                except RuntimeError as error:
                    found[label] = error
        return found

    def needs_ranks(self, number: int) -> None:
        """Raise NotRunError where there are fewer GPUs."""
        if self.num_ranks < number:
            raise NotRunError(f"needs {number} GPUs, there are {self.num_ranks}")


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _without_torchrun(environment: dict[str, str]) -> dict[str, str]:
    """Without what a torchrun around the kit has set for its own workers."""
    own = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"}
    own |= {"ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {key: value for key, value in environment.items() if key not in own and not key.startswith("TORCHELASTIC_")}
