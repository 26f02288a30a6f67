"""The usual registration programs, called as their documentation shows, with two threads each.

Settings are the shipped ones unless stated otherwise. All receive images of the same intensity scale and voxel sizes in mm.
Labels are warped with linear interpolation and cut at 1/2, as those of OASIS are.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.data import World
from benchmarks.speed.methods import Aligned, Maker, Method, majority, one_by_one

THREADS = int(os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "2"))


class _Ants:
    """ANTs through antspyx."""

    def __init__(self, spacing_mm: Sequence[float], kind: str) -> None:
        import ants

        self.ants, self.spacing_mm, self.kind = ants, tuple(spacing_mm), kind

    def image(self, array: np.ndarray) -> Any:
        return self.ants.from_numpy(array.astype(np.float32), spacing=self.spacing_mm)

    def register(self, fixed: np.ndarray, moving: np.ndarray) -> tuple[Any, dict[str, Any]]:
        # ANTs starts from the centres of mass, which need values of 0 and above
        onto, atlas = self.image(fixed - fixed.min()), self.image(moving - moving.min())
        return onto, self.ants.registration(onto, atlas, type_of_transform=self.kind)

    def move(self, onto: Any, image: np.ndarray, made: dict[str, Any]) -> np.ndarray:
        moved = self.ants.apply_transforms(onto, self.image(image), made["fwdtransforms"], interpolator="linear")
        return np.asarray(moved.numpy())

    def align(self, fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> Aligned:
        onto, made = self.register(fixed, moving)

        def field() -> np.ndarray:  # of the deformable part: the affine part before it cannot fold
            mm = self.ants.image_read(made["fwdtransforms"][0]).numpy()
            forget(made)
            return np.asarray(mm / np.array(self.spacing_mm))

        return Aligned(self.move(onto, label, made), field)


def forget(made: dict[str, Any]) -> None:
    """Delete the transforms that ANTs left in the temporary folder."""
    for path in {*made["fwdtransforms"], *made["invtransforms"]}:
        Path(path).unlink(missing_ok=True)


def ants_pair(kind: str, words: str) -> Maker:
    def make(world: World) -> Method:
        return Method(words, align=one_by_one(_Ants(world.spacing_mm, kind).align))

    return make


def ants_voting(kind: str, words: str) -> Maker:
    def make(world: World) -> Method:
        ants = _Ants(world.spacing_mm, kind)

        def align(fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> Aligned:
            onto, made = ants.register(fixed, moving)
            moved = ants.move(onto, label, made)
            forget(made)
            return Aligned(moved, lambda: None)

        return Method(words, segment=lambda number: majority(world, number, align))

    return make


def ants_joint_label_fusion(world: World) -> Method:
    """SyN, then joint label fusion where any warped label lies, with a margin: the rest is background."""
    ants = _Ants(world.spacing_mm, "SyN")

    def segment(number: int) -> np.ndarray:
        images, labels = [], []
        for image, label in zip(world.atlases[number], world.atlas_labels[number], strict=True):
            onto, made = ants.register(world.targets[number], image)
            images.append(made["warpedmovout"])
            labels.append(ants.image((ants.move(onto, label, made) >= 0.5).astype(np.float32)))
            forget(made)
        where = ants.ants.iMath(ants.image(np.max([x.numpy() for x in labels], axis=0)), "MD", 3)
        with tempfile.TemporaryDirectory() as folder:  # for the probability maps that it writes
            how = {"label_list": labels, "beta": 4, "rad": 2, "output_prefix": f"{folder}/fused"}
            fused = ants.ants.joint_label_fusion(onto, where, images, **how)
            # its "segmentation" has no background: there all of ``where`` is structure
            return np.asarray(fused["probabilityimages"][0].numpy() >= 0.5, np.uint8)

    return Method("SyN; patch and search radius 2 and 3, beta 4 (shipped), round the moved labels", segment=segment)


def elastix(world: World) -> Method:
    # with two threads itk-elastix 0.25.4 crashed in its first registration
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        chosen = parameters.GetDefaultParameterMap(kind, 3, 10.0)
        chosen["FinalBSplineInterpolationOrder"] = ["1"]
        parameters.AddParameterMap(chosen)

    def image(array: np.ndarray) -> Any:
        made = itk.image_from_array(np.ascontiguousarray(array.T.astype(np.float32)))
        made.SetSpacing([float(mm) for mm in world.spacing_mm])
        return made

    def align(fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> Aligned:
        source = image(moving)
        _, found = itk.elastix_registration_method(
            image(fixed), source, parameter_object=parameters, log_to_console=False, number_of_threads=1
        )
        moved = itk.transformix_filter(image(label), found, log_to_console=False)

        def field() -> np.ndarray:
            mm = itk.array_from_image(itk.transformix_deformation_field(source, found))
            return np.moveaxis(mm, range(world.dims), range(world.dims - 1, -1, -1)) / np.array(world.spacing_mm)

        return Aligned(itk.array_from_image(moved).T, field)

    return Method("affine then B-spline, 3 resolutions, 10 mm grid, else shipped maps; one thread", align=one_by_one(align))


def demons(world: World) -> Method:
    """An affine start, then fast symmetric forces demons over three resolutions, as SimpleITK's documentation shows them."""
    import SimpleITK as sitk  # noqa: N813

    def image(array: np.ndarray) -> Any:
        made = sitk.GetImageFromArray(array.T.astype(np.float32))
        made.SetSpacing([float(mm) for mm in world.spacing_mm])
        return made

    def affine(fixed: Any, moving: Any) -> Any:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMeanSquares()
        method.SetOptimizerAsGradientDescentLineSearch(1.0, 50)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2])
        method.SetSmoothingSigmasPerLevel([2.0, 1.0])
        method.SetInitialTransform(sitk.AffineTransform(world.dims))
        return method.Execute(fixed, moving)

    def align(fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> Aligned:
        onto, source = image(fixed), image(moving)
        start = affine(onto, source)
        source = sitk.Resample(source, onto, start, sitk.sitkLinear)
        field = None
        for shrink, iterations in ((4, 100), (2, 75), (1, 50)):
            small = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, shrink / 2), [shrink] * world.dims) for i in (onto, source)]
            step = sitk.FastSymmetricForcesDemonsRegistrationFilter()
            step.SetNumberOfIterations(iterations)
            step.SetStandardDeviations(1.5)
            field = step.Execute(*small) if field is None else step.Execute(*small, sitk.Resample(field, small[0]))
        vectors = sitk.GetArrayFromImage(field)
        both = sitk.CompositeTransform([start, sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))])
        moved = sitk.GetArrayFromImage(sitk.Resample(image(label), onto, both, sitk.sitkLinear)).T

        def voxels() -> np.ndarray:
            return np.moveaxis(vectors, range(world.dims), range(world.dims - 1, -1, -1)) / np.array(world.spacing_mm)

        return Aligned(moved, voxels)

    return Method("affine, then 100 + 75 + 50 iterations at 1/4, 1/2 and full grid, sigma 1.5", align=one_by_one(align))


def platipy(world: World) -> Method:
    """The multi-atlas pipeline of platipy: similarity transform to crop, affine, demons, vote. It reads atlases from files."""
    import SimpleITK as sitk  # noqa: N813
    from platipy.imaging.projects.multiatlas.run import MUTLIATLAS_SETTINGS_DEFAULTS, run_segmentation

    def image(array: np.ndarray) -> Any:
        made = sitk.GetImageFromArray(array.T)
        made.SetSpacing([float(mm) for mm in world.spacing_mm])
        return made

    def segment(number: int) -> np.ndarray:
        ids = [f"{k:02d}" for k in range(len(world.atlases[number]))]
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            for i, picture, label in zip(ids, world.atlases[number], world.atlas_labels[number], strict=True):
                sitk.WriteImage(image(picture.astype(np.float32)), f"{folder}/{i}_image.nii.gz")
                sitk.WriteImage(image(label), f"{folder}/{i}_prostate.nii.gz")
            settings = {k: dict(v) for k, v in MUTLIATLAS_SETTINGS_DEFAULTS.items()}
            settings["atlas_settings"] |= {"atlas_id_list": ids, "atlas_structure_list": ["prostate"], "atlas_path": folder}
            settings["atlas_settings"] |= {"atlas_image_format": "{0}_image.nii.gz", "atlas_label_format": "{0}_{1}.nii.gz"}
            settings["linear_registration_settings"] |= {"shrink_factors": [4, 2, 1]}
            settings["deformable_registration_settings"] |= {"ncores": THREADS}
            found = run_segmentation(image(world.targets[number].astype(np.float32)), settings)
        result = found[0] if isinstance(found, tuple) else found
        return np.asarray(sitk.GetArrayFromImage(result["prostate"]).T > 0, np.uint8)

    return Method("shipped, but linear shrink factors 4, 2, 1 (16 leaves two slices)", segment=segment)


MAKERS: dict[str, Maker] = {
    "ANTs SyN": ants_pair("SyN", "affine and SyN as shipped (mutual information, 40 + 20 + 0 iterations)"),
    "ANTs SyNQuick": ants_pair("antsRegistrationSyNQuick[s]", "as shipped"),
    "elastix": elastix,
    "Demons": demons,
    "ANTs SyN + voting": ants_voting("SyN", "as the pairs; half or more of the votes"),
    "ANTs SyN + joint label fusion": ants_joint_label_fusion,
    "platipy": platipy,
}
