"""The flags of ``tools/evaluate.py`` and the settings they make."""

import argparse
from pathlib import Path

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.perplexity import WindowSettings
from megatron_mixcpt.evaluation.settings import EvaluateSettings, MTBenchSettings, TaskSettings
from megatron_mixcpt.evaluation.suites import choose_tasks, listing
from megatron_mixcpt.named_paths import parse_named_paths


def evaluate_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the tool's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--hf-model", type=Path, metavar="DIR", help="Hugging Face model folder")
    model.add_argument("--load", type=Path, metavar="DIR", help="Megatron checkpoint")
    parser.add_argument("--iteration", type=int, metavar="N", help="of --load (default: the latest)")
    parser.add_argument("--name", help="what reports call the model (default: its folder's name)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    _add_perplexity_flags(parser)
    _add_task_flags(parser)
    _add_mt_bench_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_perplexity_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("perplexity and bits per byte of texts")
    text = "text sets: JSONL, plain text (.gz, .bz2, .zst too), Parquet, folders or globs of these"
    group.add_argument("--perplexity", nargs="+", default=[], metavar="NAME=PATH", help=text)
    group.add_argument("--text-field", default="text", metavar="NAME", help="of a record (default text)")
    text = "most tokens that the model reads at once (default %(default)s)"
    group.add_argument("--sequence-length", type=int, default=2048, metavar="N", help=text)
    text = "tokens that each window after a document's first scores; smaller gives more context (default: all of it)"
    group.add_argument("--stride", type=int, metavar="N", help=text)
    text = "most tokens in a batch, padding included (default %(default)s); decides speed and memory alone"
    group.add_argument("--batch-tokens", type=int, default=4096, metavar="N", help=text)


def _add_task_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("benchmark tasks, through lm-eval")
    text = "suites, or single tasks of them; see --list-suites"
    group.add_argument("--tasks", nargs="+", default=[], metavar="SUITE|TASK", help=text)
    group.add_argument("--list-suites", action="version", version=listing(), help="list the suites, and stop")
    text = "read the tasks' data from files of this folder instead of downloading them (docs/evaluation.md)"
    group.add_argument("--task-data", type=Path, metavar="DIR", help=text)
    text = "examples before each question (default: as the task has it; those with examples of their own keep them)"
    group.add_argument("--num-fewshot", type=int, metavar="N", help=text)
    group.add_argument("--task-limit", type=int, metavar="N", help="ask the first N questions of each task only")
    text = "questions that run together (default %(default)s)"
    group.add_argument("--task-batch-size", type=int, default=TaskSettings.batch_size, metavar="N", help=text)
    text = "ask in the tokenizer's chat template, for aligned models"
    group.add_argument("--apply-chat-template", action="store_true", help=text)
    text = "run the programs that the model writes for HumanEval and MBPP, isolated (docs/evaluation.md)"
    group.add_argument("--run-generated-code", action="store_true", help=text)


def _add_mt_bench_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("MT-Bench, for aligned models")
    text = "its questions as JSONL: question_id, category, turns, reference"
    group.add_argument("--mt-bench", type=Path, metavar="FILE", help=text)
    text = "OpenAI-compatible endpoint of the model that rates the answers, such as https://api.openai.com/v1"
    group.add_argument("--judge-url", metavar="URL", help=text)
    group.add_argument("--judge-model", metavar="NAME", help="what the endpoint calls that model")
    text = "environment variable with its key, if it wants one (default %(default)s)"
    group.add_argument("--judge-key", default=MTBenchSettings.judge_key_variable, metavar="VARIABLE", help=text)
    for name, what in (("temperature", "of the answers"), ("top_p", "of the answers"), ("max_new_tokens", "of each")):
        default = getattr(MTBenchSettings, name)
        flag, text = f"--mt-bench-{name.replace('_', '-')}", f"{what} (default {default})"
        group.add_argument(flag, type=type(default), default=default, metavar="N", help=text)


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model runs (under torchrun; ranks beyond TP x PP are data parallel)")
    group.add_argument("--tensor-model-parallel-size", type=int, default=1, metavar="TP", help="default 1")
    group.add_argument("--pipeline-model-parallel-size", type=int, default=1, metavar="PP", help="default 1")
    text = "of weights and computation (default %(default)s)"
    group.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help=text)


def evaluate_settings(arguments: argparse.Namespace) -> EvaluateSettings:
    """Check the flags and make settings of them. Raises ConfigError."""
    if not (arguments.perplexity or arguments.tasks or arguments.mt_bench):
        raise ConfigError("nothing to evaluate: give --perplexity NAME=PATH, --tasks, --mt-bench or several of them")
    if arguments.iteration is not None and arguments.load is None:
        raise ConfigError(f"--iteration {arguments.iteration} is of a Megatron checkpoint: give --load too")
    return EvaluateSettings(
        windows=_window_settings(arguments),
        text_sets=parse_named_paths("--perplexity", arguments.perplexity),
        text_field=arguments.text_field,
        dtype=arguments.dtype,
        tasks=_task_settings(arguments),
        mt_bench=_mt_bench_settings(arguments),
    )


def _mt_bench_settings(arguments: argparse.Namespace) -> MTBenchSettings | None:
    if arguments.mt_bench is None:
        return None
    if not arguments.judge_url or not arguments.judge_model:
        raise ConfigError(f"--mt-bench {arguments.mt_bench}: say who rates the answers, --judge-url and --judge-model")
    if not arguments.judge_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"--judge-url {arguments.judge_url}: expected an address that begins with http:// or https://"
        )
    if arguments.mt_bench_temperature <= 0 or not 0 < arguments.mt_bench_top_p <= 1:
        raise ConfigError("--mt-bench-temperature must be above 0, --mt-bench-top-p above 0 and at most 1")
    return MTBenchSettings(
        questions=arguments.mt_bench,
        judge_url=arguments.judge_url,
        judge_model=arguments.judge_model,
        judge_key_variable=arguments.judge_key,
        temperature=arguments.mt_bench_temperature,
        top_p=arguments.mt_bench_top_p,
        max_new_tokens=arguments.mt_bench_max_new_tokens,
    )


def _task_settings(arguments: argparse.Namespace) -> TaskSettings:
    for name, least in (("num_fewshot", 0), ("task_limit", 1), ("task_batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
    if arguments.task_data is not None and not arguments.task_data.is_dir():
        raise ConfigError(f"--task-data {arguments.task_data}: no such folder; check the path")
    return TaskSettings(
        suites=choose_tasks(arguments.tasks),
        data=arguments.task_data,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.task_limit,
        batch_size=arguments.task_batch_size,
        apply_chat_template=arguments.apply_chat_template,
        run_generated_code=arguments.run_generated_code,
    )


def _window_settings(arguments: argparse.Namespace) -> WindowSettings:
    for name in ("sequence_length", "batch_tokens"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: expected at least 1")
    stride = arguments.sequence_length if arguments.stride is None else arguments.stride
    if not 1 <= stride <= arguments.sequence_length:
        raise ConfigError(f"--stride {stride}: expected 1 to --sequence-length {arguments.sequence_length}")
    return WindowSettings(arguments.sequence_length, stride, arguments.batch_tokens)
