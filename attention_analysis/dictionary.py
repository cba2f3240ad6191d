"""A dictionary of head patterns: a small autoencoder of maps, and clusters of its codes.

An idea after arXiv 2303.13731; the details are ours.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor, nn
from torch.nn import functional as F


class Dictionary(NamedTuple):
    """Patterns of N heads."""

    labels: np.ndarray  # (N,) int, the cluster of each head
    prototypes: Tensor  # (clusters, size, size), the mean picture of each cluster
    places: np.ndarray  # (N, 2), principal components of the codes
    errors: Tensor  # (N,), error of the autoencoder for each head
    network: "MapAutoencoder"

    def is_novel(self, maps: Tensor) -> Tensor:
        """Bool (M): whether the error for maps (M, L, L) is an outlier, above Q3 + 3 (Q3 - Q1) of the known heads."""
        low, high = self.errors.quantile(torch.tensor([0.25, 0.75])).tolist()
        errors = self.network.error(map_pictures(maps, self.network.size))
        outlier: Tensor = errors > high + 3 * (high - low)
        return outlier


class MapAutoencoder(nn.Module):
    """A convolutional autoencoder of square pictures (N, 1, size, size)."""

    def __init__(self, size: int = 16, latent: int = 8) -> None:
        super().__init__()
        self.size, deep = size, size // 4
        self.encode = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * deep * deep, latent),
        )
        self.decode = nn.Sequential(
            nn.Linear(latent, 32 * deep * deep),
            nn.GELU(),
            nn.Unflatten(1, (32, deep, deep)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.decode(self.encode(pictures))
        return out

    @torch.no_grad()
    def error(self, pictures: Tensor) -> Tensor:
        """(N,): the squared error of each picture, divided by its mean square."""
        off = (self(pictures) - pictures).square().flatten(1).mean(1)
        relative: Tensor = off / pictures.square().flatten(1).mean(1)
        return relative


def map_pictures(maps: Tensor, size: int = 16) -> Tensor:
    """(N, 1, size, size), the square roots of maps (N, Lq, Lk), averaged over a grid and scaled to a mean square of 1.

    The root keeps weak and spread patterns visible beside strong ones.
    """
    pictures = F.interpolate(maps.float().unsqueeze(1), size=(size, size), mode="area").clamp_min(0).sqrt()
    return pictures / pictures.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def recentred(a: Tensor, reach: int) -> Tensor:
    """Each row of maps (..., L, L) moved so that its own token is in the middle: (..., L, 2 reach + 1), 0 outside."""
    length = a.shape[-1]
    column = torch.arange(length)[:, None] + torch.arange(-reach, reach + 1)
    inside = (column >= 0) & (column < length)
    index = column.clamp(0, length - 1).expand(*a.shape[:-1], -1)
    return a.gather(-1, index) * inside


def make_dictionary(
    maps: Tensor,
    *,
    clusters: int | None = None,
    most_clusters: int = 10,
    size: int = 16,
    latent: int = 8,
    steps: int = 400,
    seed: int = 0,
) -> Dictionary:
    """Train the autoencoder on the mean maps of heads (N, Lq, Lk), and cluster their codes.

    Args:
        maps: the maps; at least three.
        clusters: number of clusters; by the silhouette if None, from 2 to `most_clusters`.
        size: side of the pictures, a multiple of 4.
        latent: length of a code.
        steps: of the training.
        seed: of weights and clusters; the same seed gives the same labels.
    """
    if len(maps) < 3:
        raise ValueError(f"a dictionary needs at least 3 maps, got {len(maps)}")
    pictures = map_pictures(maps, size)
    network = _train(pictures, latent, steps, seed)
    with torch.no_grad():
        codes = network.encode(pictures).double()
    centred = codes - codes.mean(0)
    scaled = (centred / centred.std().clamp_min(1e-12)).numpy()
    labels = _cluster(scaled, clusters, most_clusters, seed)
    prototypes = torch.stack([pictures[torch.from_numpy(labels == c), 0].mean(0) for c in range(labels.max() + 1)])
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
    return Dictionary(labels, prototypes, (centred @ axes.mT).numpy(), network.error(pictures), network)


def _train(pictures: Tensor, latent: int, steps: int, seed: int) -> MapAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MapAutoencoder(pictures.shape[-1], latent)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(network(pictures), pictures).backward()
            optimizer.step()
    return network.eval()


def _cluster(codes: np.ndarray, clusters: int | None, most: int, seed: int) -> np.ndarray:
    counts = [clusters] if clusters is not None else list(range(2, min(most, len(codes) - 1) + 1))
    best, chosen = -np.inf, np.zeros(len(codes), dtype=int)
    for count in counts:
        labels = KMeans(count, n_init=10, random_state=seed).fit_predict(codes)
        score = silhouette_score(codes, labels) if 1 < len(set(labels)) < len(codes) else -1.0
        if score > best:
            best, chosen = score, labels
    return chosen
