"""Alignment with models whose fields are known: what is computed, how often, and how much of it at once."""

import itertools

import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.warp import resize_ddf, warp
from oasis_monai.segmentation.alignment import Aligner, FieldCache
from oasis_monai.segmentation.fusion import overlap
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.transforms.labels import foreground, one_hot

SIZE, STRIDE = (12, 8), 2


class MeanShift(torch.nn.Module):
    """A stub STM that counts. Coarse field: along x twice the target's mean less the atlas's, along y 0."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def field(self, atlas, target):
        assert atlas.shape == target.shape
        self.batches.append(len(atlas))
        shift = 2 * target.mean((1, 2, 3)) - atlas.mean((1, 2, 3))
        field = torch.zeros(len(atlas), 2, *[s // STRIDE for s in SIZE])
        field[:, 0] = shift.view(-1, 1, 1)
        return field

    @property
    def pairs(self):
        return sum(self.batches)


def library_of(n, classes=3):
    """Atlas k: brightness k/4 everywhere, a bar of class 1 starting at row 2 + k % 4, one of class 2 behind it."""
    images = torch.arange(n).view(n, 1, 1, 1) / 4 * torch.ones(1, 1, *SIZE)
    labels = torch.zeros(n, 1, *SIZE, dtype=torch.uint8)
    for k in range(n):
        labels[k, 0, 2 + k % 4 : 5 + k % 4, 2:6] = 1
        labels[k, 0, 5 + k % 4 : 7 + k % 4, 2:6] = 2
    cases = tuple(f"case{k}" for k in range(n))
    return AtlasLibrary(images, labels, torch.zeros(n, 2), cases, torch.zeros(n, dtype=torch.int64), classes)


def known_field(library, atlas, target):
    """The field of the stub for brightness `target`, from the definition."""
    field = torch.zeros(1, 2, *[s // STRIDE for s in SIZE])
    field[:, 0] = 2 * target - atlas / 4
    return field


def targets_of(*brightness):
    return torch.tensor(brightness).view(-1, 1, 1, 1) * torch.ones(1, 1, *SIZE)


def counted(batch=2):
    model = MeanShift()
    return model, Aligner(model, batch=batch)


# --- the aligner


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_fields_do_not_depend_on_the_batch_and_no_more_than_it_passes_at_once(batch):
    library = library_of(7)
    model, aligner = counted(batch)
    fields = aligner.fields(library.images, targets_of(*[0.5] * 7))
    assert fields.dtype == torch.float16
    want = torch.cat([known_field(library, k, 0.5) for k in range(7)])
    torch.testing.assert_close(fields.float(), want)
    assert model.pairs == 7
    assert max(model.batches) <= batch


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_warped_atlases_come_in_batches_and_are_warped_by_their_own_field(batch):
    library, rows = library_of(5), torch.tensor([4, 0, 3, 1])
    _, aligner = counted(batch)
    fields = torch.cat([known_field(library, float(k), 1.0) for k in rows])
    seen = []
    assert all(image is None for _, image, _ in aligner.warped(library, rows, fields.half()))  # unless they are asked for
    for part, image, label in aligner.warped(library, rows, fields.half(), images=True):
        assert 0 < len(image) == len(label) <= batch
        for i, place in enumerate(range(part.start, part.stop)):
            seen.append(place)
            row = int(rows[place])
            ddf = resize_ddf(fields[place : place + 1], SIZE)
            assert ddf[0, 0].unique().tolist() == [2 * (2.0 - row / 4)]  # one coarse voxel is two fine ones
            own = library.labels[row, 0].long()
            want = torch.zeros(3, *SIZE).scatter_(0, own[None], 1.0)
            torch.testing.assert_close(label[i : i + 1], warp(want[None], ddf))
            torch.testing.assert_close(image[i : i + 1], warp(library.images[row : row + 1], ddf))
    assert seen == [0, 1, 2, 3]


def test_one_hot_and_foreground():
    label = torch.tensor([[[[0, 1], [2, 1]]]], dtype=torch.uint8)
    assert one_hot(label, 3).tolist() == [[[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [1, 0]]]]
    assert torch.equal(foreground(label, 3), one_hot(label, 3)[:, 1:])


def test_inference_leaves_no_graph_and_a_model_in_training_mode_is_put_to_rest():
    model = MeanShift().train()
    aligner = Aligner(model)
    assert not model.training
    assert not aligner.fields(library_of(1).images, targets_of(1.0).requires_grad_()).requires_grad


# --- the cache of fields


def wanted(library, rows, brightness):
    return torch.stack(
        [torch.cat([known_field(library, float(k), b) for k in row]) for row, b in zip(rows.tolist(), brightness, strict=True)]
    )


BRIGHTNESS = (0.25, 1.5, 0.75)
ROWS = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [2, 0, 4, 1, 5]])


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_every_image_of_a_target_gets_the_fields_of_its_own_atlases(batch):
    library, targets = library_of(6), targets_of(*BRIGHTNESS)
    model, aligner = counted(batch)
    fields = FieldCache(None, "").get("t", targets, ROWS, library, aligner)
    torch.testing.assert_close(fields.float(), wanted(library, ROWS, BRIGHTNESS))
    assert model.pairs == ROWS.numel()
    assert max(model.batches) <= batch


def test_each_pair_is_aligned_once_whatever_n(tmp_path):
    library, targets = library_of(6), targets_of(*BRIGHTNESS)
    calls = {}
    for n in (2, 1, 2, 5, 3, 5):
        model, aligner = counted()
        fields = FieldCache(tmp_path, "key").get("t", targets, ROWS[:, :n], library, aligner)
        calls.setdefault(n, []).append(model.pairs)
        torch.testing.assert_close(fields.float(), wanted(library, ROWS[:, :n], BRIGHTNESS))
    assert calls == {2: [6, 0], 1: [0], 5: [9, 0], 3: [0]}  # 5 computes the three new columns alone


@pytest.mark.parametrize("change", ["rows", "images", "name", "key"])
def test_other_neighbours_other_target_other_key_are_computed_anew(tmp_path, change):
    library, targets = library_of(6), targets_of(*BRIGHTNESS)
    model, aligner = counted()
    FieldCache(tmp_path, "key").get("t_1", targets, ROWS[:, :3], library, aligner)
    rows, key, name, brightness = ROWS[:, :4], "key", "t_1", BRIGHTNESS
    if change == "rows":
        rows = rows.clone()
        rows[1, 2] = 0  # one neighbour of one slice
    elif change == "images":
        rows, brightness = rows[:2], BRIGHTNESS[:2]  # fewer slices
    elif change == "name":
        name = "t/1"  # not a folder, nor the other target once made safe
    else:
        key = "other"
    before = model.pairs
    fields = FieldCache(tmp_path, key).get(name, targets_of(*brightness), rows, library, aligner)
    torch.testing.assert_close(fields.float(), wanted(library, rows, brightness))
    assert model.pairs - before == rows.numel()
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))  # no name leaves the folder
    again = FieldCache(tmp_path, key).get(name, targets_of(*brightness), rows, library, aligner)
    assert torch.equal(again, fields)
    assert model.pairs - before == rows.numel()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    library, targets = library_of(6), targets_of(*BRIGHTNESS)
    model, aligner = counted()
    cache = FieldCache(tmp_path, "key")
    first = cache.get("t", targets, ROWS, library, aligner)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-9] ^= 4
    path.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[damage])
    assert torch.equal(cache.get("t", targets, ROWS, library, aligner), first)
    assert model.pairs == 2 * ROWS.numel()
    assert torch.equal(cache.get("t", targets, ROWS, library, aligner), first)  # and is whole now
    assert model.pairs == 2 * ROWS.numel()


# --- LOA


def direct(library, j, k):
    """o_jk from the definition: atlas k's label warped onto atlas j, against j's own."""
    ddf = resize_ddf(known_field(library, float(k), j / 4), SIZE)
    moved = warp(one_hot(library.labels[k : k + 1], 3), ddf)
    return overlap(moved, one_hot(library.labels[j : j + 1], 3)).item()


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_loa_matrix_is_each_atlas_warped_onto_each_other(batch):
    library, rows = library_of(6), torch.tensor([3, 1, 0, 2])
    model, aligner = counted(batch)
    matrix = LoaTable(library, aligner).matrix(rows)
    want = torch.tensor([[1.0 if j == k else direct(library, j, k) for k in rows.tolist()] for j in rows.tolist()])
    torch.testing.assert_close(matrix, want, atol=1e-6, rtol=0)
    assert (matrix - matrix.T).abs().max() > 0.1  # j and k are not interchangeable here
    assert model.pairs == 12
    assert max(model.batches) <= batch


def test_each_ordered_pair_is_computed_once_and_kept(tmp_path):
    library, path = library_of(6), tmp_path / "loa.safetensors"
    model, aligner = counted(4)
    table = LoaTable(library, aligner, path)
    groups = [torch.tensor(g) for g in ([0, 1, 2], [2, 1, 0], [1, 2, 3], [4])]
    table.require(groups)
    pairs = {p for g in groups for p in itertools.permutations(g.tolist(), 2)}
    assert model.pairs == len(table) == len(pairs) == 10
    assert model.batches == [4, 4, 2]  # full batches over all groups
    kept = table.matrix(groups[0])
    table.matrix(groups[0][:2])
    table.matrix(torch.tensor([5]))
    assert model.pairs == 10
    assert not path.exists()
    table.save()

    again_model, again_aligner = counted(4)
    again = LoaTable(library, again_aligner, path)
    assert len(again) == 10
    assert torch.equal(again.matrix(groups[0]), kept)
    assert again_model.pairs == 0
    again.matrix(torch.tensor([0, 1, 2, 3]))  # 0-3 and 3-0 are missing
    assert again_model.pairs == 2
    again.save()
    assert len(LoaTable(library, aligner, path)) == 12


def test_a_damaged_table_is_computed_again_and_an_unchanged_one_not_written(tmp_path):
    library, path, rows = library_of(3), tmp_path / "loa.safetensors", torch.arange(3)
    model, aligner = counted()
    table = LoaTable(library, aligner, path)
    want = table.matrix(rows)
    table.save()
    stamp = path.stat().st_mtime_ns
    LoaTable(library, aligner, path).save()
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:-1])
    before = model.pairs
    assert torch.equal(LoaTable(library, aligner, path).matrix(rows), want)
    assert model.pairs == before + 6


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, aligner = counted()
    table = LoaTable(library_of(2), aligner)
    table.require([])
    table.matrix(torch.arange(2))
    table.save()
    assert not list(tmp_path.iterdir())
