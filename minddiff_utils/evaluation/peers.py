"""What other methods do with the same brain, decoders and generator, as presets of this one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from minddiff_utils.datasets import Subject
from minddiff_utils.datasets.areas import is_early
from minddiff_utils.decoding.decode import decode_splits
from minddiff_utils.evaluation.holdout import decoding_of
from minddiff_utils.io import InputError
from minddiff_utils.settings import Settings

GUIDED, OF = 7, 37  # NeuralDiffuser: steps that are guided, the first ones, and steps in all


def early_and_higher(roi: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Split the voxels into those of early visual areas, V1 to V3, and those of all others.

    Parameters
    ----------
    roi : mapping of name to bool array, shape (n_voxels,)

    Returns
    -------
    early, higher : bool arrays, shape (n_voxels,)

    Raises
    ------
    InputError
        If either has no voxel.
    """
    masks = [mask for name, mask in roi.items() if is_early(name, narrow=True)]
    early = np.any(masks or [[False]], axis=0)
    higher = np.any(list(roi.values()), axis=0) & ~early
    for name, mask in (("early", early), ("higher", higher)):
        if not mask.any():
            raise InputError(
                f"The regions {', '.join(roi)} hold no voxel of {name} visual areas; early ones "
                "are named V1, V2, V3, or early. Leave `takagi` out of `controls`."
            )
    return early, higher


def decode_takagi(
    subject: Subject, features_path: str | Path, decoded_path: str | Path, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Decode as Takagi & Nishimoto (2023): `z` from early visual areas, `c` from the higher ones.

    Their reconstruction is stage 1 of what comes out. Decoders, their cross-validation and the
    generator are those of the run, so that what differs is which voxels say what, and no stage 2.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
        From `write_features`.
    decoded_path : str or Path
        What `decode_subject` wrote of this run: its settings are taken.
    device : str
        Of torch, for the fits.

    Returns
    -------
    dict
        `stimulus_id` int64 (n_test,), `z` and `c` float32 (n_test, …).

    Raises
    ------
    InputError
        If the recording has early areas only, or none of them.
    """
    method = decoding_of(decoded_path).set_params(device=device)
    found = {}
    for name, voxels in zip(("z", "c"), early_and_higher(subject.roi), strict=True):
        part = decode_splits(
            subject, features_path, subject.splits, method, names=[name], voxels=voxels
        )
        found |= {key: part[key] for key in ("stimulus_id", name)}
    return found


def neuraldiffuser(settings: Settings, n_steps: int) -> Settings:
    """Guide as NeuralDiffuser (Li et al. 2024) does: the first few steps alone, one gradient each.

    Their published code guides the first 7 of 37 denoising steps by the same six CLIP layers. What
    the gradient is taken of, how far it reaches and the decoders stay this book's, so that what
    differs is the schedule; nothing pulls at the latent beside it.

    Parameters
    ----------
    settings : Settings
    n_steps : int
        Steps that are denoised.

    Returns
    -------
    Settings
        To call `reconstruct` with.
    """
    guided = guided_steps(n_steps)
    return replace(
        settings,
        solver="guided",
        n_guided_steps=guided,
        guide_every=1,
        gradient_steps=1,
        z_evidence_weight=0.0,
    )


def guided_steps(n_steps: int) -> int:
    """How many of the first steps NeuralDiffuser would guide: 7 of 37.

    Parameters
    ----------
    n_steps : int
        Steps that are denoised.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, round(GUIDED / OF * n_steps))
