"""Spherical k-means with FAISS: the only module that imports FAISS.

Shapes: N points, D embedding width, M clusters.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

GPU_SCRATCH_BYTES = 256 * 2**20  # FAISS would reserve 1.5 GB during training


def faiss_device() -> str:
    """Where FAISS clusters: ``"gpu"`` when it sees one, ``"cpu"`` otherwise (it falls back silently).

    Raises:
        ImportError: If FAISS is missing.
    """
    return "gpu" if faiss_module().get_num_gpus() > 0 else "cpu"


def spherical_kmeans(
    points: Tensor,
    num_clusters: int,
    *,
    seed: int,
    start: Tensor | None = None,
    iterations: int = 25,
) -> tuple[Tensor, Tensor]:
    """Cluster directions: k-means on the unit sphere over *all* points, k-means++ start.

    FAISS by default keeps 256 points per cluster and drops the others, which thins the tail before
    it is clustered; here every point counts. Where the points have fewer distinct directions than
    ``num_clusters``, some clusters stay empty. The same arguments give the same bits.

    Args:
        points: Shape (N, D), any length; they are normalized in float32.
        num_clusters: M, between 1 and N.
        seed: Seed of the k-means++ start, 0 or more.
        start: Centroids of an earlier run, shape (at most M, D); k-means++ adds those that are missing.
        iterations: Iterations of Lloyd's algorithm.

    Returns:
        Unit centroids (M, D) float32 and the nearest one of each point (N,) int64, on the device of
        ``points``.

    Raises:
        ValueError: If a shape, ``num_clusters`` or a value (NaN, infinity) makes no sense.
        ImportError: If FAISS is missing.

    Examples:
        Two directions, whatever the lengths:

        >>> points = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 0.1]])
        >>> _, labels = spherical_kmeans(points, 2, seed=0)
        >>> bool(labels[0] == labels[1]), bool(labels[2] == labels[3]), bool(labels[0] == labels[2])
        (True, True, False)
    """
    _check(points, num_clusters, start)
    num_clusters = int(num_clusters)  # FAISS takes no NumPy integers
    faiss = faiss_module()
    rows = F.normalize(points.detach().float().cpu(), dim=1).contiguous().numpy()
    num_points, dim = rows.shape
    settings = faiss.ClusteringParameters()
    settings.spherical = True
    settings.seed = int(seed) % 2**31
    settings.niter = int(iterations)
    settings.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    settings.min_points_per_centroid = 1  # below it FAISS prints a warning
    settings.max_points_per_centroid = -(-num_points // num_clusters)
    clustering = faiss.Clustering(dim, num_clusters, settings)
    if start is not None:
        unit = F.normalize(start.detach().float().cpu(), dim=1).contiguous().numpy()
        faiss.copy_array_to_vector(unit.ravel(), clustering.centroids)
    index = _inner_product_index(faiss, dim)
    clustering.train(rows, index)
    centroids = torch.from_numpy(faiss.vector_to_array(clustering.centroids)).view(
        num_clusters, dim
    )
    centroids = F.normalize(centroids, dim=1)
    index.reset()
    index.add(centroids.numpy())
    _, labels = index.search(rows, 1)
    return centroids.to(points.device), torch.from_numpy(labels[:, 0]).to(points.device)


def faiss_module() -> ModuleType:
    """FAISS, with as many threads as torch has.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import faiss  # noqa: PLC0415  heavy, and only clustering needs it
        # Without the CUDA libraries that its wheel depends on, FAISS raises RuntimeError, not ImportError.
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"FAISS cannot be imported ({error}): install faiss-gpu (Linux on x86-64) or faiss-cpu "
            "with its dependencies, never both, or use population: prototypes"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())  # its own OpenMP ignores torch's limit
    return faiss


def _inner_product_index(faiss: ModuleType, dim: int):  # type: ignore[no-untyped-def]
    index = faiss.IndexFlatIP(dim)
    if faiss.get_num_gpus() == 0:
        return index
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_SCRATCH_BYTES)
    return faiss.index_cpu_to_gpu(resources, 0, index)


def _check(points: Tensor, num_clusters: int, start: Tensor | None) -> None:
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points must have shape (N, D), got {tuple(points.shape)}")
    if not 1 <= num_clusters <= len(points):
        raise ValueError(
            f"num_clusters must lie in 1..{len(points)} (the points), got {num_clusters}"
        )
    if not torch.isfinite(points).all():
        raise ValueError("points must be finite, got NaN or infinity: leave such rows out")
    if start is None:
        return
    if start.ndim != 2 or start.shape[1] != points.shape[1] or len(start) > num_clusters:
        raise ValueError(
            f"start must have shape (at most {num_clusters}, {points.shape[1]}), got {tuple(start.shape)}"
        )
    if not torch.isfinite(start).all():
        raise ValueError("start must be finite, got NaN or infinity")
