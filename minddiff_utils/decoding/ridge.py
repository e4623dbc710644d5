"""Ridge regression for any number of targets: what depends on responses alone is done once."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.model_selection import PredefinedSplit

# Bytes of predictions in memory at once.
AT_ONCE = 2**28


class RidgePath:
    r"""Ridge regression from responses :math:`X` to targets that come later, in blocks.

    For the penalty :math:`\alpha`, predictions of new responses :math:`X'` are linear in the
    targets :math:`Y`:

    .. math:: \hat Y' = X' X^\top (X X^\top + \alpha I)^{-1} Y
              = X' (X^\top X + \alpha I)^{-1} X^\top Y.

    So each fold of a cross-validation and each penalty have one matrix that turns the targets of
    the training stimuli into predictions of the held-out ones. These matrices are computed here,
    by the first form if there are fewer rows than voxels and by the second otherwise; the targets
    then take one product of matrices each.

    Scores, penalties and weights are those of himalaya's `KernelRidgeCV` and `RidgeCV`, to which
    the tests hold them. What himalaya has no room for: a decomposition that is kept from one
    family of targets to the next, folds of stimuli with a held-out stimulus's repetitions averaged
    as a test stimulus's are, and predictions of the held-out stimuli, which selection and
    rescaling go by.

    Parameters
    ----------
    x : float array, shape (n_rows, n_voxels)
        Centred.
    penalties : sequence of float
        Above 0.
    folds : int array, shape (n_stimuli,)
        The fold of each stimulus in the cross-validation, from `deal_folds`.
    stimulus : int array, shape (n_rows,), optional
        Which stimulus, from 0, each row belongs to. All rows of one are on the same side of a
        fold; the rows of a held-out stimulus are averaged, as those of a test stimulus are. Each
        row its own stimulus if not given.
    kernel : float array, shape (n_rows, n_rows), optional
        `x @ x.T` where it is known; `x` may then be None.
    device : str
        Of torch.

    Attributes
    ----------
    primal : bool
        Whether the second form is used: there are more rows than voxels, and no kernel is given.
    """

    def __init__(
        self,
        x: np.ndarray | None,
        penalties: Sequence[float],
        folds: np.ndarray,
        stimulus: np.ndarray | None = None,
        kernel: np.ndarray | None = None,
        device: str = "cpu",
    ):
        n, self.device = len(x if kernel is None else kernel), device
        self.penalties = np.asarray(penalties, np.float32)
        stimulus = np.arange(n) if stimulus is None else np.asarray(stimulus)
        self.stimulus = torch.from_numpy(stimulus).to(device)
        self.count = torch.bincount(self.stimulus).to(torch.float32)
        self._x = None if x is None else torch.from_numpy(np.asarray(x, np.float32)).to(device)
        self.primal = kernel is None and n > self._x.shape[1]
        if self.primal:
            self._gram = self._x.T @ self._x
        elif kernel is None:
            self._gram = self._x @ self._x.T
        else:
            self._gram = torch.from_numpy(np.asarray(kernel, np.float32)).to(device)
        self._factors: dict[int, torch.Tensor] = {}
        self.folds = list(PredefinedSplit(folds).split())
        self._all_maps = [self._maps(train, held) for train, held in self.folds]

    def _maps(self, train: np.ndarray, held: np.ndarray) -> torch.Tensor:
        """Return (n_penalties, n_held, n_train): from the targets of some stimuli to others'."""
        place = torch.full(self.count.shape, -1, device=self.count.device)
        place[train] = torch.arange(len(train), device=self.count.device)
        place[held] = torch.arange(len(held), device=self.count.device)
        rows = torch.isin(self.stimulus, torch.from_numpy(train).to(self.stimulus))
        used, new = rows.nonzero()[:, 0], (~rows).nonzero()[:, 0]
        place_used, place_new = place[self.stimulus[used]], place[self.stimulus[new]]
        out = torch.zeros(len(self.penalties), len(held), len(train), device=self.count.device)
        if self.primal:
            x = self._x[new]
            gram, right = self._gram - x.T @ x, x
            last = _sum_rows(self._x[used], place_used, len(train)).T
        else:
            gram, right = self._gram[used][:, used], self._gram[new][:, used]
        right = (_sum_rows(right, place_new, len(held)) / self.count[held][:, None]).T
        for number, penalty in enumerate(self.penalties):
            found = torch.cholesky_solve(right, _factor(gram, float(penalty))).T
            if self.primal:
                torch.mm(found, last, out=out[number])
            else:
                out[number].index_add_(1, place_used, found)
        return out

    def scores(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how well held-out stimuli are predicted, for every penalty.

        Parameters
        ----------
        y : float32 array, shape (n_stimuli, n_targets)
            Centred.

        Returns
        -------
        r2, correlation : float32 arrays, shape (n_penalties, n_targets)
            Means over the folds of 1 - residual / total sum of squares and of Pearson's signed
            correlation, each within the fold; 0 in a fold where the target is constant.
        """
        out = np.zeros((2, len(self.penalties), y.shape[1]), np.float32)
        largest = max(len(held) for _, held in self.folds)
        step = max(1, AT_ONCE // (4 * len(self.penalties) * largest))
        for start in range(0, y.shape[1], step):
            some = slice(start, start + step)
            values = self._tensor(y[:, some])
            for (train, held), maps in zip(self.folds, self._all_maps, strict=True):
                predicted = maps.flatten(0, 1) @ values[train]
                predicted = predicted.view(*maps.shape[:2], -1)
                found = torch.stack(_agreement(predicted, values[held]))
                out[:, :, some] += found.cpu().numpy() / len(self.folds)
        return out[0], out[1]

    def held_out(self, y: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Predict every stimulus from the folds that it is not in.

        Parameters
        ----------
        y : float32 array, shape (n_stimuli, n_targets)
            Centred.
        choice : int array, shape (n_targets,)
            Which of the penalties each target has.

        Returns
        -------
        float32 array, shape (n_stimuli, n_targets)
        """
        out = np.empty(y.shape, np.float32)
        for number in np.unique(choice):
            targets = np.flatnonzero(choice == number)
            values = self._tensor(y[:, targets])
            for (train, held), maps in zip(self.folds, self._all_maps, strict=True):
                out[np.ix_(held, targets)] = (maps[number] @ values[train]).cpu()
        return out

    def accuracy(self, predicted: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Judge predictions of held-out stimuli fold by fold, as `scores` does.

        Parameters
        ----------
        predicted, y : float32 arrays, shape (n_stimuli, n_targets)

        Returns
        -------
        r2, correlation : float32 arrays, shape (n_targets,)
        """
        found = [
            torch.stack(_agreement(self._tensor(predicted[held])[None], self._tensor(y[held])))
            for _, held in self.folds
        ]
        r2, correlation = torch.stack(found).mean(0)[:, 0].cpu().numpy()
        return r2, correlation

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device)

    def weights(self, y: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the weights of every voxel, from all stimuli.

        Parameters
        ----------
        y : float32 array, shape (n_stimuli, n_targets)
            Centred.
        choice : int array, shape (n_targets,)
            Which of the penalties each target has.

        Returns
        -------
        float32 array, shape (n_voxels, n_targets)
        """
        found = self._solve(y, choice)
        return found if self.primal else (self._x.T @ self._tensor(found)).cpu().numpy()

    def predict(self, x: np.ndarray, y: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Predict new stimuli from all: float32 (n_new, n_targets).

        Parameters
        ----------
        x : float array, shape (n_new, n_voxels)
            Centred as the training responses were.
        y, choice
            As for `weights`.
        """
        found = self._solve(y, choice)
        return x @ found if self.primal else (x @ self._x.T.cpu().numpy()) @ found

    def dual(self, y: np.ndarray, choice: np.ndarray) -> np.ndarray:
        r"""Return dual coefficients :math:`(X X^\top + \alpha I)^{-1} Y` from all stimuli.

        Only without `primal`: to make them of weights costs single precision its digits.

        Parameters
        ----------
        y, choice
            As for `weights`.

        Returns
        -------
        float32 array, shape (n_rows, n_targets)
        """
        if self.primal:
            raise ValueError("there are more rows than voxels: take `weights`")
        return self._solve(y, choice)

    def _solve(self, y: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return weights with `primal`, else dual coefficients."""
        out = np.zeros((len(self._gram), y.shape[1]), np.float32)
        step = max(1, AT_ONCE // (8 * len(self.stimulus)))
        for number in np.unique(choice):
            targets = np.flatnonzero(choice == number)
            for some in np.array_split(targets, -(-len(targets) // step)):
                values = self._tensor(y[:, some])[self.stimulus]
                right = self._x.T @ values if self.primal else values
                out[:, some] = torch.cholesky_solve(right, self._factor_of(int(number))).cpu()
        return out

    def _factor_of(self, number: int) -> torch.Tensor:
        """Factor each penalty's matrix once."""
        if number not in self._factors:
            self._factors[number] = _factor(self._gram, float(self.penalties[number]))
        return self._factors[number]


def _factor(gram: torch.Tensor, penalty: float) -> torch.Tensor:
    matrix = gram.clone()
    matrix.diagonal().add_(penalty)
    return torch.linalg.cholesky(matrix)


def _sum_rows(values: torch.Tensor, place: torch.Tensor, n: int) -> torch.Tensor:
    """Add up the rows with the same place; (n, …)."""
    out = torch.zeros(n, *values.shape[1:], device=values.device)
    return out.index_add_(0, place, values)


def _agreement(predicted: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R² and correlation over stimuli of (n_penalties, n, n_targets) with (n, n_targets)."""
    # Centred by the first value and then the mean: what is constant becomes exactly zero, and the
    # sums of squares below lose no digits to an offset. `predicted` is nobody else's.
    n, first = len(true), true[0]
    true = true - first
    centre = true.mean(0)
    true, predicted = true - centre, predicted.sub_(first + centre)
    total, mean = true.square().sum(0), predicted.mean(1)
    square = torch.einsum("pnt,pnt->pt", predicted, predicted)
    product = torch.einsum("pnt,nt->pt", predicted, true)
    residual = total - 2 * product + square
    spread = (square - n * mean.square()).clamp_min(0)
    size = (total * spread).sqrt()
    r2 = torch.where(total > 0, 1 - residual / total, 0)
    return r2, torch.where(size > 0, product / size, 0)
