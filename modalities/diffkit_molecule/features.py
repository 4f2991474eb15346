r"""What a graph transformer cannot count: valences, rings, paths and fragments of a noisy molecule.

Attention over nodes is blind to cycles and to connectedness, the two things that decide whether a graph is a
molecule, so they are recomputed from x_t at every call and given to the network (DiGress, Vignac et al. 2023,
arXiv:2209.14734, section 4.2; DeFoG, Qin et al. 2025, arXiv:2410.04263, uses random-walk probabilities).

Here all of them come from the *non-backtracking* walks, which never return along the bond they came by.
With adjacency A and degrees D the matrices :math:`P_k` that count those of length k obey

.. math:: P_1 = A, \quad P_2 = A^2 - D, \quad P_{k+1} = P_k A - P_{k-1} (D - I)

(Alon et al. 2007, arXiv:math/0610550, section 2). A shortest path never backtracks, so the first k with
:math:`P_k[i, j] > 0` is the distance; and :math:`P_k[i, j] > 0` says that a bond between i and j would close,
or closes, a ring of k + 1 atoms. The diagonal counts rings through an atom: :math:`P_k[i, i] / 2` exactly for
k = 3 and 4, and with a tail that leads to a ring of k - 2 besides for larger k.
"""

import torch
from torch import Tensor

__all__ = ["NODE_FEATURES", "PAIR_FEATURES", "components", "non_backtracking", "structure"]

MAX_ORDER = 3
MAX_WALK = 7
NODE_FEATURES = MAX_ORDER + 2 + (MAX_WALK - 2) + 3
PAIR_FEATURES = (MAX_WALK - 1) + 1


@torch.no_grad()
def structure(order: Tensor, capacity: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Features of atoms and of pairs, computed in float32 and without gradient.

    Args:
        order: (B, N, N) bond orders 0 to 3, symmetric, zero where there is no bond or padding.
        capacity: (B, N) the largest sum of bond orders that the atom's class allows.
        real: (B, N) bool, False at padding.

    Returns:
        (B, N, NODE_FEATURES): bonds of each order, valence, valence above capacity, rings of 3 to 7 atoms,
        share of the atoms in one's fragment, one over the number of fragments, log of the number of atoms;
        (B, N, N, PAIR_FEATURES), symmetric: non-backtracking walks of 2 to 7 steps, and "in one fragment".
        Numbers are of order one; what stands at padding means nothing.
    """
    with torch.autocast(order.device.type, enabled=False):
        order, real = order.float(), real.float()
        walks = non_backtracking((order > 0).float(), MAX_WALK)
        together = components(walks[0], real)
        count = real.sum(1, keepdim=True).clamp(min=1)
        size = together.sum(-1)
        fragments = (real / size.clamp(min=1)).sum(1, keepdim=True).clamp(min=1)
        valence = order.sum(-1)
        node = [(order == k).sum(-1) / 2 for k in range(1, MAX_ORDER + 1)]
        node += [valence / 4, (valence - capacity) / 4]
        node += [_saturate(walk.diagonal(dim1=1, dim2=2)) for walk in walks[2:]]
        node += [x.expand_as(size) for x in (size / count, 1 / fragments, count.log())]
        pair = [_saturate(walk) for walk in walks[1:]] + [together]
        return torch.stack(node, dim=-1), torch.stack(pair, dim=-1)


def non_backtracking(adjacency: Tensor, length: int) -> list[Tensor]:
    """Numbers of non-backtracking walks of 1 to ``length`` steps between any two nodes.

    Args:
        adjacency: (B, N, N) float, symmetric, of zeros and ones, zero diagonal.
        length: at least 2.

    Returns:
        ``length`` tensors (B, N, N), exact while the counts stay below 2^24.
    """
    degree = adjacency.sum(-1)
    walks = [adjacency, adjacency @ adjacency - torch.diag_embed(degree)]
    while len(walks) < length:
        walks.append(walks[-1] @ adjacency - walks[-2] * (degree - 1).unsqueeze(1))
    return walks


def components(adjacency: Tensor, real: Tensor) -> Tensor:
    """Which nodes are connected: (B, N, N) float, 1 where a path of zero or more steps joins two real nodes."""
    reach = adjacency + torch.diag_embed(real)
    steps = 1
    while steps < adjacency.shape[-1] - 1:
        reach = (reach @ reach).clamp(max=1)
        steps *= 2
    return reach


def _saturate(count: Tensor) -> Tensor:
    """0, 1, 2, ... as 0, 1/2, 2/3, ...: a dense noisy graph has huge counts, and "none or some" matters most."""
    count = count.clamp(min=0)
    return count / (1 + count)
