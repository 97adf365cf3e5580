from __future__ import annotations

import torch
from torch.testing import assert_close

from resdet.inference.ensemble import average, join
from resdet.structures import ScoredBoxes


def test_join_by_hand():
    a, b, c = torch.full((2, 4), 1.0), torch.full((1, 4), 2.0), torch.zeros(0, 4)
    joined = join([[a, c, c], [b, a, c]])  # two nets, three images
    assert_close(joined, [torch.cat([a, b]), a, c])


def test_average_by_hand():
    # Boxes 0, 2 of one net and 4, 8 of the other: 2, 5. Scores 0.2, 0.6 and 0.4, 0.0: 0.3, 0.3.
    def answer(boxes: list[float], probabilities: list[float]) -> ScoredBoxes:
        return ScoredBoxes(torch.tensor(boxes).float().view(1, -1, 1).expand(1, -1, 4), torch.tensor([probabilities]))

    first, second = answer([0, 2], [0.2, 0.6]), answer([4, 8], [0.4, 0.0])
    one_for_all = answer([6], [0.3, 0.3])
    none = ScoredBoxes(torch.zeros(0, 2, 4), torch.zeros(0, 2))
    pairs = average([[first, none], [second, none]])
    assert_close(tuple(pairs[0]), tuple(answer([2, 5], [0.3, 0.3])))
    assert_close(tuple(pairs[1]), tuple(none))
    # The third net's one box stands for both classes: (0 + 4 + 6) / 3, (2 + 8 + 6) / 3, whatever the order of the nets.
    mixed = answer([10 / 3, 16 / 3], [0.3, 0.3])
    for nets in ([first, second, one_for_all], [one_for_all, first, second]):
        assert_close(tuple(average([[net] for net in nets])[0]), tuple(mixed))
    assert_close(tuple(average([[one_for_all], [one_for_all]])[0]), tuple(one_for_all))  # (1, 1, 4) stays


def test_one_net_is_its_own_average():
    torch.manual_seed(0)
    alone = [ScoredBoxes(torch.rand(3, 2, 4), torch.rand(3, 2))]
    (found,) = average([alone])
    assert torch.equal(found.boxes, alone[0].boxes) and torch.equal(found.probabilities, alone[0].probabilities)
