"""Assemble VPP-SFT, the 0.6 M grounding dialogues that VPP-LLaVA is trained on (arXiv 2503.15426).

Four public sources go into one array of dialogues, boxes as two decimals of the padded square:
LLaVA-665K's grounding subset, ChatterBox's CB-GRD and CB-REF, and Genixer's synthetic expressions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import codec
from vpp_plugins.data.convert import Conversion, advancing, check_target
from vpp_plugins.data.dialogue import Phrases
from vpp_plugins.data.formats import Reading, Writing, Written, data_format
from vpp_plugins.data.formats.conversations import conversation
from vpp_plugins.data.json_stream import progress_bar
from vpp_plugins.data.record import ImageSizes, samples
from vpp_plugins.errors import VPPError, few

PUBLISHED = {"llava-665k": 134_864, "cb-grd": 264_516, "cb-ref": 87_091, "genixer": 130_000}
"""Dialogues per source; together 616,471."""

IMAGE_PREFIXES = {"llava-665k": "", "cb-grd": "vg/", "cb-ref": "vg/", "genixer": "LLaVA-Pretrain/images/"}
"""Where the published file's images lie below their common folder."""


@dataclass(frozen=True)
class VPPSFT:
    """What was assembled: by source, what was written and what was found."""

    sources: dict[str, Conversion] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """All dialogues written."""
        return sum(part.samples for part in self.sources.values())

    def differing(self) -> dict[str, tuple[int, int]]:
        """Return (written, published) for each source whose count is not the published one."""
        counts = {name: (part.samples, PUBLISHED[name]) for name, part in self.sources.items()}
        return {name: pair for name, pair in counts.items() if pair[0] != pair[1]}


def build_vpp_sft(
    target: str | Path,
    sources: dict[str, str | Path],
    *,
    images: str | Path | None = None,
    sizes: str | Path | None = None,
    genixer_limit: int | None = None,
    strip_prefix: str = "",
    like_reference: bool = False,
    strict_counts: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> VPPSFT:
    """Write VPP-SFT from its sources, named as in `PUBLISHED`; any of them may be left out.

    `images` is the folder with `coco/`, `vg/` and `LLaVA-Pretrain/` in it, or `sizes` a file of the images' sizes.
    `genixer_limit` takes the first so many of Genixer's: it publishes more than VPP-SFT uses, and which were chosen is
    not published. `strip_prefix` is cut from Genixer's paths. `like_reference` brings back two faults of the
    reference's converters: expressions end at the first period, and `<image>` stands in every grounding question of
    CB-GRD. Boxes beyond the edge are cut to the image either way. With `strict_counts`, a count that is not the
    published one raises VPPError, and nothing is written.
    """
    target = Path(target)
    paths = {name: Path(path) for name, path in sources.items()}
    unknown = sorted(set(paths) - set(PUBLISHED))
    if unknown or not paths:
        raise VPPError(f"the sources are some of {', '.join(PUBLISHED)}, and are {', '.join(unknown) or 'none'}.")
    check_target(target, paths.values(), overwrite=overwrite)
    known = ImageSizes(Path(images) if images else None, Path(sizes) if sizes else None)
    built, phrases = VPPSFT(), Phrases(codec("llava"))

    def rows() -> Iterator[dict[str, Any]]:
        for name in (name for name in PUBLISHED if name in paths):
            reading = Reading(image_prefix=IMAGE_PREFIXES[name], strip_prefix=strip_prefix if name == "genixer" else "")
            written = Written()
            with progress_bar(name, shown=progress) as advance:
                limit = genixer_limit if name == "genixer" else None
                fault = "-like-reference" if like_reference and name == "cb-grd" else ""
                records = data_format(f"{name}{fault}").read(paths[name], reading)
                for sample in advancing(islice(samples(records, known, reading.tally), limit), advance):
                    written.add(sample.turns)
                    marks = like_reference and name in ("cb-grd", "cb-ref")
                    yield conversation(sample, phrases, marks_like_reference=marks)
            built.sources[name] = Conversion(written.samples, written.turns, written.boxes, reading.tally)
        if not built.samples:
            names = few([str(path) for path in paths.values()])
            raise VPPError(f"nothing could be read from {names}, so nothing was written.")
        if strict_counts and built.differing():
            counts = "; ".join(
                f"{name} {ours:,}, published {theirs:,}" for name, (ours, theirs) in built.differing().items()
            )
            raise VPPError(f"the counts are not the published ones: {counts}. Nothing was written.")

    try:
        Writing(target).write_array(rows())
    finally:
        known.save()
    return built
