from __future__ import annotations

import torch
from torch.testing import assert_close

from resdet.inference.refinement import refine, regressed
from resdet.structures import ScoredBoxes


def test_regressed_by_hand():
    boxes = torch.arange(24.0).view(2, 3, 4)
    # Best classes 2 and 0; in the third of a tie the first.
    scored = ScoredBoxes(boxes, torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.2, 0.1]]))
    assert_close(regressed(scored), torch.tensor([[8.0, 9, 10, 11], [12, 13, 14, 15]]))
    tie = ScoredBoxes(boxes[:1], torch.tensor([[0.1, 0.4, 0.4]]))
    assert_close(regressed(tie), torch.tensor([[4.0, 5, 6, 7]]))
    one_for_all = ScoredBoxes(boxes[:, :1], scored.probabilities)
    assert_close(regressed(one_for_all), boxes[:, 0])


def test_regressed_nothing():
    for columns in (1, 3):
        assert regressed(ScoredBoxes(torch.zeros(0, columns, 4), torch.zeros(0, 3))).shape == (0, 4)


def test_each_round_starts_from_the_last_ones_boxes():
    asked = []

    def score(regions: list[torch.Tensor]) -> list[ScoredBoxes]:
        """Class 0 moves a region by 1, class 1 by 10; class 1 is the likelier."""
        asked.append(regions)
        return [
            ScoredBoxes(torch.stack([r + 1, r + 10], dim=1), torch.tensor([[0.1, 0.2]]).expand(len(r), 2) * len(asked))
            for r in regions
        ]

    proposals = [torch.zeros(2, 4), torch.zeros(0, 4), torch.full((1, 4), 5.0)]
    first = score(proposals)
    for rounds in (0, 1, 2):
        del asked[1:]
        union = refine(first, score, rounds=rounds)
        assert len(asked) == 1 + rounds
        assert [len(of_image.boxes) for of_image in union] == [2 * (1 + rounds), 0, 1 + rounds]
        # Class 0 of round r, from 0, is 10 r + 1; class 1 is 10 r + 10. The first predictions come first.
        seen = union[0].boxes[..., 0][::2]
        assert_close(seen, torch.tensor([[10.0 * r + 1, 10.0 * r + 10] for r in range(1 + rounds)]))
        assert_close(union[2].boxes[:, 1, 3], torch.tensor([15.0, 25, 35])[: 1 + rounds])
        assert_close(union[2].probabilities, torch.tensor([[0.1, 0.2], [0.2, 0.4], [0.3, 0.6]])[: 1 + rounds])
    assert len(first[0].boxes) == 2  # the first predictions are as they were
