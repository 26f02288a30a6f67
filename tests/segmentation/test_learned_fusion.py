"""Learned fusion: the weights of networks and atlases, fitted on doubtful voxels."""

import json
import math
from dataclasses import replace

import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.segmentation import learned_fusion
from oasis_monai.segmentation.learned_fusion import (
    FEWEST_PATIENTS,
    LearnedFusion,
    Sample,
    draw_sample,
    fit_learned_fusion,
    fusions_of,
    keep_fusions,
    plain_fusions,
    read_fusions,
)


def random_opinions(networks=2, classes=3, shape=(5, 4, 3), seed=0):
    draw = torch.Generator().manual_seed(seed)
    probabilities = torch.softmax(2 * torch.randn(networks, classes, *shape, generator=draw), 1)
    votes = torch.rand(classes, *shape, generator=draw)
    return probabilities, votes / votes.sum(0)


def drawn(weights, patients=6, voxels=3000, classes=3):
    """Samples whose labels are drawn with the probabilities that the weights give."""
    samples = []
    for number in range(patients):
        probabilities, votes = random_opinions(len(weights) - 1, classes, (voxels,), seed=number)
        scores = torch.cat([probabilities.log(), votes[None]])
        truth = torch.softmax(torch.einsum("k,kcm->cm", torch.tensor(weights), scores), 0)
        label = torch.multinomial(truth.T, 1, generator=torch.Generator().manual_seed(100 + number))[:, 0]
        samples.append((f"p{number}", Sample(scores, label)))
    return samples


def test_the_pool_voxel_by_voxel():
    probabilities, votes = random_opinions()
    probabilities[0, :, 0, 0, 0] = torch.tensor([1.0, 0.0, 0.0])  # a network that is certain has no infinite say
    got = LearnedFusion((0.4, 0.2), 0.7, 9)(probabilities, votes)
    for x in range(5):
        for y in range(4):
            for z in range(3):
                scores = []
                for c in range(3):
                    logs = [math.log(max(float(probabilities[v, c, x, y, z]), 1e-6)) for v in range(2)]
                    scores.append(0.4 * logs[0] + 0.2 * logs[1] + 0.7 * float(votes[c, x, y, z]))
                total = sum(map(math.exp, scores))
                want = [math.exp(score) / total for score in scores]
                assert got[:, x, y, z].tolist() == pytest.approx(want, abs=1e-5)


def test_a_pool_of_other_networks_is_refused():
    probabilities, votes = random_opinions()
    with pytest.raises(ValueError, match="1 networks, found 2"):
        LearnedFusion((0.4,), 0.7, 9)(probabilities, votes)


@pytest.mark.parametrize("weights", [(0.5, 0.2, 1.5), (0.8, 0.0, 0.0), (0.3, 2.0)])
def test_the_fit_finds_the_weights_that_drew_the_labels(weights):
    learned = fit_learned_fusion(drawn(weights))
    assert (*learned.networks, learned.atlases) == pytest.approx(weights, abs=0.12)
    assert learned.patients == 6


def test_an_opinion_that_is_wrong_counts_nothing_and_is_not_turned_round():
    samples = drawn((1.0, 0.5, 1.0))
    wrong = []
    for patient, sample in samples:
        scores = sample.scores.clone()
        scores[1] *= -1  # what the second network finds likely is unlikely
        wrong.append((patient, replace(sample, scores=scores)))
    assert fit_learned_fusion(wrong).networks[1] == 0


def test_the_fit_is_the_best_one():
    """Against the same loss written with torch, at weights beside it."""
    samples = drawn((0.5, 0.2, 1.5), patients=5, voxels=300)
    learned = fit_learned_fusion(samples)
    best = torch.tensor([*learned.networks, learned.atlases])

    def loss(weights):
        each = [
            torch.nn.functional.cross_entropy(torch.einsum("k,kcm->mc", weights, one.scores), one.label) for _, one in samples
        ]
        return float(torch.stack(each).mean()) + learned_fusion.RIDGE * float((weights**2).sum())

    for number in range(3):
        for step in (-0.02, 0.02):
            beside = best.clone()
            beside[number] += step
            assert loss(beside) > loss(best)


def test_every_patient_counts_the_same():
    mild, strong = drawn((0.3, 0.3, 0.3), patients=4), drawn((1.5, 1.5, 1.5), patients=8)[4:]
    once = fit_learned_fusion([*mild, *strong])
    of_one = [(strong[0][0], one) for _, one in [strong[0]] * 10]  # ten scans of one patient
    again = fit_learned_fusion([*mild, *of_one, *strong[1:]])
    assert (*again.networks, again.atlases) == pytest.approx((*once.networks, once.atlases), abs=1e-3)
    assert again.patients == once.patients == 8


def test_few_patients_fit_nothing():
    samples = drawn((0.5, 0.2, 1.5), patients=FEWEST_PATIENTS - 1, voxels=50)
    assert fit_learned_fusion(samples) is None
    assert fit_learned_fusion([(samples[0][0], one) for _, one in samples * 3]) is None  # many scans of one patient
    assert fit_learned_fusion([]) is None


def test_the_sample_has_doubtful_voxels_only():
    sure = torch.tensor([0.99, 0.01])
    opinions = sure.view(1, 2, 1).repeat(3, 1, 5)
    opinions[0, :, 1] = torch.tensor([0.6, 0.4])  # an unsure network
    opinions[2, :, 2] = torch.tensor([0.5, 0.5])  # atlases that are of two minds
    opinions[1, :, 3] = torch.tensor([0.005, 0.995])  # both sure, of different classes
    opinions[0, :, 4] = torch.tensor([0.6, 0.4])  # but nobody labelled it
    sample = draw_sample(opinions, torch.tensor([0, 1, 0, 1, IGNORE], dtype=torch.uint8))
    assert sample.label.tolist() == [1, 0, 1]
    torch.testing.assert_close(sample.scores[:2], opinions[:2, :, 1:4].log())
    torch.testing.assert_close(sample.scores[2], opinions[2, :, 1:4])
    assert draw_sample(opinions[..., :1], torch.zeros(1, dtype=torch.uint8)) is None


def test_a_large_sample_is_cut_always_the_same_way():
    probabilities, votes = random_opinions(2, 2, (30, 30, 30))
    opinions = torch.cat([probabilities, votes[None]])
    label = votes.argmax(0).to(torch.uint8)
    one, again = draw_sample(opinions, label), draw_sample(opinions, label)
    assert len(one.label) == learned_fusion.VOXELS
    assert torch.equal(one.scores, again.scores)
    many, votes = random_opinions(1, 60, (20, 20, 20))
    sample = draw_sample(torch.cat([many, votes[None]]), votes.argmax(0).to(torch.uint8))
    assert len(sample.label) == learned_fusion.VALUES // 60


def test_pools_come_back_from_their_file(tmp_path):
    path = tmp_path / "fusion" / "a.json"
    assert read_fusions(path) is None
    few, many = LearnedFusion((0.5, 0.25), 1.0, 5), LearnedFusion((0.75, 0.25), 0.5, 20)
    keep_fusions(path, {3: few, 6: many})
    keep_fusions(path, {3: many, 6: few})  # that of more patients stays
    assert read_fusions(path) == {3: many, 6: many}
    path.write_text("{")
    assert read_fusions(path) is None


@pytest.mark.parametrize(
    "held", [[], {"six": {}}, {"6": {"networks": [0.5], "atlases": -1, "patients": 5}}, {"6": {"networks": [math.nan]}}, {"6": 3}]
)
def test_what_is_no_pool_is_refused(held):
    with pytest.raises(ValueError, match="fusion: expected number of atlases -> weights"):
        fusions_of(held)
    good = plain_fusions({6: LearnedFusion((0.5, 0.25), 1.0, 5)})
    assert fusions_of(json.loads(json.dumps(good)))[6].networks == (0.5, 0.25)
