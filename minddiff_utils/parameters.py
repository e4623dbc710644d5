"""All parameters of the notebooks: what each may be, checked before anything is computed."""

import ast
import difflib
import os
import re
from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from minddiff_utils.io import InputError

# Texts of words with commas between; none of them is needed.
WORDS = {
    "controls": (
        "ceiling",
        "mean_features",
        "prior",
        "retrieval",
        "blur",
        "takagi",
        "neuraldiffuser",
    ),
    "save_memory": ("attention", "tiling", "checkpointing"),
}


def expand_path(path: str) -> str:
    """Put in what `~` and `$VARIABLE` stand for, as a shell does.

    Raises
    ------
    ValueError
        If one stands for nothing, and no file has such a name.
    """
    if Path(path).exists():
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))
    if left := re.search(r"^~[^/]*|\$\w+|\$\{\w+\}", expanded):
        raise ValueError(f"should be a path, but {left[0]} stands for nothing here")
    return expanded


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _words(*known: str) -> Any:
    def check_words(text: str) -> str:
        if not {word.strip() for word in text.split(",")} <= {"", *known}:
            raise ValueError(f"should be any of {', '.join(known)}, with commas between")
        return text

    return Annotated[str, AfterValidator(check_words)]


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1)]
CountOr0 = Annotated[Whole, Field(ge=0)]
Share = Annotated[Number, Field(ge=1e-6, le=1)]  # above zero, in words of numbers
PathText = Annotated[str, AfterValidator(expand_path)]

PARAMETERS: dict[str, Any] = {
    # The recording, and where results go.
    "dataset": Literal["nsd", "miyawaki", "miyawaki_full", "kay", "own"],
    "data_path": PathText,
    "subject": str,
    "subjects": str,
    "rois": str,
    "sessions": Count | list[Count] | str | None,
    "protocol": Literal[982, 1000] | None,
    "repetitions": Literal["average", "keep"],
    "run_dir": PathText,
    # Models, and how they compute.
    "models": PathText,
    "guide": PathText,
    "judge": PathText,
    "device": str,
    "dtype": Literal["auto", "float64", "float32", "bfloat16", "float16"],
    "save_memory": _words(*WORDS["save_memory"]),
    "n_tokens": Literal[0] | Annotated[Whole, Field(ge=3)],  # the first and the last hold no word
    "batch": Count,
    "seed": Annotated[CountOr0, Field(le=2**32 - 1)],
    # Decoding.
    "n_blocks": Count,
    "decoder": Literal["ridge", "voxel_selected"],
    "target_components": CountOr0,
    "n_voxels_z": Count,
    "n_voxels_c": Count,
    "n_voxels_structure": Count,
    "alpha": Annotated[Number, Field(ge=1e-12)],
    "rescale_z": Literal["none", "global", "target"],
    "rescale_power": Annotated[Number, Field(ge=0, le=1)],
    "early_band_scale": Share,
    "select_by": Literal["correlation", "r2"],
    "keep_structure": Share,
    "n_components": Count,
    "min_reliability": Annotated[Share, Field(le=1 - 1e-6)],
    "max_reliability": Annotated[Share, Field(le=1 - 1e-6)],
    "n_folds": Annotated[Whole, Field(ge=2)],
    "n_permutations": Annotated[Whole, Field(ge=2)],
    # Both stages: `settings.Settings`.
    "n_steps": Annotated[Count, Field(le=999)],  # which a model can take: `Generator.timesteps`
    "strength": Share,
    "guidance_scale": Annotated[Number, Field(ge=0, le=100)],
    "solver": Literal["guided", "algorithm_1"],
    "structure_target": Literal["components", "values"],
    "step_size": Annotated[Number, Field(ge=0, le=100)],
    "gradient_steps": Annotated[Count, Field(le=1000)],
    "gradient_through": Literal["text", "both"],
    "guide_every": Annotated[Count, Field(le=1000)],
    "n_guided_steps": Annotated[CountOr0, Field(le=1000)],
    "z_evidence_weight": Annotated[Number, Field(ge=0, le=1000)],
    "iterations": Annotated[CountOr0, Field(le=100_000)],
    "learning_rate": Annotated[Number, Field(ge=0, le=10)],
    "learning_rate_decay": Annotated[Number, Field(ge=0, le=1)],
    "optimise": Literal["zc", "z", "c"],
    "recompute": bool,
    "ablations": bool,
    # Measures and controls.
    "ssim_size": Literal[0] | Annotated[Whole, Field(ge=11)],  # the window of SSIM
    "controls": _words(*WORDS["controls"]),
    "blur": Share,
    "n_seeds": Annotated[Count, Field(le=1000)],
    "panel": Literal["none", "published", "full"],
    "n_way": Annotated[Whole, Field(ge=2)],
    "n_extra": CountOr0,
    "n_holdouts": CountOr0,
    "kinds": str,
    "sizes": str,
    "scenes": str,
    "n_gallery": Count,
    "n_shown": Count,
}
ADAPTERS = {name: TypeAdapter(kind) for name, kind in PARAMETERS.items()}


def check(**values: Any) -> dict[str, Any]:
    """Check parameters of the notebooks.

    Parameters
    ----------
    **values
        Parameters by name.

    Returns
    -------
    dict
        The same as they are meant: 32.0 is 32 where whole numbers are wanted, and in paths `~`
        and `$VARIABLE` stand for what they do in a shell.

    Raises
    ------
    InputError
        At the first name that is unknown, or value of another type or out of its range.
    """
    if strange := values.keys() - PARAMETERS:
        raise InputError(no_such(min(strange), PARAMETERS))
    return {name: check_type(name, value, ADAPTERS[name]) for name, value in values.items()}


def check_type(name: str, value: Any, adapter: TypeAdapter) -> Any:
    """Return the value as it is meant; InputError with its name if it does not fit the type."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        texts = [
            re.sub("^(Input|Value error,) should be ", "", one["msg"]) for one in error.errors()
        ]
        wanted = " or ".join(texts).replace("valid integer", "whole number")
        raise InputError(f"{name}={value!r} should be {wanted.replace('valid ', '')}.") from None


def check_parameters(namespace: MutableMapping[str, Any]) -> None:
    """Check what a notebook was given, by papermill or by hand in its cell of parameters.

    Parameters
    ----------
    namespace : dict
        `globals()` of the notebook. Its parameters are replaced by what `check` makes of them.

    Raises
    ------
    InputError
        As `check` does, and if papermill was given a name that the notebook does not declare.
    """
    cells = namespace.get("In", [])
    # papermill puts what it was given into a cell of its own, after that of the parameters.
    for declared, given in zip(cells, cells[1:], strict=False):
        if given.startswith("# Parameters\n"):
            known = _assigned(declared)
            for name in _assigned(given):
                if name not in known:
                    raise InputError(no_such(name, known))
    found = {name: namespace[name] for name in PARAMETERS if name in namespace}
    namespace.update(check(**found))


def no_such(name: str, known: Collection[str]) -> str:
    """Say that there is no such parameter, and which was perhaps meant."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return f"There is no parameter `{name}`.{hint} Known: {', '.join(sorted(known))}."


def _assigned(source: str) -> list[str]:
    """Return the names that a cell gives values to."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]
