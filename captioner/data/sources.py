"""The training and validation images of a run, from one data set or several."""

import logging
from dataclasses import replace
from pathlib import Path

from captioner.config import DataConfig, DataSetConfig
from captioner.data.annotations import HARMLESS, CaptionedImage, CaptionSet, Problem, clean_caption, records
from captioner.data.checks import unread_texts, unusable_photos
from captioner.data.formats import find_files, load_captions
from captioner.data.shards import find_shards, first_samples, read_index
from captioner.data.text_files import check_readable, parse_json, read_text
from captioner.errors import AnnotationError, ConfigError

log = logging.getLogger(__name__)

SOURCE = "source"
"""The value of `data.control` that makes the names of `data.sources` styles."""
MAX_STYLES = 100
SHARD_SAMPLE = 100_000
"""Number of samples of shards whose words make the vocabulary."""


def check_paths(config: DataConfig) -> None:
    """Raise InputError for folders and files that are missing, without reading them; warn of unread texts."""
    if config.shards is not None:
        find_shards(Path(config.shards))
    if config.text is not None:
        check_readable(Path(config.text))
    for source in config.sources or (config,):
        _, _, annotations = find_files(source.root, source.annotations, source.images, source.format)
        if source.annotations is None and annotations and (problem := unread_texts(annotations[0])):
            log.warning("%s", problem.message)


def load_splits(config: DataConfig) -> tuple[CaptionSet, CaptionSet]:
    """The training and the validation images of all sources.

    With several sources, ids become `source/id`, and the splits have the same names in all. Of `shards`, the training
    images are the first ones, for the vocabulary and for calibration. Raises ConfigError where keys contradict each
    other, InputError and AnnotationError as `load_captions` does.
    """
    if config.shards is not None:
        return _shard_sample(Path(config.shards)), _load(config, None).split(config.val_split)
    if not config.sources:
        return _splits(config, config.control)
    default = DataSetConfig()
    for key, value in vars(default).items():
        if getattr(config, key) != value:
            raise ConfigError(f"data.{key}: with data.sources, each source has its own {key}; move it there")
    names = [source.name for source in config.sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.sources: two sources are called {name}; give each its own name")
    by_source = config.control == SOURCE
    loaded = [_splits(source, config.control) for source in config.sources]
    merged = []
    for part, split in enumerate((config.train_split, config.val_split)):
        images = tuple(
            replace(
                image,
                image_id=f"{name}/{image.image_id}",
                split=split,
                dataset=name,
                styles=(name,) * len(image.captions) if by_source else image.styles,
            )
            for name, splits in zip(names, loaded, strict=True)
            for image in splits[part].images
        )
        merged.append(CaptionSet(images, loaded[0][part].root))
    return merged[0], merged[1]


def usable_splits(train: CaptionSet, val: CaptionSet, *, skip_bad: bool) -> tuple[CaptionSet, CaptionSet]:
    """The training and the validation images, after a look at the header of every photo.

    Raises AnnotationError, which lists the unusable photos, or with `skip_bad` if a split has no others.
    """
    bad = list(unusable_photos(train.images + val.images))
    if not bad:
        return train, val
    problems = "\n".join(f"  {error}" for _, error in bad)
    if not skip_bad:
        raise AnnotationError(
            f"{len(bad)} of {len(train) + len(val)} photos cannot be used; leave them out with --skip-bad, or mend the "
            f"folder with `captioner data fix`:\n{problems}"
        )
    log.warning("%d photos are left out (--skip-bad):\n%s", len(bad), problems)
    names = {(image.dataset, image.image_id, image.split) for image, _ in bad}
    kept = []
    for captions in (train, val):
        images = [each for each in captions.images if (each.dataset, each.image_id, each.split) not in names]
        if not images:
            raise AnnotationError(f"{captions.root}: no photo of the split {captions.images[0].split} can be used")
        kept.append(replace(captions, images=tuple(images)))
    return kept[0], kept[1]


def load_texts(config: DataConfig) -> tuple[CaptionedImage, ...]:
    """The captions of `data.text`, each as an image without a picture. Raises InputError or AnnotationError."""
    if config.text is None:
        return ()
    problems: list[Problem] = []
    text = read_text(Path(config.text), config.text, problems)
    found: list[object] = list(text.splitlines())
    if text.lstrip().startswith("{"):
        data = parse_json(text, config.text, problems)
        found = [record.get("caption") for _, record in records(data, "annotations", config.text, problems)]
    captions = [caption for each in found if isinstance(each, str) and (caption := clean_caption(each))]
    stopping = [f"{each.where} {each.message}" for each in problems if each.code not in HARMLESS]
    if stopping or not captions:
        raise AnnotationError(f"data.text: {'; '.join(stopping) or f'{config.text} holds no captions'}")
    return tuple(
        CaptionedImage(f"text/{number}", b"", (caption,), config.train_split) for number, caption in enumerate(captions)
    )


def styles_of(config: DataConfig, train: CaptionSet) -> list[str]:
    """The styles of the training captions, sorted, if `data.control` names a column. Raises ConfigError for none."""
    if config.control is None:
        return []
    styles = sorted({style for image in train.images for style in image.styles if style is not None})
    if not 1 <= len(styles) <= MAX_STYLES:
        found = f"{len(styles):,} different values" if styles else "no value for any training caption"
        raise ConfigError(f"data.control: {config.control} has {found}; name a column of 1 to {MAX_STYLES} styles")
    return styles


def _splits(config: DataSetConfig, style_column: str | None) -> tuple[CaptionSet, CaptionSet]:
    captions = _load(config, style_column)
    return captions.split(config.train_split), captions.split(config.val_split)


def _load(config: DataSetConfig, style_column: str | None) -> CaptionSet:
    return load_captions(config.root, config.annotations, config.images, config.format, style_column)


def _shard_sample(folder: Path) -> CaptionSet:
    shards = find_shards(folder)
    indexes = [read_index(path) for path in shards]
    counts = sum(len(index.entries) for index in indexes), len(shards), sum(index.incomplete for index in indexes)
    log.info("%d samples in %d shards; %d without a photo and captions are left out", *counts)
    images = tuple(first_samples(shards, SHARD_SAMPLE))
    if not images:
        raise AnnotationError(f"{folder}: no sample can be used; it takes a photo, and captions in .json or .txt")
    return CaptionSet(images, folder)
