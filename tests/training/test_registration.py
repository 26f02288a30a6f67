"""Training: who meets whom, resumption to the bit, and what happens when it goes wrong."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.training import registration as module
from oasis_monai.training import trainer as fitting
from oasis_monai.training.registration import Pairs, train_registration
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.transforms.augmentation import Augmentation
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.tensor_files import load_tensors

STM = RegistrationSettings(channels=(4, 8), field_stride=(1,), joint=False)
SHORT = TrainingSettings(iterations=8, minutes=None, lr=5e-3, batch=2, checkpoint_minutes=1e-12)
SPACING_MM = (1.0, 1.0)


def discs(cases=4, per_case=1, size=16):
    """A library of discs at different places: aligning them is a shift."""
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    images, labels = [], []
    for number in range(cases * per_case):
        turn = torch.tensor(2.4 * number)
        centre = size / 2 + 2.5 * torch.stack([turn.cos(), turn.sin()])
        distance = (grid - centre[:, None, None]).square().sum(0).sqrt()
        images.append(torch.sigmoid(4 - distance)[None])
        labels.append((distance < 4).to(torch.uint8)[None])
    names = tuple(f"c{number // per_case}" for number in range(cases * per_case))
    features = torch.arange(cases * per_case).float()[:, None] ** 2 + torch.tensor([0.0, 1.0])
    slices = torch.arange(cases * per_case) % per_case if per_case > 1 else torch.full((cases,), -1)
    return AtlasLibrary(torch.stack(images), torch.stack(labels), features, names, slices, 2)


def train(folder, settings=SHORT, seed=3, loss=None, library=None, **more):
    library = library or discs()
    return train_registration(
        FitContext(library, SPACING_MM, settings, seed, folder, progress=False, name="STM", **more),
        STM,
        loss or RegistrationLoss(),
    )


def same(a, b):
    pairs = list(zip(a.state_dict().items(), b.state_dict().items(), strict=True))
    return all(x == y and torch.equal(s, t) for (x, s), (y, t) in pairs)


class Killed(BaseException):
    """As an interrupt: nothing in the training may catch it."""


def die_before(monkeypatch, number):
    whole = module.RegistrationTrainer.step

    def step(self, at):
        if at == number:
            raise Killed
        return whole(self, at)

    monkeypatch.setattr(module.RegistrationTrainer, "step", step)


@pytest.mark.parametrize("deaths", [(1,), (7,), (2, 3, 6), tuple(range(8))])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_killed_and_resumed_is_bitwise_never_killed(tmp_path, deaths, schedule):
    settings = replace(SHORT, schedule=schedule)
    whole = train(tmp_path / "whole", settings)
    for death in deaths:
        with pytest.MonkeyPatch.context() as patch:
            die_before(patch, death)
            with pytest.raises(Killed):
                train(tmp_path / "killed", settings)
        if death:
            assert load_tensors(tmp_path / "killed" / "stm.safetensors")[1]["step"] == death
    assert same(train(tmp_path / "killed", settings), whole)
    steps = [[r["step"] for r in load_tensors(tmp_path / n / "stm.safetensors")[1]["history"]] for n in ("whole", "killed")]
    assert steps == [list(range(1, 9))] * 2
    assert len((tmp_path / "killed" / "history.csv").read_text().splitlines()) == 9


def test_a_checkpoint_between_two_rows_of_history_loses_no_row(tmp_path):
    """Longer trainings average their history over several steps; a checkpoint within such a window keeps what it has of it."""
    settings = replace(SHORT, iterations=300)
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        die_before(patch, 8)
        with pytest.raises(Killed):
            train(tmp_path, settings)
    meta = load_tensors(tmp_path / "stm.safetensors")[1]
    assert meta["step"] == 8
    assert [row["step"] for row in meta["history"]] == [3, 6]
    for folder in (tmp_path, tmp_path / "never before"):
        with pytest.MonkeyPatch.context() as patch:
            die_before(patch, 10)
            with pytest.raises(Killed):
                train(folder, settings)
        rows = load_tensors(folder / "stm.safetensors")[1]["history"]
        kept.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert [row["step"] for row in kept[0]] == [3, 6, 9]
    assert kept[0] == kept[1]


def test_a_finished_model_is_loaded_and_not_trained(tmp_path, monkeypatch):
    whole = train(tmp_path)
    die_before(monkeypatch, 0)
    assert same(train(tmp_path), whole)
    assert not train(tmp_path).training


@pytest.mark.parametrize("change", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_starts_again(tmp_path, change):
    whole = train(tmp_path)
    path = tmp_path / "stm.safetensors"
    raw = bytearray(path.read_bytes())
    if change == "flip":
        raw[len(raw) // 2] ^= 1
    path.write_bytes({"truncate": raw[:-9], "flip": raw, "empty": b""}[change])
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        step = module.RegistrationTrainer.step
        patch.setattr(module.RegistrationTrainer, "step", lambda self, at: (calls.append(at), step(self, at))[1])
        assert same(train(tmp_path), whole)
    assert calls == list(range(8))


def test_every_seed_and_step_has_random_numbers_of_its_own():
    """torch's generator on a CPU takes 32 bits of a seed and leaves the others out."""

    def draws(seed, step):
        return tuple(torch.rand(4, generator=fitting.generator(seed, step)).tolist())

    assert len({draws(seed, step) for seed in (0, 1, 1000, 2**31) for step in range(50)}) == 200
    assert draws(3, 4) == draws(3, 4)


def test_seed_library_and_settings_decide_the_weights_and_the_global_generator_does_not(tmp_path):
    torch.manual_seed(1)
    first = train(None)
    torch.manual_seed(2)
    assert same(train(None), first)
    assert torch.initial_seed() == 2
    assert not same(train(None, seed=4), first)
    assert not same(train(None, replace(SHORT, augment=False)), first)
    assert not same(train(None, augmentation=Augmentation(noise=0.5)), first)
    assert not same(train(None, loss=RegistrationLoss(beta=0.0)), first)


class Poisoned(RegistrationLoss):
    """The loss, not a number from its third use on."""

    def __call__(self, *arguments):
        terms = super().__call__(*arguments)
        uses = self.__dict__["uses"] = self.__dict__.get("uses", 0) + 1
        return terms._replace(total=terms.total * float("nan")) if uses >= 3 else terms


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_good_checkpoint(tmp_path):
    with pytest.raises(OasisError, match=r"^STM: training diverged at step 2 .*Lower training\.lr \(now 0\.005\)"):
        train(tmp_path / "a", loss=Poisoned())
    tensors, meta = load_tensors(tmp_path / "a" / "stm.safetensors")
    assert meta["step"] == 2
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert same(train(tmp_path / "a"), train(None))


@pytest.mark.parametrize(("at", "checkpoint_minutes", "kept"), [(2, 1e-12, 2), (7, 1e-12, 7), (7, 99.0, None)])
def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path, monkeypatch, at, checkpoint_minutes, kept):
    """A finite loss can have a gradient that is not, which only the next loss would tell: after the last step, none."""
    step = module.RegistrationTrainer.step

    def spoil(self, number):
        terms = step(self, number)
        if number == at:
            next(self.model.parameters()).data.view(-1)[0] = torch.nan
        return terms

    monkeypatch.setattr(module.RegistrationTrainer, "step", spoil)
    with pytest.raises(
        OasisError, match=rf"training diverged at step {at + 1} \(weights that are not finite\)\. Lower training\.lr"
    ):
        train(tmp_path, replace(SHORT, checkpoint_minutes=checkpoint_minutes))
    if kept is None:
        assert not (tmp_path / "stm.safetensors").exists()
    else:
        tensors, meta = load_tensors(tmp_path / "stm.safetensors")
        assert (meta["step"], meta["done"]) == (kept, False)
        assert all(bool(value.isfinite().all()) for value in tensors.values())


class Seconds:
    """A clock on which every look takes a second."""

    def __init__(self):
        self.now = 1000.0

    def thread_time(self):
        self.now += 1.0
        return self.now


def test_a_budget_in_minutes_ends_in_time_and_counts_what_went_before(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "time", Seconds())
    settings = replace(SHORT, iterations=None, minutes=0.1, checkpoint_minutes=0.01)
    train(tmp_path / "whole", settings)
    meta = load_tensors(tmp_path / "whole" / "stm.safetensors")[1]
    assert (meta["step"], meta["seconds"], meta["done"]) == (6, 6.0, True)
    settings = replace(settings, minutes=1.0)
    with pytest.MonkeyPatch.context() as patch:
        die_before(patch, 45)
        with pytest.raises(Killed):
            train(tmp_path / "killed", settings)
    before = load_tensors(tmp_path / "killed" / "stm.safetensors")[1]
    assert before["seconds"] == before["step"] == 45
    train(tmp_path / "killed", settings)
    after = load_tensors(tmp_path / "killed" / "stm.safetensors")[1]
    assert (after["step"], after["seconds"], after["done"]) == (60, 60.0, True)


def test_the_nearer_of_two_limits_ends_training(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "time", Seconds())
    train(tmp_path / "a", replace(SHORT, minutes=0.05))
    assert load_tensors(tmp_path / "a" / "stm.safetensors")[1]["step"] == 3
    train(tmp_path / "b", replace(SHORT, minutes=5.0))
    assert load_tensors(tmp_path / "b" / "stm.safetensors")[1]["step"] == 8


@pytest.mark.parametrize("loss", [RegistrationLoss(beta=0.0), RegistrationLoss(alpha=0.0)], ids=["images", "labels"])
def test_it_learns_to_move_discs(tmp_path, loss):
    """From the images alone, and from the labels alone."""
    settings = TrainingSettings(iterations=100, minutes=None, lr=2e-2, batch=4, augment=False)
    model = train(tmp_path, settings, library=discs(6), loss=loss)
    rows = load_tensors(tmp_path / "stm.safetensors")[1]["history"]
    first, last = ({key: sum(row[key] for row in part) / 10 for key in rows[0]} for part in (rows[:10], rows[-10:]))
    assert last["loss"] < first["loss"] - 0.1
    assert -last["dice"] > 0.85 > 0.8 > -first["dice"]
    assert rows[0]["lr"] == pytest.approx(2e-2, rel=0.01)
    assert rows[-1]["lr"] == pytest.approx(2e-4, rel=0.1)
    library = discs(6)
    with torch.inference_mode():
        field = model(library.images[:1], library.images[2:3])
    assert field.abs().max() > 1


def test_in_bfloat16_it_trains_as_well():
    model = train(None, replace(SHORT, amp=True))
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())
    assert not same(model, train(None))


@pytest.mark.parametrize("per_case", [1, 3])
@pytest.mark.parametrize("same_case", [False, True])
@pytest.mark.parametrize("near", [0, 2])
def test_pairs_are_never_an_atlas_and_itself_nor_of_one_patient(per_case, same_case, near):
    library = discs(4, per_case)
    pairs = Pairs(library, near, same_case=same_case)
    atlases, targets = pairs.draw(2000, torch.Generator().manual_seed(0))
    cases = torch.tensor([int(case[1:]) for case in library.cases])
    assert bool((atlases != targets).all())
    mixed = bool((cases[atlases] == cases[targets]).any())
    assert mixed == (same_case and per_case > 1)
    assert set(targets.tolist()) == set(range(len(library)))
    met = {t: set(atlases[targets == t].tolist()) for t in range(len(library))}
    for target, partners in met.items():
        allowed = [i for i in range(len(library)) if i != target and (same_case or cases[i] != cases[target])]
        if near:  # the direction of a feature turns steadily with the number of its atlas
            units = torch.nn.functional.normalize(library.features.double(), dim=1)
            allowed = sorted(allowed, key=lambda i: (float((units[i] - units[target]).norm()), i))[:near]
        assert partners == set(allowed)


def test_the_pairs_of_a_step_do_not_depend_on_what_went_before():
    pairs = Pairs(discs(5), 0)
    draws = [pairs.draw(6, torch.Generator().manual_seed(9)) for _ in range(2)]
    pairs.draw(6, torch.Generator().manual_seed(1))
    draws.append(pairs.draw(6, torch.Generator().manual_seed(9)))
    assert all(torch.equal(a, b) for draw in draws for a, b in zip(draw, draws[0], strict=True))


@pytest.mark.parametrize(("library", "same_case"), [(discs(1), False), (discs(1), True), (discs(1, 3), False)])
def test_one_training_case_makes_no_pair(library, same_case):
    with pytest.raises(ConfigError, match=r"^data: expected at least two training patients"):
        Pairs(library, 0, same_case=same_case)


def test_one_case_of_several_slices_makes_pairs_under_slice_folds():
    atlases, targets = Pairs(discs(1, 3), 0, same_case=True).draw(50, torch.Generator().manual_seed(0))
    assert bool((atlases != targets).all())


def test_training_names_what_lowers_its_memory_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    whole = module.RegistrationTrainer.step

    def step(self, number):
        if number == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return whole(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(module.RegistrationTrainer, "step", step)
        with pytest.raises(
            OasisError,
            match=r"^STM: out of memory at step 5 .*Lower training\.batch",
        ) as caught:
            train(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert same(train(tmp_path / "a"), train(None))  # and with memory again it goes on to the same weights


def test_each_image_is_turned_in_its_own_millimetres(monkeypatch):
    """Grids that keep each scan's field of view have voxels of their own: what is true of the first shears the others."""
    from oasis_monai.transforms.augmentation import Augmentation

    library, seen = discs(), []
    spacings = torch.tensor([[1.0, 1.0], [1.0, 2.0], [3.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    real = Augmentation.__call__

    def watched(self, image, label, flip, spacing_mm, random, channels):
        seen.append((image, spacing_mm))
        return real(self, image, label, flip, spacing_mm, random, channels)

    monkeypatch.setattr(Augmentation, "__call__", watched)
    train_registration(FitContext(library, spacings, replace(SHORT, augment=True, iterations=3), 3, None, progress=False), STM)
    for images, spacing_mm in seen:
        for image, voxel in zip(images, spacing_mm, strict=True):
            (row,) = [i for i, own in enumerate(library.images) if torch.equal(own, image)]
            assert torch.equal(voxel, spacings[row])
    assert len(seen) == 6


def test_pairs_of_a_library_that_is_nearly_one_case():
    """Trying again until the partner is of another case would take hundreds of draws; all partners stay as likely."""
    library = discs(cases=2, per_case=200)
    names = ("a",) * 396 + ("b",) * 3 + ("c",)
    pairs, random = Pairs(replace(library, cases=names, patients=names), 0), torch.Generator().manual_seed(0)
    atlases, targets = pairs.draw(4000, random)
    assert all(names[a] != names[t] for a, t in zip(atlases.tolist(), targets.tolist(), strict=True))
    for_a = atlases[targets < 396]
    assert sorted(for_a.unique().tolist()) == [396, 397, 398, 399]
    assert float(torch.bincount(for_a)[396:].min() / len(for_a)) > 0.2
    drawn = []
    random.manual_seed(0)
    real = torch.randint
    try:
        torch.randint = lambda *how, **more: drawn.append(1) or real(*how, **more)
        pairs.draw(2, random)
    finally:
        torch.randint = real
    assert len(drawn) < 60
