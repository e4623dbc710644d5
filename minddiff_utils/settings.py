"""All that can be asked for: methods, parameters and their ranges; and what a run remembers."""

import difflib
import json
import os
import re
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from minddiff_utils.io import InputError, claim_run, require, write_text


class Row(NamedTuple):
    """What one row of the tables is.

    `label`: its name in tables. `sees`: what it may look at, "brain" (the responses to the test
    pictures), "truth" (the test pictures themselves) or "nothing" of either. `notebook`: which
    makes it. `short`: its name where two methods are compared.
    """

    label: str
    sees: str
    notebook: str
    short: str = ""


# Every method and baseline, in the order of the tables: the paper's rows, what others do with the
# same parts, then baselines from the best that can be had to none of the brain.
ROWS = {
    "no_z": Row("no z", "brain", "04_stage2"),
    "no_c": Row("no c", "brain", "04_stage2"),
    "stage1": Row("no stage 2", "brain", "03_stage1", "stage 1"),
    "algorithm_1": Row(
        "both stages, Algorithm 1 as published", "brain", "04_stage2", "Algorithm 1"
    ),
    "stage2": Row("both stages, this book's solver", "brain", "04_stage2", "both stages"),
    "takagi": Row("Takagi & Nishimoto's way", "brain", "06_controls"),
    "neuraldiffuser": Row("NeuralDiffuser's schedule", "brain", "06_controls"),
    "ceiling": Row("true features", "truth", "06_controls", "ceiling"),
    "blur": Row("blurred truth", "truth", "06_controls"),
    "retrieval": Row("nearest training image", "brain", "06_controls"),
    "neighbour": Row("training image nearest the stimulus", "truth", "06_controls"),
    "mean": Row("mean image", "nothing", "06_controls"),
    "mean_features": Row("mean features", "nothing", "06_controls"),
    "shuffled": Row("shuffled responses", "nothing", "04_stage2"),
    "prior": Row("no brain at all", "nothing", "06_controls"),
}
CONTROLS = [name for name, row in ROWS.items() if row.notebook == "06_controls"]
FULL_METHODS = {"guided": "stage2", "algorithm_1": "algorithm_1"}  # what a solver's pictures are


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _folder_name(subject: str) -> str:
    # An underscore in front would be Markdown's emphasis, and hide the name from a legend.
    named = subject.replace("-", "_").isidentifier() and subject[0] not in "_-"
    if not named or subject in ("book", "html", "notebooks"):
        raise ValueError("should be a name of letters and digits such as subj01 or sub-01")
    return subject


def comma_separated(text: str) -> list[str]:
    """The names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _words(*known: str) -> Any:
    """The type of a text of some of these words with commas between, or of none."""

    def check_words(text: str) -> str:
        if not {*comma_separated(text)} <= {*known}:
            raise ValueError(f"should be any of {', '.join(known)}, with commas between")
        return text

    return Annotated[str, AfterValidator(check_words)]


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1)]
CountOr0 = Annotated[Whole, Field(ge=0)]
Share = Annotated[Number, Field(ge=1e-6, le=1)]  # above zero, in words of numbers


class Chosen:
    """A dataclass of settings, which can be picked from others."""

    @classmethod
    def of(cls, given: SimpleNamespace) -> Self:
        """Take its fields from what `start_chapter` or `recall` returns, but for the device."""
        known = {field.name for field in fields(cls)} & vars(given).keys() - {"device"}  # type: ignore
        return cls(**{name: getattr(given, name) for name in known})


@dataclass(frozen=True)
class Settings(Chosen):
    """How both stages run.

    Parameters
    ----------
    n_steps : int
        Steps of the whole denoising schedule.
    strength : float
        Share of the schedule that stage 1 noises and denoises, in (0, 1].
    guidance_scale : float
        Weight of the text condition (classifier-free guidance).
    solver : str
        Of stage 2. "guided": one guided pass (`guided_pass`). "algorithm_1": Algorithm 1, many
        passes with backpropagation through each.
    structure_target : str
        What stage 2 fits: "components", what the responses say about each component of CLIP's
        blocks (`evidence_loss`); "values", the decoded values themselves, as in the paper
        (`structure_loss`).
    step_size : float
        Guided solver: how far the structure moves the latent at each guided step, as a share
        of what the noise still leaves open.
    gradient_steps : int
        Guided solver: gradients a guided step, among which its size is divided.
    gradient_through : str
        Guided solver: what the gradient is taken of and runs back through, "text": the prediction
        under the text condition alone; "both": the guided one, for twice the passes of the UNet.
    gradient_decoder : str
        Guided solver: what paints the image that the gradient is taken of, "full": the
        autoencoder's decoder; "tiny": a small one made to paint the same, faster. The result is
        painted by the full one.
    guide_every : int
        Guided solver: every so many steps one is guided, the first among them.
    n_guided_steps : int
        Guided solver: how many steps are guided, from the first; 0: as many as have noise of a
        variance above .2 left, which the last ones of a schedule have not.
    z_evidence_weight : float
        Guided solver: how often the evidence about `z` itself is counted; 0 leaves it out.
    iterations : int
        Algorithm 1: updates; the picture after the last one is the result.
    learning_rate, learning_rate_decay : float
        Algorithm 1: of Adam, and the factor on it after each iteration.
    optimise : str
        Algorithm 1: "zc", "z" or "c", what changes.
    recompute : bool
        Algorithm 1: compute each step again in the backward pass, slower, with the memory of
        one step.

    Raises
    ------
    InputError
        If a value is of another type or out of its range.
    """

    n_steps: Annotated[Count, Field(le=999)] = 9  # which a model can take: `Generator.timesteps`
    strength: Share = 0.56
    guidance_scale: Annotated[Number, Field(ge=0, le=100)] = 3.0
    solver: Literal["guided", "algorithm_1"] = "guided"
    structure_target: Literal["components", "values"] = "components"
    step_size: Annotated[Number, Field(ge=0, le=100)] = 0.2
    gradient_steps: Annotated[Count, Field(le=1000)] = 2
    gradient_through: Literal["text", "both"] = "text"
    gradient_decoder: Literal["full", "tiny"] = "full"
    guide_every: Annotated[Count, Field(le=1000)] = 1
    n_guided_steps: Annotated[CountOr0, Field(le=1000)] = 0
    z_evidence_weight: Annotated[Number, Field(ge=0, le=1000)] = 1.0
    iterations: Annotated[CountOr0, Field(le=100_000)] = 300
    learning_rate: Annotated[Number, Field(ge=0, le=10)] = 0.01
    learning_rate_decay: Annotated[Number, Field(ge=0, le=1)] = 0.999
    optimise: Literal["zc", "z", "c"] = "zc"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, value in check(**vars(self)).items():
            object.__setattr__(self, name, value)  # 9 for 9.0


PARAMETERS: dict[str, Any] = {
    # The recording, and where results go.
    "dataset": Literal["nsd", "laion", "miyawaki", "miyawaki_full", "kay", "own"],
    "data_path": str,
    "subject": Annotated[str, AfterValidator(_folder_name)],
    "subjects": str,
    "rois": str,
    "sessions": Count | list[Count] | str | None,
    "protocol": Literal[982, 1000] | None,
    "split": str,
    "repetitions": Literal["average", "keep"],
    "run_dir": str,
    # Models, and how they compute.
    "models": str,
    "guide": str,
    "judge": str,
    "device": str,
    "dtype": Literal["auto", "float64", "float32", "bfloat16", "float16"],
    "save_memory": _words("attention", "tiling", "checkpointing"),
    "n_tokens": Literal[0] | Annotated[Whole, Field(ge=3)],  # the first and the last hold no word
    "batch": Count,
    "seed": Annotated[CountOr0, Field(le=2**32 - 1)],
    # Decoding.
    "n_blocks": Count,
    "decoder": Literal["ridge", "voxel_selected"],
    "target_components": CountOr0,
    **dict.fromkeys(["n_voxels_z", "n_voxels_c", "n_voxels_structure"], Count),
    "alpha": Annotated[Number, Field(ge=1e-12)],
    "rescale_z": Literal["none", "global", "target"],
    "rescale_c": Literal["component", "none"],
    "rescale_power": Annotated[Number, Field(ge=0, le=1)],
    "early_band_scale": Share,
    "keep_structure": Share,
    "n_components": Count,
    "min_reliability": Annotated[Share, Field(le=1 - 1e-6)],
    "max_reliability": Annotated[Share, Field(le=1 - 1e-6)],
    "n_folds": Annotated[Whole, Field(ge=2)],
    "n_permutations": Annotated[Whole, Field(ge=2)],
    # Both stages.
    **Settings.__annotations__,
    "ablations": bool,
    # Measures and controls.
    "ssim_size": Literal[0] | Annotated[Whole, Field(ge=11)],  # the window of SSIM
    "controls": _words(*CONTROLS),
    "blur": Share,
    "n_seeds": Annotated[Count, Field(le=1000)],
    "panel": Literal["none", "published", "full"],
    "n_way": Annotated[Whole, Field(ge=2)],
    "n_extra": CountOr0,
    "n_holdouts": CountOr0,
    "kinds": str,
    "n_curve": CountOr0,
    "n_generalise": CountOr0,
    "n_shown": Count,
    "advanced": dict[str, Any],  # by name, those of `ADVANCED`
}

ADAPTERS = {name: TypeAdapter(kind) for name, kind in PARAMETERS.items()}

# Of `Settings`, those that few will change.
RARE = ["gradient_through", "gradient_decoder", "guide_every", "n_guided_steps"]
RARE += ["learning_rate_decay", "optimise", "recompute"]
# What a chapter takes in its mapping `advanced`, with the defaults. The cell of a notebook's
# parameters declares the others.
ADVANCED: dict[str, dict[str, Any]] = {
    "02_decoding": {
        "guide": "",  # CLIP that stage 2 follows: folder or name; "" takes that of the models
        "save_memory": "",  # any of attention,tiling,checkpointing
        "n_tokens": 0,  # length of the text condition c (tokens); 0 takes the model's own
        "n_blocks": 6,  # vision blocks whose structure is decoded (count, from the first)
        "n_voxels_z": 3000,  # voxels for each value of z (count); this and the next three: the
        "n_voxels_c": 450,  # decoder "voxel_selected", for each value of c (count)
        "n_voxels_structure": 850,  # … of the structure and the embedding (count)
        "alpha": 0.15,  # penalty, the same for all values
        "rescale_power": 0.7,  # how far z is stretched: power of the factor, 0 to 1
        "rescale_c": "component",  # stretch components of decoded c to their spread, or "none"
        "keep_structure": 1.0,  # share of each block's values that is decoded, the best ones
        "n_components": 128,  # components of each block that are decoded (count, at most)
        "min_reliability": 0.02,  # R² below which a component says nothing
        "max_reliability": 0.8,  # R² that no component is believed to exceed
        "batch": 64,  # pictures at a time when features are computed (count)
        "n_permutations": 6,  # permutations of the responses that chance is the mean of (count)
    },
    "04_stage2": {name: getattr(Settings, name) for name in RARE},
    "05_metrics": {
        "judge": "",  # CLIP that stage 2 never saw: folder or name; "" takes that of the models
        "n_way": 10,  # candidates in a harder identification test (count)
    },
    "06_controls": {
        "blur": 0.06,  # standard deviation of the control "blur", a share of the picture's width
        "n_curve": 32,  # pictures painted for each point of the two curves (count); 0: no curves
        "n_generalise": 32,  # pictures painted of each further test set (count, at most)
        # Words of captions that name kinds of thing; "": clusters of captions.
        "kinds": "sun,tree,house,fish,boat,star,flower,bird,car,cat",
    },
}
PATHS = ("data_path", "run_dir", "models", "guide", "judge")

# Old names of parameters and their new ones, where these are not what is closest.
RENAMED = {
    "guidance": "guidance_scale",
    "structure": "structure_target",
    "reach": "step_size",
    "looks": "gradient_steps",
    "guided": "n_guided_steps",
    "pull": "z_evidence_weight",
    "decay": "learning_rate_decay",
    "early_say": "early_band_scale",
    "n_shuffles": "n_permutations",
    "seeds": "n_seeds",
    "least_reliability": "min_reliability",
    "most_reliability": "max_reliability",
}


def project_folder() -> Path:
    """Return the folder of the project: what relative paths among the parameters count from.

    The nearest folder above the working directory that holds `notebooks/Snakefile`, else the one
    that the package was installed from, else the working directory.
    """
    here = Path.cwd()
    folders = (here, *here.parents, Path(__file__).resolve().parents[1])
    return next((one for one in folders if (one / "notebooks" / "Snakefile").is_file()), here)


def resolve(path: str, project: Path | None = None) -> Path:
    """Return a path parameter made absolute; `~` and `$VARIABLE` mean what they do in a shell.

    Raises
    ------
    InputError
        If one of them stands for nothing here, and no file has such a name.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    found = (project or project_folder()) / expanded
    left = re.search(r"^~[^/]*|\$\w+|\$\{\w+\}", expanded)
    if left and not found.exists():
        raise InputError(f"{path!r} should be a path, but {left[0]} stands for nothing here.")
    return found.resolve()


def check(**values: Any) -> dict[str, Any]:
    """Check parameters of the notebooks.

    Parameters
    ----------
    **values
        Parameters by name.

    Returns
    -------
    dict
        The same as they are meant: 32.0 is 32 where whole numbers are wanted.

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
        wanted = " or ".join(one["msg"].split(" should be ")[-1] for one in error.errors())
        wanted = wanted.replace("valid integer", "whole number").replace("valid ", "")
        raise InputError(f"{name}={value!r} should be {wanted}.") from None


def no_such(name: str, known: Collection[str]) -> str:
    """Say that there is no such parameter, and which was perhaps meant."""
    if name in RENAMED:
        return f"The parameter `{name}` is called `{RENAMED[name]}` now."
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return f"There is no parameter `{name}`.{hint} Known: {', '.join(sorted(known))}."


def start_chapter(name: str, namespace: MutableMapping[str, Any]) -> SimpleNamespace:
    """Check what a notebook was given, and put it beside what the chapters before were given.

    What a chapter was given is kept in `run_dir/subject/run.json`, from which later ones take the
    recording, the models and the settings of stage 1.

    Parameters
    ----------
    name : str
        Of the notebook, such as "02_decoding".
    namespace : dict
        `globals()` of the notebook, after its cell of parameters; paths in it are made absolute.

    Returns
    -------
    SimpleNamespace
        The values of this chapter and of those before it by name, and `folder`, the subject's.

    Raises
    ------
    InputError
        As `check` does; if papermill was given a name that the notebook does not declare; if
        `run_dir` is no folder of a run; or if the chapter before has not run.
    """
    _check_given(namespace.get("In", []))
    own = check(**{key: namespace[key] for key in PARAMETERS if key in namespace})
    usual, advanced = ADVANCED.get(name, {}), own.pop("advanced", {})
    if strange := advanced.keys() - usual.keys():
        raise InputError(f"advanced: {no_such(min(strange), usual)}")
    declared = list(own)
    own |= check(**{**usual, **advanced})
    folder = claim_run(resolve(own["run_dir"])) / own.get("subject", "")
    if "subject" in own:
        _remember(folder, name, own)
        own = _remembered(folder, name)
    values = _resolved(own)
    namespace.update({key: values[key] for key in declared})
    return SimpleNamespace(**values, folder=folder)


def recall(folder: str | Path) -> SimpleNamespace:
    """Return what the chapters of a subject were given, by name; of later ones first.

    Raises
    ------
    InputError
        If no chapter has run there.
    """
    return SimpleNamespace(**_resolved(_remembered(Path(folder))))


def _resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with absolute paths; models that no folder holds keep their name on the hub."""
    paths = {name: resolve(values[name]) for name in PATHS if values.get(name)}
    found = {k: str(p) for k, p in paths.items() if p.exists() or k in ("data_path", "run_dir")}
    return {**values, **found}


def _remembered(folder: Path, last: str = "99") -> dict[str, Any]:
    """What the chapters up to one were given, by name; of later ones first."""
    chapters = json.loads(require(folder / "run.json", "01_data").read_text(encoding="utf-8"))
    given = [chapters[key] for key in sorted(chapters) if key <= last]
    return {name: value for values in given for name, value in values.items()}


def _remember(folder: Path, chapter: str, values: Mapping[str, Any]) -> None:
    path = folder / "run.json"
    begins = chapter.startswith("01") and not path.exists()
    known = {} if begins else json.loads(require(path, "01_data").read_text(encoding="utf-8"))
    write_text(path, json.dumps(known | {chapter: values}, indent=1, sort_keys=True) + "\n")


def _check_given(cells: list[str]) -> None:
    """Raise InputError for a name that papermill was given and the notebook does not declare."""
    # papermill puts what it was given into a cell of its own, after that of the parameters.
    for declared, given in zip(cells, cells[1:], strict=False):
        if given.startswith("# Parameters\n"):
            known, names = (re.findall(r"(?m)^(\w+) *=", cell) for cell in (declared, given))
            if strange := [name for name in names if name not in known]:
                raise InputError(no_such(strange[0], known))
