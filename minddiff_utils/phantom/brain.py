"""The phantom's brain: how each voxel answers a picture, and the noise of a scanner.

Early areas see the picture: Gabor energy, luminance and colour inside a population receptive
field. Higher areas see what is in it: kinds, colours, sizes, places, the scene. Nothing here comes
from a trained network, so decoding a network's features from these responses is no circle.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy import fft, sparse
from scipy.spatial import KDTree

from minddiff_utils.datasets.nsd.regions import KASTNER_GROUPS
from minddiff_utils.io import Ids
from minddiff_utils.phantom import world
from minddiff_utils.phantom.anatomy import anatomy, read_table

GRID = 32  # feature maps are kept on every second pixel
WAVELENGTHS = (5.0, 9.0, 16.0)  # px
ORIENTATIONS = np.arange(4) * np.pi / 4
REFERENCE_IDS = range(2_000_000, 2_000_256)  # pictures that set each voxel's zero and unit
CHUNK = 128  # pictures worked on at once
FRAME = 96  # px; pictures are filtered inside a frame of grey, so that borders do not wrap
# Share of the reliable variance that no property of the picture explains.
PERSONAL = np.float32(0.15)
BLUR_REACH = 5.0  # voxels; beyond it neighbours share less than half a per cent of their noise
N_ASSOCIATIONS = 30  # dimensions of that part that many voxels share


# What the voxels of each ROI group follow, and how clean they are; "" is cortex of `nsdgeneral`
# outside the areas. `ceiling` is the mean noise ceiling aimed at for a subject of average quality,
# three repetitions, in per cent. For NSD about 36 % is quoted as the average over `nsdgeneral` for
# the mean of three trials (the dataset is that of Allen et al. 2022), with single voxels of early
# visual cortex far above. No published table by area was found, so the figure of each area is our
# choice: it keeps near that average and falls from early and ventral to parietal areas, as NSD's
# maps do. The next four columns are shares of the variance: Gabor energy, local luminance, local
# colour, things and scene; the others are shares of the tuning to kind, colour, size and presence
# of things, setting, and patterns.
GROUPS = read_table("groups.csv")
MIXTURE, TUNING = GROUPS.columns[1:5], GROUPS.columns[5:]
# Subjects differ in the extent of their areas and in how clean their data are.
SIZES = (0.90, 0.82, 0.88, 0.80, 0.87, 0.83, 0.86, 0.79)
QUALITIES = (1.0, 0.92, 0.86, 0.74, 1.02, 0.84, 0.82, 0.66)


class Brain:
    """One phantom subject.

    Parameters
    ----------
    subject : str
        "subj01" to "subj08".
    seed : int
        Seed of everything that differs between subjects.

    Attributes
    ----------
    key : tuple of two int
        The seed, and the place among the subjects: what all random numbers of this one start from.
    ijk : int array (n_voxels, 3)
    area, group : str arrays (n_voxels,)
        Kastner area and ROI group; "" outside the areas.
    prf : float array (n_voxels, 3)
    signal_sd, noise_sd, baseline : float32 arrays (n_voxels,)
        In per cent signal change.
    """

    def __init__(self, subject: str, seed: int = 0):
        index = int(subject.removeprefix("subj")) - 1
        self.key = seed, index
        rng = np.random.default_rng([*self.key, 1])
        self.ijk, self.area, self.prf = anatomy(rng, SIZES[index])
        group_of = {area: name for name, areas in KASTNER_GROUPS.items() for area in areas}
        self.group = np.array([group_of.get(str(area), "") for area in self.area])
        self._mixture = self._draw_mixture(rng)
        self._energy_weights = self._draw_energy_weights(rng)
        self._colour_weights = rng.normal(size=(len(self.area), 2))
        self._luminance_sign = np.where(rng.random(len(self.area)) < 0.75, 1, -1)
        self._tuning = self._draw_tuning(rng)
        loadings = rng.standard_normal((N_ASSOCIATIONS, len(self.area)), np.float32)
        self._associations = loadings / np.sqrt(np.float32(N_ASSOCIATIONS))
        ceiling = self._draw_ceiling(rng, QUALITIES[index])
        self.noise_sd = (1.4 * np.exp(rng.normal(0, 0.25, len(self.area)))).astype(np.float32)
        snr = np.sqrt(ceiling / (1 - ceiling) / 3)
        self.signal_sd = (snr * self.noise_sd).astype(np.float32)
        self.baseline = rng.normal(0.8, 0.5, len(self.area)).astype(np.float32)

    def _draw_mixture(self, rng: np.random.Generator) -> np.ndarray:
        """Return the weights (n_voxels, 4) of energy, luminance, colour, content; squares sum to 1.

        A Dirichlet draw around the area's mean lets voxels differ: some follow colour, some edges.
        """
        shares = GROUPS.loc[self.group, MIXTURE].to_numpy()
        for row in shares:
            row[row > 0] = rng.dirichlet(5 * row[row > 0])
        return np.sqrt(shares)

    def _draw_energy_weights(self, rng: np.random.Generator) -> np.ndarray:
        """Return weights (n_voxels, n_energy_maps): tuning to orientation and wavelength."""
        n = len(self.area)
        angle = np.pi * rng.random(n)
        orientation = np.exp(0.8 * np.cos(2 * (ORIENTATIONS[None] - angle[:, None])))
        # Larger receptive fields prefer coarser edges.
        best = np.log(np.clip(2.2 * self.prf[:, 2], 4, 18) * np.exp(rng.normal(0, 0.25, n)))
        distance = (np.log(WAVELENGTHS)[None] - best[:, None]) / 0.6
        wavelength = np.exp(-np.square(distance) / 2) + 0.05
        grey = (wavelength[:, :, None] * orientation[:, None]).reshape(n, -1)
        colour = 0.5 * grey.mean(axis=1, keepdims=True) * rng.gamma(1.0, 2.0, (n, 2))
        return np.concatenate([grey, colour], axis=1)

    def _draw_tuning(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return what voxels prefer among things, scenes and patterns; float (n_voxels,) each."""
        n = len(self.group)
        share = GROUPS.loc[self.group, TUNING].to_numpy()
        kind, colour, size, presence, setting, pattern = share.T

        def draw(share: np.ndarray, known: Sequence[str]) -> dict[str, np.ndarray]:
            return dict(zip(known, share * rng.normal(size=(n, len(known))).T, strict=True))

        return {
            "kind": draw(kind, world.KINDS),
            "colour": draw(colour, tuple(world.COLOURS)),
            "size": size * rng.normal(size=n),
            "presence": presence * np.abs(rng.normal(size=n)),
            "setting": draw(setting, (*world.SETTINGS, "pattern")),
            "pattern": draw(pattern, world.PATTERN_KINDS),
            "coverage": 2 * pattern * np.abs(rng.normal(size=n)),
        }

    def _draw_ceiling(self, rng: np.random.Generator, quality: float) -> np.ndarray:
        """Return a long-tailed draw of each voxel's noise ceiling: three repetitions, 0 to 1."""
        mean = GROUPS.loc[self.group, "ceiling"].to_numpy() / 100 * quality
        return np.clip(rng.beta(3.2 * mean, 3.2 * (1 - mean)), 0.005, 0.93)

    def signal(self, ids: Ids) -> np.ndarray:
        """Return the noise-free response to each picture of the world.

        A part of it comes back with every repetition but follows from nothing that is in the
        picture: memories, associations, what caught the eye. In NSD too the best models leave a
        good part of the reliable variance unexplained.

        Parameters
        ----------
        ids : sequence of int

        Returns
        -------
        float32 array of shape (n_ids, n_voxels)
            Mean 0 and standard deviation 1 over a fixed set of reference pictures.
        """
        *parts_scale, mean, sd = self._reference
        seen = (self._mix(self._parts(ids), *parts_scale) - mean) / sd
        return np.sqrt(1 - PERSONAL) * seen + np.sqrt(PERSONAL) * self._personal(ids)

    def _personal(self, ids: Ids) -> np.ndarray:
        """Return what each picture evokes in this subject alone; float32 (n, n_voxels)."""
        out = np.empty((len(ids), len(self.area)), np.float32)
        for row, i in enumerate(ids):
            rng = np.random.default_rng([*self.key, 2, int(i)])
            shared = rng.standard_normal(N_ASSOCIATIONS, np.float32) @ self._associations
            own = rng.standard_normal(len(self.area), np.float32)
            out[row] = np.sqrt(0.5, dtype=np.float32) * (shared + own)
        return out

    @cached_property
    def _reference(self) -> tuple[np.ndarray, ...]:
        """Means and standard deviations over the reference pictures.

        Of each part, (4, n_voxels), and of the mixed response, (n_voxels,).
        """
        parts = self._parts(REFERENCE_IDS)
        sd = parts.std(axis=1)
        scale = parts.mean(axis=1), np.where(sd > 0, sd, 1)
        mixed = self._mix(parts, *scale)
        return *scale, mixed.mean(axis=0), mixed.std(axis=0)

    def _mix(self, parts: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """Add the four standardised parts (4, n, n_voxels) with the voxel's weights."""
        out = np.zeros(parts.shape[1:], np.float32)
        for k, part in enumerate(parts):
            out += ((part - mean[k]) * (self._mixture[:, k] / sd[k])).astype(np.float32)
        return out

    def _parts(self, ids: Ids) -> np.ndarray:
        """Return energy, luminance, colour and content, each unscaled; float32 (4, n, n_voxels)."""
        ids = list(ids)
        out = np.empty((4, len(ids), len(self.area)), np.float32)
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            pictures = np.stack([world.picture(i) for i in some])
            out[:3, start : start + len(some)] = self._local(feature_maps(pictures))
            out[3, start : start + len(some)] = self._content([world.scene(i) for i in some])
        return out

    @cached_property
    def _pooling(self) -> np.ndarray:
        """Receptive fields on the grid of the feature maps; float32 (GRID * GRID, n_voxels)."""
        field = self._fields((np.arange(GRID) + 0.5) * 64 / GRID)
        # A field partly outside the picture keeps the gain of a whole one: grey surrounds it.
        field = (field / (2 * np.pi * np.square(self.prf[:, 2]) / 4)).astype(np.float32)
        # Subnormal numbers add nothing and make the products of matrices many times slower.
        return np.where(field < np.finfo(np.float32).tiny, np.float32(0), field)

    def _fields(self, places: np.ndarray) -> np.ndarray:
        """Return receptive fields, 1 at their centres, on a grid; (n_places ** 2, n_voxels)."""
        x, y, width = self.prf.T
        distances = ((places[:, None] - centre) / width for centre in (x, y))
        across, up = (np.exp(-np.square(distance) / 2) for distance in distances)
        return (up[:, None] * across[None]).reshape(len(places) ** 2, -1)

    def _local(self, maps: np.ndarray) -> np.ndarray:
        """Pool feature maps (n_maps, n, GRID * GRID) into energy, luminance and colour."""
        pooled = [each @ self._pooling for each in maps]
        weights = self._energy_weights.astype(np.float32)
        energy = sum(weights[:, k] * pooled[k] for k in range(weights.shape[1]))
        luminance = self._luminance_sign * pooled[-3]
        colour = self._colour_weights[:, 0] * pooled[-2] + self._colour_weights[:, 1] * pooled[-1]
        # Responses grow less than in proportion to contrast (Kay et al. 2013).
        return np.stack([np.sqrt(energy), luminance, colour])

    def _content(self, scenes: Sequence[world.Scene]) -> np.ndarray:
        """Return the response to what is shown; float32 (n, n_voxels).

        What the world does not have, such as a setting from outside, evokes nothing.
        """
        tuning = self._tuning
        out = np.zeros((len(scenes), len(self.area)))
        for row, scene in enumerate(scenes):
            out[row] = tuning["setting"].get(scene.setting, 0)
            if scene.pattern is not None:
                on = self._pooling_of_patches @ scene.pattern.ravel()
                out[row] += tuning["pattern"][scene.pattern_kind] + tuning["coverage"] * on
            for thing in scene.things:
                if thing.kind in world.KINDS:
                    out[row] += self._response_to(thing)
        return out.astype(np.float32)

    def _response_to(self, thing: world.Thing) -> np.ndarray:
        """Return how much of a thing lies in each receptive field, times how much it is liked."""
        distance2 = np.square(self.prf[:, 0] - thing.x) + np.square(self.prf[:, 1] - thing.y)
        near = np.exp(-distance2 / (2 * (np.square(self.prf[:, 2]) + np.square(thing.size / 3))))
        tuning = self._tuning
        liked = tuning["kind"][thing.kind] + tuning["colour"].get(thing.colour, 0)
        return near * (liked + tuning["size"] * (thing.size - 24) / 8 + tuning["presence"])

    @cached_property
    def _pooling_of_patches(self) -> np.ndarray:
        """Share of each patch of a pattern in each receptive field; (n_voxels, 100)."""
        field = self._fields(2 + 6 * (np.arange(10) + 0.5)).T
        return field * 36 / (2 * np.pi * np.square(self.prf[:, 2]))[:, None]

    @cached_property
    def _blur(self) -> sparse.csr_array:
        """Matrix that turns independent noise into noise shared by neighbours, variance 1."""
        tree = KDTree(self.ijk)
        kernel = tree.sparse_distance_matrix(tree, BLUR_REACH, output_type="coo_matrix").tocsr()
        kernel.data = np.exp(-np.square(kernel.data) / (2 * 1.5**2))
        size = np.sqrt(kernel.multiply(kernel).sum(axis=1))
        return sparse.csr_array(kernel.multiply(1 / size), dtype=np.float32)

    def betas(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return one session's single-trial responses: signal, drift and noise.

        Of the noise's variance 76 % is each voxel's own, 20 % is shared by neighbours and 4 % by
        the whole brain. Gain and offset of each voxel differ a little between sessions.

        Parameters
        ----------
        signal : float32 array of shape (n_trials, n_voxels)
            From `signal`, one row a trial.
        rng : numpy.random.Generator

        Returns
        -------
        float32 array of shape (n_trials, n_voxels)
            Per cent signal change.
        """
        n_trials, n_voxels = signal.shape
        noise = np.sqrt(0.76, dtype=np.float32) * rng.standard_normal(signal.shape, np.float32)
        shared = (self._blur @ rng.standard_normal(signal.shape, np.float32).T).T
        noise += np.sqrt(0.20, dtype=np.float32) * shared
        noise += np.sqrt(0.04, dtype=np.float32) * rng.standard_normal((n_trials, 1), np.float32)
        gain = (1 + 0.06 * rng.standard_normal((n_voxels,))).astype(np.float32)
        offset = (0.15 * rng.standard_normal((n_voxels,))).astype(np.float32) * self.noise_sd
        return self.baseline + offset + gain * (self.signal_sd * signal + self.noise_sd * noise)


def feature_maps(pictures: np.ndarray) -> np.ndarray:
    """Filter pictures: what early areas pool.

    Parameters
    ----------
    pictures : uint8 array of shape (n, 64, 64, 3)

    Returns
    -------
    float32 array of shape (17, n, 1024)
        Gabor energy of luminance (three wavelengths, four orientations), energy of red-green and
        of blue-yellow contrast, then luminance, red-green and blue-yellow themselves, all relative
        to mid-grey and on every second pixel.
    """
    rgb = pictures.astype(np.float32) / 255 - 0.5
    luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    red_green = rgb[..., 0] - rgb[..., 1]
    blue_yellow = rgb[..., 2] - (rgb[..., 0] + rgb[..., 1]) / 2
    filters = _gabors()
    maps = list(_energy(luminance, filters))
    middle = filters[len(ORIENTATIONS) : 2 * len(ORIENTATIONS)]
    maps += [_energy(each, middle).mean(axis=0) for each in (red_green, blue_yellow)]
    for each in (luminance, red_green, blue_yellow):
        blocks = each.reshape(len(each), GRID, 2, GRID, 2)
        maps.append(blocks.mean(axis=(2, 4), dtype=np.float32))
    return np.stack(maps).reshape(len(maps), len(pictures), -1)


def _gabors() -> list[tuple[np.ndarray, ...]]:
    """Return complex Gabor filters: rows and columns of the spectrum that each passes, and gain.

    A filter passes a band around its own frequency. Its output, moved to frequency zero, has the
    same magnitude and needs half the samples along each axis.
    """
    n = FRAME // 2
    offset = np.arange(n) - n // 2
    filters: list[tuple[np.ndarray, ...]] = []
    for wavelength in WAVELENGTHS:
        spread = 0.22 / wavelength * np.sqrt(2)
        for angle in ORIENTATIONS:
            centre = np.array([np.sin(angle), np.cos(angle)]) / wavelength
            middle = np.rint(centre * FRAME).astype(int)
            fy, fx = ((middle[k] + offset) / FRAME - centre[k] for k in range(2))
            gain = 2 * np.exp(-(np.square(fy[:, None]) + np.square(fx[None])) / (2 * spread**2))
            # The order that an inverse transform expects: frequency zero first.
            rows, columns = ((fft.ifftshift(middle[k] + offset)) % FRAME for k in range(2))
            filters.append((rows, columns, fft.ifftshift(gain).astype(np.float32) / 4))
    return filters


def _energy(maps: np.ndarray, filters: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Return the local energy sqrt(even² + odd²) of `maps` (n, 64, 64), for each filter.

    Returns
    -------
    float32 array of shape (n_filters, n, 32, 32)
    """
    edge = (FRAME - maps.shape[1]) // 2
    spectrum = fft.fft2(np.pad(maps, ((0, 0), (edge, edge), (edge, edge))))
    # Samples lie in the middle of 2 x 2 pixels, half a pixel from the first of them.
    shift = np.exp(1j * np.pi * fft.fftfreq(FRAME)).astype(np.complex64)
    spectrum *= shift[:, None] * shift[None]
    inside = slice(edge // 2, (FRAME - edge) // 2)
    # One-sided filters make the inverse transform complex: even and odd part at once.
    passed = [spectrum[:, rows[:, None], columns] * gain for rows, columns, gain in filters]
    return np.stack([np.abs(fft.ifft2(each)[:, inside, inside]) for each in passed])
