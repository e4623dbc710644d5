"""All that can be set about the two stages, in one commented block."""

from dataclasses import dataclass

from minddiff_utils.parameters import check


@dataclass(frozen=True)
class Settings:
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
    guide_every : int
        Guided solver: every so many steps one is guided, the first among them.
    n_guided_steps : int
        Guided solver: steps after the first so many are not guided; 0 sets no such end.
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

    n_steps: int = 9
    strength: float = 0.56
    guidance_scale: float = 3.0
    solver: str = "guided"
    structure_target: str = "components"
    step_size: float = 0.2
    gradient_steps: int = 2
    gradient_through: str = "text"
    guide_every: int = 1
    n_guided_steps: int = 0
    z_evidence_weight: float = 1.0
    iterations: int = 300
    learning_rate: float = 0.01
    learning_rate_decay: float = 0.999
    optimise: str = "zc"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, value in check(**vars(self)).items():
            object.__setattr__(self, name, value)  # 9 for 9.0
