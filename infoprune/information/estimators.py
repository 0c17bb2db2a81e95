"""An independent estimate of mutual information, to hold the matrix-based one against on continuous data.

Nearest-neighbour estimators need no kernel width: Kraskov, Stögbauer & Grassberger (2004), algorithm 1, for two
continuous variables, and Ross (2014) for a continuous and a discrete one. In one dimension both are scikit-learn's;
in more dimensions the first is built on scikit-learn's nearest neighbours. Good in few dimensions, not in many.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif
from sklearn.neighbors import KDTree, NearestNeighbors
from torch import Tensor

from infoprune.information.validation import require_finite, require_labels, require_samples


def ksg(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], *, neighbours: int = 3) -> float:
    """KSG estimate of I(X; Y) for continuous variables, in bits.

    Variables are standardised per dimension; samples must be distinct, as continuous ones are.

    Raises:
        ValueError: for fewer samples than ``neighbours`` + 2, or NaN or Inf.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 2000, 1, generator=generator)
        >>> abs(ksg(x, y)) < 0.05  # independent
        True
    """
    first, second = _standardised(x, neighbours), _standardised(y, neighbours)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} samples came: expected the same samples of both variables.")
    n = len(first)
    search = NearestNeighbors(metric="chebyshev", n_neighbors=neighbours).fit(np.hstack([first, second]))
    # strictly closer than the k-th neighbour, as algorithm 1 counts
    radius = np.nextafter(search.kneighbors()[0][:, -1], 0)
    counts = [KDTree(v, metric="chebyshev").query_radius(v, radius, count_only=True) for v in (first, second)]
    nats = digamma(neighbours) + digamma(n) - np.mean(digamma(counts[0]) + digamma(counts[1]))
    return float(nats) / math.log(2)


def ross(x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, neighbours: int = 3, seed: int = 0) -> float:
    """Ross estimate of I(X; Y) for a continuous X in one dimension and a discrete Y, in bits (scikit-learn's).

    Raises:
        ValueError: for more than one dimension, or as ``ksg``.

    Example:
        >>> y = torch.arange(1000) % 2
        >>> x = y[:, None] * 10 + torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> abs(ross(x, y) - 1) < 0.01
        True
    """
    if x.ndim != 2 or x.shape[1] != 1:
        raise ValueError(f"x of shape {tuple(x.shape)} came: Ross's estimator here takes one dimension, (n, 1).")
    values = _standardised(x, neighbours)
    require_labels(labels, len(values))
    nats = mutual_info_classif(values, labels.cpu().numpy(), n_neighbors=neighbours, random_state=seed)[0]
    return float(nats) / math.log(2)


def _standardised(x: Float[Tensor, "n d"], neighbours: int) -> np.ndarray:
    require_samples(len(x), least=neighbours + 2)
    values = x.detach().double()
    require_finite(torch.isfinite(values).all(), "samples")
    spread = values.std(0)
    return np.asarray(((values - values.mean(0)) / torch.where(spread > 0, spread, 1.0)).cpu().numpy())
