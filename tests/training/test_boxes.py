"""Training of the network that looks again in boxes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry
from oasis_monai.networks.slice_unet import BOX_WINDOW, SliceUNet, make_box_network
from oasis_monai.training.boxes import ANYWHERE, BoxTrainer, train_box_network
from oasis_monai.training.trainer import FitContext, generator
from oasis_monai.transforms.boxes import PLACE_MM, ScanPart
from tests.training.test_slices import SHORT, SMALL, discs

JOINT = replace(SMALL, box_budget=0.5, slice_budget=0.4, slices_per_step=8)


def three():
    """A slice network of two structures."""
    torch.manual_seed(0)
    return SliceUNet(3, decoder=(8, 8, 8, 8), pretrained=False).eval()


def placed():
    """A box network of two structures."""
    return make_box_network(3, JOINT)


def part_of(shape, label):
    """A scan whose voxels say where they lie."""
    x, y, z = torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij")
    image = ((x * shape[1] + y) * shape[2] + z)[None]
    grid = Geometry(shape, np.diag([0.5, 0.5, 1.0, 1.0]))
    return ScanPart(image, label[None], grid, Geometry((20, 20, 4), np.diag([4.0, 4.0, 4.0, 1.0])))


def parts():
    """A large and a small structure; one scan has the large one alone, one (not the fourth atlas) none of the third case's."""
    first, second = torch.zeros(130, 120, 9, dtype=torch.uint8), torch.zeros(110, 140, 7, dtype=torch.uint8)
    first[20:80, 20:80, 2:8] = 1
    first[100:102, 90:92, 0] = 2
    second[5:60, 5:60] = 1
    return {"c0": part_of((130, 120, 9), first), "c2": part_of((110, 140, 7), second)}


@pytest.fixture
def trainer():
    library = discs(3, classes=3).subset([0, 2])
    made = parts()
    context = FitContext(library, (4.0, 4.0, 4.0), replace(SHORT, augment=False))
    return BoxTrainer(context, placed(), JOINT, [made["c0"], made["c2"]])


def test_windows_show_slices_with_their_neighbours_and_labels(trainer):
    made = [parts()[case] for case in ("c0", "c2")]
    for number in range(4):
        images, labels, rows = trainer.draw(generator(0, number))
        assert images.shape == (8, 6, BOX_WINDOW, BOX_WINDOW)
        assert labels.shape == (8, 2, BOX_WINDOW, BOX_WINDOW)
        for image, label, row in zip(images, labels, rows.tolist(), strict=True):
            part = made[row]
            _, ny, nz = part.image.shape[1:]
            first = int(image[1, 0, 0])
            x, y, z = first // (ny * nz), first // nz % ny, first % nz
            at = (slice(x, x + BOX_WINDOW), slice(y, y + BOX_WINDOW))
            for channel, slab in enumerate((max(z - 1, 0), z, min(z + 1, nz - 1))):
                assert torch.equal(image[channel], part.image[0][(*at, slab)])
            mm = (part.grid.affine @ [x, y, z, 1])[:3] - (part.working.affine @ [9.5, 9.5, 1.5, 1])[:3]
            torch.testing.assert_close(image[3:, 0, 0], torch.tensor(mm / PLACE_MM).float())
            for index in (1, 2):
                assert torch.equal(label[index - 1], (part.label[0][(*at, z)] == index).float())


def test_a_small_structure_is_drawn_as_often_as_a_large_one(trainer):
    """Four voxels of the first scan beside 21,600: without balance a window in a hundred would show them."""
    shown = torch.zeros(2)
    for number in range(30):
        _, labels, rows = trainer.draw(generator(1, number))
        kept = (rows == 0) & (torch.arange(8) % ANYWHERE > 0)
        shown += torch.tensor([kept.sum(), labels[kept][:, 1].flatten(1).any(1).sum()])
    assert 0.35 < shown[1] / shown[0] < 0.75


def test_it_begins_as_the_slice_network_and_learns_on_its_part_of_the_budget(tmp_path):
    library = discs(3, classes=3)  # c1 and c3 show nothing: they are not learned from
    start = three()
    context = FitContext(library, (4.0, 4.0, 4.0), SHORT, folder=tmp_path, name="box network", progress=False)
    still = train_box_network(
        replace(context, folder=None, training=replace(SHORT, lr=1e-9)), parts(), replace(JOINT, lr=1e-12), start
    )
    before = start.state_dict()
    for name, value in still.state_dict().items():
        wanted = before.get(name, torch.zeros_like(value))  # where voxels lie says nothing yet
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=0, msg=name)
    made = train_box_network(context, parts(), JOINT, start)
    assert (tmp_path / "history.csv").read_text().count("\n") >= 2
    assert not torch.equal(made.last[0].weight, start.last[0].weight)
    again = train_box_network(context, parts(), JOINT, three())
    assert torch.equal(again.last[0].weight, made.last[0].weight), "it is loaded, not trained anew"


def test_windows_also_show_copies_of_what_may_lie_anywhere(monkeypatch):
    """The small structure in its scan's first slice alone, then elsewhere too; where voxels lie does not change."""
    monkeypatch.setattr("oasis_monai.training.small_structures.COPIED", 1.0)
    library = discs(3, classes=3).subset([0, 2])
    made = parts()
    random = torch.Generator().manual_seed(0)
    for case, part in made.items():
        image = 0.1 * torch.randn(part.image.shape, generator=random)
        made[case] = part._replace(image=image - 1.0 * (part.label == 2))
    context = FitContext(library, (4.0, 4.0, 4.0), replace(SHORT, augment=False))
    shown = {}
    for anywhere in ((), (2,)):
        trainer = BoxTrainer(replace(context, anywhere=anywhere), placed(), JOINT, list(made.values()))
        images, labels, rows = trainer.draw(generator(3, 1))
        shown[anywhere] = labels[:, 1].flatten(1).any(1) & (rows == 1)
        places = images[:, 3:]
        assert torch.equal(shown.setdefault("places", places), places)
    assert not shown[()].any()
    assert shown[2,].any()
