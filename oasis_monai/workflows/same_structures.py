"""Give a data set the structures of a model: by their names, whatever values and order they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oasis_monai.data.formats.header import plain
from oasis_monai.data.overlap import classes_of, name_of_set, sets_of_values
from oasis_monai.data.settings import MOST_LABELS, DataSettings
from oasis_monai.utils.errors import ConfigError


def with_structures_of(model: DataSettings, data: DataSettings) -> tuple[DataSettings, list[str]]:
    """The settings of a data set with the structures of a model.

    Where structures share voxels, combinations of them that the model was not trained with become further labels, behind its own:
    a reference loses nothing, and is scored structure by structure.

    Args:
        model: the settings of its training data.
        data: complete settings; other structures that it names become background.

    Returns:
        The settings, and what the reader should know.

    Raises:
        ConfigError: the data set does not tell these structures apart.
    """
    if not model.structures and not data.structures:
        return with_labels_of(model.labels, data)
    if model.structures and not data.structures and _unnamed(data) and set(data.labels.values()) <= set(_values(model)):
        return replace(data, labels=model.labels, structures=model.structures), ["data: label values as the model has them"]
    there = {plain(name): name for name in data.structures}
    if not model.structures or not {plain(name) for name in model.structures} <= there.keys():
        own = ", ".join(model.structures or model.labels)
        found = ", ".join(data.structures or data.labels)
        remedy = "say how they lie there by data.structures, data.overlap or data.label"
        if not model.structures:
            remedy = "name the values themselves, data.labels={NAME: VALUE, ...}"
        kind = "structures that share voxels" if model.structures else "structures that share no voxel"
        raise ConfigError("data.structures", f"the model's {kind}, {own}", found, remedy)
    theirs = {name: data.structures[there[plain(name)]] for name in model.structures}
    others = [name for name in data.structures if plain(name) not in {plain(one) for one in model.structures}]
    said = [f"data: {', '.join(others)} count as background, as the model does not know them"] if others else []
    made = _one_by_one(model, data, theirs) if data.overlap else _nested(model, data, theirs)
    if new := [name for name in made.labels if name not in model.labels]:
        said.append(f"data: {', '.join(new)} share voxels as in no training label; they are scored structure by structure")
    return made, said


def _unnamed(data: DataSettings) -> bool:
    """Whether nobody names the labels of a data set."""
    return all(name == f"label_{value}" for name, value in data.labels.items())


def _values(data: DataSettings) -> set[int]:
    return {value for values in data.structures.values() for value in values}


def _nested(model: DataSettings, data: DataSettings, theirs: Mapping[str, tuple[int, ...]]) -> DataSettings:
    """Of label files with a value for each set of structures: the values are those of the files."""
    used = {value for values in data.structures.values() for value in values}
    background = (*data.background, *sorted(used - {value for values in theirs.values() for value in values}))
    labels = classes_of(theirs, tuple(data.labels.values()))
    structures, free = dict(theirs), max(used)
    for name, bits in _sets(model).items():
        if name not in labels:  # no voxel there, but perhaps in a result
            free += 1
            labels[name] = free
            structures = _with_value(structures, bits, free)
    return replace(replace(data, labels={}, structures={}), labels=labels, background=background, structures=structures)


def _one_by_one(model: DataSettings, data: DataSettings, theirs: Mapping[str, tuple[int, ...]]) -> DataSettings:
    """Of structures that lie one by one: the values are the model's, with further ones for what it does not know."""
    labels, structures = dict(model.labels), dict(model.structures)
    known, free = set(_sets(model).values()), max(_values(model))
    for bits in dict.fromkeys(sets_of_values(theirs).values()):
        if bits not in known:
            free += 1
            labels[name_of_set(bits, list(theirs))] = free
            structures = _with_value(structures, bits, free)
    if len(labels) > MOST_LABELS:
        remedy = "choose fewer structures by data.labels"
        raise ConfigError("data.structures", f"at most {MOST_LABELS} combinations, those of the model too", len(labels), remedy)
    return replace(replace(data, labels={}, structures={}), labels=labels, structures=structures)


def _sets(data: DataSettings) -> dict[str, int]:
    """Label -> the structures that it is part of, as bits."""
    sets = sets_of_values(data.structures)
    return {name: sets[value] for name, value in data.labels.items()}


def _with_value(structures: Mapping[str, tuple[int, ...]], bits: int, value: int) -> dict[str, tuple[int, ...]]:
    """Structures, those of a set with one value more."""
    return {
        name: (*values, value) if bits >> number & 1 else tuple(values)
        for number, (name, values) in enumerate(structures.items())
    }


def with_labels_of(labels: Mapping[str, int], data: DataSettings) -> tuple[DataSettings, list[str]]:
    """The settings of a data set with the structures of a model: by name where names are alike, else by value.

    Args:
        labels: structure -> value, of the model.
        data: complete settings; other structures that it names become background.

    Returns:
        The settings, and what the reader should know.

    Raises:
        ConfigError: some of the model's structures are named there, and the value of another one means something else.
    """
    there = {plain(name): name for name in data.labels}
    own = {name: data.labels[there[plain(name)]] for name in labels if plain(name) in there}
    if not own:
        own = {name: value for name, value in labels.items() if value in data.labels.values()}
        names = {value: name for name, value in data.labels.items()}
        told = ", ".join(f"{name} is {names[value]} there" for name, value in own.items())
        said = [f"data: structures by their values: {told}"] if told else []
        return replace(data, labels=labels), said
    absent = {name: value for name, value in labels.items() if name not in own}
    if taken := [name for name, value in absent.items() if value in data.labels.values()]:
        found = ", ".join(f"{name}: {value}" for name, value in data.labels.items())
        remedy = f"say which value is {taken[0]}, or rename the structures"
        raise ConfigError("data.labels", f"the model's structures {', '.join(labels)}", found, remedy)
    others = {name: value for name, value in data.labels.items() if value not in own.values()}
    said = [f"data: {', '.join(others)} count as background, as the model does not know them"] if others else []
    return replace(data, labels={**own, **absent}, background=(*data.background, *others.values())), said
