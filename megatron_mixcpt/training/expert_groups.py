"""Resuming a mixture of experts at another expert parallel size: the optimizer's settings find their optimizer.

Without expert parallelism one optimizer has all parameters; with it a second one has the experts', and the engine saves
a dictionary of the two by number. The tensors have the same names in both forms, and load at any layout. The settings
of the parameter groups (learning rate, weight decay, step) do not: the engine looks for them in the form of the layout
that loads, and stops. Here they are put into that form once the engine has loaded the checkpoint.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from megatron.core.optimizer.optimizer import param_group_identifier_keys

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.training.engine.patches import Change

State = dict[Any, Any]
_IS_OF_EXPERTS = "is_expert_parallel"
_IDENTIFIERS = tuple(key for key in param_group_identifier_keys if key != _IS_OF_EXPERTS)


def regrouped_experts() -> Change:
    """The change to the engine's loading."""
    return Change("megatron.core.dist_checkpointing.load", __name__, _regrouping)


def _regrouping(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loading(sharded_state_dict: State, *args: Any, **kwargs: Any) -> Any:
        wanted = sharded_state_dict.get("optimizer")
        wanted = _settings_of(wanted) if isinstance(wanted, dict) else None
        loaded = load(sharded_state_dict, *args, **kwargs)
        if wanted and isinstance(loaded, dict):
            loaded["optimizer"] = regroup(loaded["optimizer"], wanted)
        return loaded

    return loading


def _settings_of(state: State) -> State:
    """The parameter groups of what is asked for, which the engine's loading changes: by number of their optimizer."""
    numbered: State = {key: part for key, part in state.items() if isinstance(key, int)}
    optimizers = numbered or {None: state}
    return {key: [dict(group) for group in _groups(part)] for key, part in optimizers.items()}


def _groups(state: State) -> list[State]:
    """The parameter groups of one optimizer; those that keep float32 copies of weights have them one level deeper."""
    return state["param_groups"] if "param_groups" in state else state.get("optimizer", {}).get("param_groups", [])


def regroup(loaded: State, wanted: State) -> State:
    """The optimizers' state in the form of this layout.

    Args:
        loaded: the tensors in the form of this layout, and the rest in that of the checkpoint.
        wanted: the parameter groups of each of this layout's optimizers by its number; of a single one by None.

    Raises:
        CheckpointError: the checkpoint lacks the settings of a group.
    """
    numbered = {key: part for key, part in loaded.items() if isinstance(key, int)}
    single = {key: part for key, part in loaded.items() if not isinstance(key, int)}
    if None in wanted and numbered:
        return _filled(single, list(numbered.values()), wanted[None])
    if None not in wanted and single:
        return {key: _filled(numbered[key], [single], wanted[key]) for key in wanted}
    return loaded


def _filled(tensors: State, saved: list[State], wanted: list[State]) -> State:
    """One optimizer's tensors, with what ``saved`` has beside tensors; the first of several has it all but groups."""
    filled = dict(tensors)
    for key, value in saved[0].items():
        if isinstance(key, int):
            continue  # a parameter's tensors: those of this layout are there already
        if key == "param_groups":
            filled[key] = _matched(filled.get(key, []), [group for part in saved for group in part[key]], wanted)
        elif isinstance(value, dict):
            parts = [part[key] for part in saved if key in part]
            filled[key] = _filled(filled.get(key, {}), parts, wanted)
        else:
            filled.setdefault(key, value)
    return filled


def _matched(own: list[State], saved: list[State], wanted: list[State]) -> list[State]:
    """The saved settings of each wanted group, with the numbers of its parameters on this rank."""
    by_identity = {_identity(group): group for group in saved}
    matched = []
    for number, group in enumerate(wanted):
        if (found := by_identity.get(_identity(group))) is None:
            raise CheckpointError(
                f"the checkpoint has no settings of the optimizer for parameters with {_described(group)}: resume with "
                "the flags it was saved with, or start from its weights alone (--pretrained-checkpoint)"
            )
        own_params = {"params": own[number]["params"]} if number < len(own) and "params" in own[number] else {}
        matched.append(found | own_params | {_IS_OF_EXPERTS: group.get(_IS_OF_EXPERTS, False)})
    return matched


def _identity(group: State) -> tuple[Any, ...]:
    return tuple(str(group.get(key, group.get(f"pre_{key}"))) for key in _IDENTIFIERS)


def _described(group: State) -> str:
    given: Iterable[str] = (f"{key} {group[key]}" for key in _IDENTIFIERS if group.get(key) is not None)
    return ", ".join(given)
