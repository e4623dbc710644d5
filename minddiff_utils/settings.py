"""All that can be set about the two stages, in one commented block."""

from dataclasses import dataclass

from minddiff_utils.files import InputError

__all__ = ["Settings"]

BOUNDS = {
    "n_steps": (1, 999),  # which of them a model can take: `Generator.timesteps`
    "strength": (1e-6, 1),
    "guidance": (0, 100),
    "reach": (0, 100),
    "looks": (1, 1000),
    "every": (1, 1000),
    "guided": (0, 1000),
    "pull": (0, 1000),
    "iterations": (0, 100_000),
    "learning_rate": (0, 10),
    "decay": (0, 1),
}
CHOICES = {
    "solver": ("fast", "paper"),
    "through": ("text", "both"),
    "optimise": ("zc", "z", "c"),
    "structure": ("components", "values"),
}


@dataclass(frozen=True)
class Settings:
    """How both stages run.

    Parameters
    ----------
    n_steps : int
        Steps of the whole denoising schedule.
    strength : float
        Share of the schedule that stage 1 noises and denoises, in (0, 1].
    guidance : float
        Weight of the text condition (classifier-free guidance).
    solver : str
        Of stage 2. "fast": one guided pass (`guidance.guided_pass`). "paper": Algorithm 1, many
        passes with backpropagation through each.
    structure : str
        What stage 2 fits: "components", what the responses say about each component of CLIP's
        blocks (`evidence_loss`); "values", the decoded values themselves, as in the paper
        (`structure_loss`).
    reach : float
        Fast solver: how far the structure moves the latent at each guided step, as a share of what
        the noise still leaves open.
    looks : int
        Fast solver: gradients a guided step, among which its reach is divided.
    through : str
        Fast solver: what the gradient is taken of and runs back through, "text": the prediction
        under the text condition alone; "both": the guided one, for twice the passes of the UNet.
    every : int
        Fast solver: every so many steps one is guided, the first among them.
    guided : int
        Fast solver: steps after the first so many are not guided; 0 sets no such end.
    pull : float
        Fast solver: how often the evidence about `z` itself is counted; 0 leaves it out.
    iterations : int
        Paper's solver: updates; the picture after the last one is the result.
    learning_rate, decay : float
        Paper's solver: of Adam, and the factor on it after each iteration.
    optimise : str
        Paper's solver: "zc", "z" or "c", what changes.
    recompute : bool
        Paper's solver: compute each step again in the backward pass, slower, with the memory of
        one step.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    n_steps: int = 9
    strength: float = 0.56
    guidance: float = 3.0
    solver: str = "fast"
    structure: str = "components"
    reach: float = 0.2
    looks: int = 2
    through: str = "text"
    every: int = 1
    guided: int = 0
    pull: float = 1.0
    iterations: int = 300
    learning_rate: float = 0.01
    decay: float = 0.999
    optimise: str = "zc"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name}={value}: expected a value from {low:g} to {high:g}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                wanted = " or ".join(f'"{choice}"' for choice in known)
                raise InputError(f"{name}={getattr(self, name)!r}: expected {wanted}.")
