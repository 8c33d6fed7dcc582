"""The samples of a run, checked before it starts: what is missing is listed, and more than allowed stops it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.formats.neutral import neutral_row
from vpp_plugins.data.picture_sizes import PictureError, picture_path
from vpp_plugins.data.sample import Sample
from vpp_plugins.data.tally import CHOSEN, KEPT, Issue, Tally
from vpp_plugins.errors import VPPError
from vpp_plugins.images import load_image
from vpp_plugins.train.recipe import Recipe


class TrainingData(Dataset[int]):
    """Samples in memory, pictures on disk. An item is a number; the collator makes batches of them."""

    def __init__(self, samples: Iterable[Sample], root: str | Path, tally: Tally | None = None) -> None:
        """Keep the samples whose pictures are there, and count the others in `tally`.

        Raises VPPError where no sample is left.
        """
        self.root, self.tally = Path(root), tally or Tally()
        self.samples = [sample for sample in samples if not sample.image or self._is_there(sample)]
        if not self.samples:
            found = "; ".join(f"{count} x {issue} ({examples})" for issue, count, examples in self.tally.rows())
            raise VPPError(f"the data hold no sample to train on{f': {found}' if found else ''}.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def lost(self) -> int:
        """How many faults cost a turn or a sample."""
        return sum(count for issue, count in self.tally.counts.items() if issue not in KEPT | CHOSEN)

    def picture(self, sample: Sample) -> Image.Image | None:
        """Return the sample's picture, upright, or None for text alone; raises VPPError where it is damaged."""
        return load_image(picture_path(self.root, sample.image)) if sample.image else None

    def fingerprint(self) -> str:
        """Return the SHA-256 of all samples in order; pictures' bytes are not read."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps(neutral_row(sample), ensure_ascii=False, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def _is_there(self, sample: Sample) -> bool:
        try:
            path = picture_path(self.root, sample.image)
        except PictureError as error:
            self.tally.add(Issue.UNSAFE_PATH, sample.id, str(error))
            return False
        if not path.is_file():
            self.tally.add(Issue.NO_PICTURE, sample.id, sample.image)
            return False
        return True


def load_data(recipe: Recipe) -> TrainingData:
    """Read the recipe's data; raises VPPError where more is faulty than `max_skipped` allows, and lists it."""
    path = Path(recipe.data)
    root = Path(recipe.images) if recipe.images else path.parent if path.is_file() else path
    reading = Reading(split=recipe.split, family=recipe.data_family)
    samples = read_samples(path, recipe.data_format, images=root, reading=reading)
    if recipe.max_samples is not None:
        samples = (sample for sample, _ in zip(samples, range(recipe.max_samples), strict=False))
    data = TrainingData(samples, root, reading.tally)
    if data.lost > recipe.max_skipped:
        rows = [f"{count} x {issue} ({examples})" for issue, count, examples in data.tally.rows()]
        raise VPPError(
            f"{data.lost} faults in '{path}' are more than max_skipped = {recipe.max_skipped}: {'; '.join(rows)}. Mend "
            "the data (`vpp doctor` shows them), or raise max_skipped."
        )
    return data
