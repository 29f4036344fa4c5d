"Regions that decide: on detectors whose decision is known."

import numpy as np
import pytest
import torch
from torch import nn

from prle.regions import HALVINGS, LARGEST, decisive_shares, strongest_evidence


class Counts(nn.Module):
    "Calls an image fake while more than `spared` of its white pixels are left."

    def __init__(self, spared: int):
        super().__init__()
        self.spared = spared

    def forward(self, x):
        return x[:, 0].sum((1, 2)) - self.spared - 0.5


@pytest.fixture
def faces():
    "White at the 12 most attended of 100 pixels, black elsewhere."
    attention = torch.arange(100, 0, -1).reshape(1, 10, 10) / 100
    return (attention > 0.88).float()[:, None].repeat(1, 3, 1, 1), attention


@pytest.mark.parametrize("spared", [0, 3, 11])
def test_just_so_much_is_taken_out_that_nobody_calls_it_fake(faces, spared):
    images, attention = faces
    share = decisive_shares(
        [Counts(20), Counts(spared)], images, attention, torch.zeros_like(images)
    )
    assert abs(share.item() - (12 - spared) / 100) <= 0.005 + LARGEST / 2**HALVINGS


def test_a_face_that_is_not_called_fake_has_none_and_one_that_stays_fake_the_largest(faces):
    images, attention = faces
    none = decisive_shares([Counts(12)], images, attention, torch.zeros_like(images))
    all_of_it = decisive_shares([Counts(0)], images, attention, images)
    assert none.item() == 0 and all_of_it.item() == LARGEST


def test_the_strongest_evidence_counts_and_modes_stay(faces):
    images, _ = faces
    detectors = [Counts(3).train(), Counts(5).eval()]
    assert strongest_evidence(detectors, images).item() == 8.5
    assert [d.training for d in detectors] == [True, False]


def test_each_face_of_a_batch_is_measured_alone(faces):
    images, attention = faces
    images = torch.cat([images, torch.zeros_like(images), images])
    maps = torch.cat([attention, attention, attention.flip(1)])
    fill, detectors = torch.zeros_like(images), [Counts(2)]
    together = decisive_shares(detectors, images, maps, fill)
    alone = [
        decisive_shares(detectors, *(t[i : i + 1] for t in (images, maps, fill))) for i in range(3)
    ]
    assert np.array_equal(together, torch.cat(alone)) and len(set(together.tolist())) == 3
