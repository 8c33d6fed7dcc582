"""The samples of a run, checked before it starts: what is missing is listed, and more than allowed stops it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from vpp_plugins.data import (
    CHOSEN,
    KEPT,
    LAYOUTS,
    Sample,
    StoredSamples,
    Tally,
    image_is_there,
    image_path,
    sample_line,
    stored_samples,
)
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.errors import VPPError
from vpp_plugins.images import load_image
from vpp_plugins.train.recipe import Recipe


class TrainingData(Dataset[int], ABC):
    """Samples by number, and their images. An item is its number; the collator makes batches of them."""

    samples: Sequence[Sample]
    """All samples in order; they may be read, or made, when they are asked for."""
    tally: Tally
    """What was found wrong."""

    @abstractmethod
    def image(self, index: int) -> Image.Image | None:
        """Return a sample's image, upright, or None for text alone; raises VPPError where it cannot be had."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of all samples in order: a run goes on only with the data that it began with."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def lost(self) -> int:
        """How many faults cost a turn or a sample."""
        return sum(count for issue, count in self.tally.counts.items() if issue not in KEPT | CHOSEN)


class ListedData(TrainingData):
    """Samples in memory, images on disk."""

    def __init__(self, samples: Iterable[Sample], root: str | Path, tally: Tally | None = None) -> None:
        """Keep the samples whose images are there, and count the others in `tally`.

        Raises VPPError where no sample is left.
        """
        self.root, self.tally = Path(root), tally or Tally()
        self.samples = [sample for sample in samples if image_is_there(self.root, sample, self.tally)]
        if not self.samples:
            raise no_samples(self.tally)

    def image(self, index: int) -> Image.Image | None:
        """Return a sample's image from the folder."""
        image = self.samples[index].image
        return load_image(image_path(self.root, image)) if image else None

    def fingerprint(self) -> str:
        """Return the SHA-256 of all samples in order; images' bytes are not read."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(sample_line(sample))
        return digest.hexdigest()


class StoredData(TrainingData):
    """Samples that stay on disk, read when a batch needs them."""

    def __init__(self, samples: StoredSamples) -> None:
        """Take samples that were found; raises VPPError where there is none."""
        self.samples: StoredSamples = samples
        self.tally = samples.found.tally
        if not len(samples):
            raise no_samples(self.tally)

    def image(self, index: int) -> Image.Image | None:
        """Return a sample's image from its shard, or from the folder."""
        source = self.samples.image(index)
        return None if source is None else load_image(source)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all samples in order, as it was when they were found."""
        return self.samples.found.digest


def no_samples(tally: Tally) -> VPPError:
    """Return the error that says why no sample is left."""
    found = "; ".join(f"{count} x {issue} ({examples})" for issue, count, examples in tally.rows())
    return VPPError(f"the data hold no sample to train on{f': {found}' if found else ''}.")


def load_data(recipe: Recipe) -> TrainingData:
    """Read the recipe's data; raises VPPError where more is faulty than `max_skipped` allows, and lists it."""
    if recipe.data_format == "drawn-scenes":
        from vpp_plugins.train.drawn_scenes import load_scenes

        return load_scenes(recipe)
    path = Path(recipe.data)
    root = Path(recipe.images) if recipe.images else path.parent if path.is_file() else path
    reading = Reading(split=recipe.split, family=recipe.data_family)
    data: TrainingData
    if recipe.data_format in LAYOUTS:
        limit, spare = recipe.max_samples, Path(recipe.output_dir)
        data = StoredData(
            stored_samples(path, recipe.data_format, root=root, reading=reading, limit=limit, spare=spare)
        )
    else:
        samples = read_samples(path, recipe.data_format, images=root, reading=reading)
        if recipe.max_samples is not None:
            samples = (sample for sample, _ in zip(samples, range(recipe.max_samples), strict=False))
        data = ListedData(samples, root, reading.tally)
    if data.lost > recipe.max_skipped:
        rows = [f"{count} x {issue} ({examples})" for issue, count, examples in data.tally.rows()]
        raise VPPError(
            f"{data.lost} faults in '{path}' are more than max_skipped = {recipe.max_skipped}: {'; '.join(rows)}. Mend "
            "the data (`vpp doctor` shows them), or raise max_skipped."
        )
    return data
