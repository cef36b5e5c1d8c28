"""Lets the engine start where its C++ dataset helper is compiled already."""

from importlib.util import find_spec

from megatron.core.datasets import utils


def skip_helper_compilation() -> None:
    """Keep the engine from compiling its dataset helper when it can be imported; call it before `pretrain()`.

    `initialize_megatron()` runs `make` in the engine's dataset folder and exits when that fails. The engine's wheel holds
    the compiled helper but no Makefile, so it would always fail; a source checkout has a Makefile and no helper yet.
    """
    if find_spec("megatron.core.datasets.helpers_cpp") is not None:
        utils.compile_helpers = lambda: None
