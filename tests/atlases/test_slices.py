"""The atlases shown beside a slice by a joint model of slices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.atlases.features import thumbnails
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.slices import adjacent_slice_atlases, append_atlas_channels, interpolate_shape, slices_near_structure
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks.slice_unet import MAX_DISTANCE, JointSettings, make_slice_network, with_neighbours
from oasis_monai.segmentation.estimate import Estimator, estimate_atlases
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.utils.errors import ConfigError
from tests.training.test_slices import discs

SMALL = JointSettings(decoder=(8, 8, 8, 8), slices_per_step=2, pretrained=False, slice_budget=0.5, volume_budget=0.0, atlases=2)


def scans(depths=(9, 7), keep=lambda case, z: True, classes=2):
    """The slices of noisy scans that ``keep`` takes, as a library; and the whole scans, (1, 32, 32, z)."""
    made, parts = [], []
    for number, depth in enumerate(depths):
        noise = torch.randn(1, 32, 32, depth, generator=torch.Generator().manual_seed(number))
        drift = torch.arange(depth) / 4  # a slice is like the next, less like the one after that
        scan = torch.stack([noise[..., 0] * (1 - z / 2) + noise[..., 1] * z / 2 for z in drift], -1) + 0.1 * noise
        made.append(scan)
        parts += [(number, z) for z in range(depth) if keep(number, z)]
    context = [with_neighbours(scan) for scan in made]
    images = torch.stack([context[c][z, 1:2] for c, z in parts])
    labels = torch.stack([((images[i] > 0) * (1 + i % (classes - 1))).to(torch.uint8) for i in range(len(parts))])
    around = torch.stack([context[c][z][[0, 2]] for c, z in parts])
    names = tuple(f"c{c}" for c, _ in parts)
    features = torch.randn(len(parts), 5, generator=torch.Generator().manual_seed(9))
    library = AtlasLibrary(images, labels, features, names, torch.tensor([z for _, z in parts]), classes, around)
    return replace(library, thumbnails=thumbnails(images)), made


def places(library, rows):
    return [[(library.cases[r], int(library.slices[r])) for r in pair] for pair in rows.tolist()]


def test_thumbnails_tell_correlation():
    images = torch.rand(3, 1, 48, 40, generator=torch.Generator().manual_seed(1))
    images[2] = 7.0
    small = thumbnails(images, part=2)
    assert (small.shape, small.dtype) == ((3, 256), torch.float16)
    torch.testing.assert_close(small, thumbnails(5 * images - 3), atol=2e-3, rtol=0)
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 16).flatten(1)
    squared = (small[0].float() - small[1].float()).square().sum()
    torch.testing.assert_close(1 - squared / 2, torch.corrcoef(pooled)[0, 1], atol=2e-3, rtol=0)
    assert not small[2].any()  # a blank slice is like none, and not NaN
    assert thumbnails(images[:0]).shape == (0, 256)


def test_the_next_labelled_slices_of_a_scan_flank_it():
    library, made = scans(keep=lambda case, z: z not in (2, 5, 6))
    slices = with_neighbours(made[0])
    got = places(library, adjacent_slice_atlases(slices[[2]], library))
    assert got == [[("c0", 1), ("c0", 3)]]
    got = places(library, adjacent_slice_atlases(slices[[5]], library))  # its neighbour above is not among the atlases either
    assert got == [[("c0", 4), ("c0", 7)]]


def test_two_neighbours_that_like_one_atlas_share():
    """Of the two the one that loses less takes its second choice."""
    library, _ = scans((3,))
    one, two, three = torch.rand(3, 1, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    library = replace(library, images=torch.cat([one, two, three]), thumbnails=None)
    keen, torn = 0.9 * one + 0.1 * two, 0.6 * one + 0.4 * three
    assert adjacent_slice_atlases(torch.cat([keen, one, torn], 1), library).tolist() == [[0, 2]]
    assert adjacent_slice_atlases(torch.cat([torn, one, keen], 1), library).tolist() == [[2, 0]]


def test_rows_differ_and_what_is_barred_never_comes():
    library, _ = scans()
    slices = torch.cat([library.context[:, :1], library.images, library.context[:, 1:]], 1)
    for own in (library.groups(), library.groups(same_case=True)):
        rows = adjacent_slice_atlases(slices, library, (own, own))
        assert bool((rows[:, 0] != rows[:, 1]).all())
        assert not bool((own[rows] == own[:, None]).any())
        assert torch.equal(rows, adjacent_slice_atlases(slices, replace(library, thumbnails=None), (own, own)))


def test_too_few_atlases_are_told():
    library, _ = scans((3,))
    with pytest.raises(ConfigError, match="1 to 1, the atlases available"):
        adjacent_slice_atlases(with_neighbours(torch.rand(1, 32, 32, 1)), library.subset([0]))


def test_atlases_beside_a_slice_are_image_then_structures():
    library, _ = scans(classes=3)
    slices, rows = torch.rand(2, 3, 32, 32), torch.tensor([[1, 3], [0, 5]])
    shape = 9 * torch.rand(2, 2, 32, 32) - MAX_DISTANCE
    got = append_atlas_channels(slices, library, rows, shape)
    assert got.shape == (2, 3 + 2 * 3 + 2, 32, 32)
    torch.testing.assert_close(got[:, 9:], 1 + shape / MAX_DISTANCE)
    assert torch.equal(got[:, :3], slices)
    assert torch.equal(got[:, 3], library.images[[1, 0], 0])
    assert torch.equal(got[:, 6], library.images[[3, 5], 0])
    assert torch.equal(got[0, 4], (library.labels[1, 0] == 1).float())
    assert torch.equal(got[0, 8], (library.labels[3, 0] == 2).float())


def test_no_slice_is_its_own_atlas():
    library, _ = scans()
    for same_case, barred in ((True, lambda i, j: i == j), (False, lambda i, j: library.cases[i] == library.cases[j])):
        seen = []

        class Watched(Estimator):
            def __call__(self, slices, seen=seen):
                for given in slices[:, [3, 5]]:
                    seen.append([j for one in given for j, image in enumerate(library.images) if torch.equal(image[0], one)])
                return super().__call__(slices)

        model = make_slice_network(2, SMALL, shape=same_case)
        estimate_atlases(Watched(model, tta_flip=False), library, 2, same_case)
        assert [len(rows) for rows in seen] == [2] * len(library)
        assert not any(barred(i, j) for i, rows in enumerate(seen) for j in rows)


@pytest.mark.parametrize(("same_case", "case"), [(True, "c0"), (True, "of which nothing is labelled"), (False, "c0")])
def test_a_target_is_shown_the_shape_that_training_showed(same_case, case):
    """Under slice folds the shape between the scan's own labelled slices or, if there are none, its atlases; else none."""
    library, made = scans(keep=lambda case, z: z not in (2, 5, 6))
    seen = []

    class Watched(Estimator):
        def __call__(self, slices):
            seen.append(slices)
            return super().__call__(slices)

    grid = Geometry(tuple(made[0].shape[1:]), np.eye(4))
    target, which = Preprocessed(case, made[0], None, grid, grid), torch.tensor([2, 5, 6])
    estimator = Watched(make_slice_network(2, SMALL, shape=same_case), tta_flip=False)
    Segmenter(library, estimator=estimator, joint=JointSettings(atlases=2), same_case=same_case).estimate(target, which)
    rows = adjacent_slice_atlases(with_neighbours(made[0])[which], library)
    shape = interpolate_shape(library, [(case, z) for z in which.tolist()], rows) if same_case else None
    assert torch.equal(seen[0], append_atlas_channels(with_neighbours(made[0])[which], library, rows, shape))


@pytest.mark.slow
def test_a_slice_between_its_labelled_neighbours_is_easy():
    """What no network of one slice could learn, where the label lies: the neighbours' labels tell it."""
    size, depth, cases = 32, 12, 6
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    parts, names, zs = [], [], []
    for case in range(cases):
        random = torch.Generator().manual_seed(case)
        start, speed = 8 + 16 * torch.rand(2, generator=random), 1.2 * torch.rand(2, generator=random) - 0.6
        scan = torch.randn(1, size, size, depth, generator=random)
        scan = scan.cumsum(-1)  # each slice is like the last; where the disc is cannot be seen
        for z in range(depth):
            label = ((grid - (start + speed * z)[:, None, None]).square().sum(0).sqrt() < 6).to(torch.uint8)
            parts.append((with_neighbours(scan)[z], label[None]))
            names.append(f"c{case}")
            zs.append(z)
    whole = torch.stack([image for image, _ in parts])
    library = AtlasLibrary(
        whole[:, 1:2].contiguous(),
        torch.stack([label for _, label in parts]),
        torch.randn(len(parts), 5),
        tuple(names),
        torch.tensor(zs),
        2,
        whole[:, [0, 2]].contiguous(),
    )
    hidden = torch.arange(len(parts)) % 4 == 2
    known = library.subset(~hidden)
    training = TrainingSettings(iterations=30, minutes=None, augment=False)
    model = train_slice_network(
        FitContext(known, (1.0, 1.0), training, 0, None, name="slice network", progress=False, same_case=True),
        replace(SMALL, slices_per_step=8),
    )
    slices = whole[hidden]
    rows = adjacent_slice_atlases(slices, known)
    places = [(names[i], zs[i]) for i in hidden.nonzero()[:, 0].tolist()]
    shown = append_atlas_channels(slices, known, rows, interpolate_shape(known, places))
    got = Estimator(model, tta_flip=False)(shown)[:, 1] >= 0.5
    truth = library.labels[hidden][:, 0] == 1
    assert 2 * float((got & truth).sum()) / float(got.sum() + truth.sum()) > 0.9


@pytest.mark.parametrize("dims", [2, 3])
def test_slices_near_a_structure(dims):
    library = discs(dims)
    labels = torch.zeros_like(library.labels)
    if dims == 3:
        labels = labels.new_zeros(len(labels), 1, 32, 32, 9)
        labels[1, 0, 16, 16, 6] = 1
        library = replace(library, images=torch.zeros(labels.shape), labels=labels)
        near = slices_near_structure(library)
        assert near[1].tolist() == [False] * 4 + [True] * 5
        assert near.sum() == 5
        return
    row = 1
    labels[row, 0, 16, 16] = 1
    near = slices_near_structure(replace(library, labels=labels))
    here = (library.cases[row], int(library.slices[row]))
    assert near.tolist() == [
        case == here[0] and abs(int(z) - here[1]) <= 2 for case, z in zip(library.cases, library.slices, strict=True)
    ]
    assert near[row]
