"""Lightning's data module: training and validation loaders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from captioner.config import DataConfig, EncoderConfig
from captioner.data.annotations import CaptionSet
from captioner.data.dataset import Batch, CaptionDataset, ignore_signals
from captioner.data.features import FeatureStore
from captioner.data.mosaics import Mosaics
from captioner.data.sampler import GroupSampler
from captioner.data.shards import find_shards, read_index
from captioner.data.streaming import ShardDataset, ShardSampler
from captioner.errors import ConfigError
from captioner.tokenizer import Tokenizer


def split_mosaics(config: DataConfig, train: CaptionSet, val: CaptionSet, seed: int) -> dict[str, Mosaics]:
    """The mosaics of the training and validation splits; none if `data.mosaics` is 0.

    Raises ConfigError if the training split is too small for mosaics.
    """
    if not config.mosaics:
        return {}
    mosaics = {config.train_split: Mosaics.of(len(train), seed), config.val_split: Mosaics.of(len(val), seed)}
    if mosaics[config.train_split] is None:
        raise ConfigError("data.mosaics: a mosaic takes four photos, and there are fewer to train on; set it to 0")
    return {split: each for split, each in mosaics.items() if each is not None}


class CaptionDataModule(pl.LightningDataModule):
    """Training and validation loaders of a captioned data set, from photos or from a feature store."""

    def __init__(
        self,
        config: DataConfig,
        train: CaptionSet,
        val: CaptionSet,
        tokenizer: Tokenizer,
        encoder: EncoderConfig,
        *,
        max_length: int,
        seed: int,
        store: FeatureStore | None = None,
        mosaics: Mapping[str, Mosaics] | None = None,
        pictures: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        taught = ("style",) * (config.control is not None) + ("length",) * config.length_control
        self.train_set, self.val_set = (
            CaptionDataset(
                captions.images,
                tokenizer,
                encoder,
                max_length=max_length,
                store=store,
                augmented=augmented,
                mosaics=(mosaics or {}).get(split),
                pictures=pictures,
                control_kinds=kinds,
            )
            for split, captions, augmented, kinds in (
                (config.train_split, train, config.augment if store is None else config.feature_views > 1, taught),
                (config.val_split, val, False, ()),
            )
        )
        self.stream: ShardDataset | None = None
        if config.shards is not None:
            self.stream = ShardDataset(
                find_shards(Path(config.shards)),
                tokenizer,
                encoder,
                max_length=max_length,
                captions_per_image=config.captions_per_image,
                augmented=config.augment,
            )

    @property
    def train_batches(self) -> int:
        """Training batches of an epoch in one process."""
        return self._train_sampler().trained

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.stream or self.train_set, self._train_sampler())

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Loaders of the images and, if there are mosaics, of one mosaic of each image."""
        kinds = (False, True) if self.val_set.mosaics else (False,)
        return [
            self._loader(self.val_set, self._sampler(self.val_set, shuffle=False, mosaics=mosaics)) for mosaics in kinds
        ]

    def _loader(self, dataset: Dataset[Batch], sampler: Sampler[Any]) -> DataLoader[Batch]:
        workers = self.config.workers
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler yields plans of whole batches
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=ignore_signals,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _train_sampler(self) -> GroupSampler | ShardSampler:
        if self.stream is None:
            return self._sampler(self.train_set, shuffle=True)
        return ShardSampler(
            [len(read_index(path).entries) for path in self.stream.shards],
            batch_images=self.config.batch_images,
            seed=self.seed,
            progress=self._progress,
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self.trainer.world_size if self.trainer else 1,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
            limit=self.trainer.limit_train_batches if self.trainer else None,
        )

    def _sampler(self, dataset: CaptionDataset, shuffle: bool, mosaics: bool = False) -> GroupSampler:
        return GroupSampler(
            dataset.lengths,
            batch_images=self.config.batch_images,
            captions_per_image=self.config.captions_per_image,
            shuffle=shuffle,
            seed=self.seed,
            progress=self._progress,
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self.trainer.world_size if self.trainer else 1,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer and shuffle else 1,
            limit=self.trainer.limit_train_batches if self.trainer and shuffle else None,
            mosaics=dataset.mosaics,
            mosaic_share=self.config.mosaics if shuffle else float(mosaics),
            weights=self._weights(dataset) if shuffle else None,
        )

    def _weights(self, dataset: CaptionDataset) -> list[float] | None:
        """Each image's weight, None if all are 1."""
        weight = {source.name: source.weight for source in self.config.sources}
        weights = [weight.get(image.dataset, 1.0) for image in dataset.images]
        return None if all(each == 1 for each in weights) else weights

    def _progress(self) -> tuple[int, int]:
        """The epoch that starts or is resumed, and how many of its batches are done."""
        if self.trainer is None:
            return 0, 0
        loop: Any = self.trainer.fit_loop
        # A run resumed after an epoch asks for its first batch before Lightning has counted that epoch, though it has
        # counted the batches.
        batches, whole = loop.epoch_loop.batch_progress, self.train_batches
        epoch: int = max(loop.epoch_progress.current.processed, batches.total.processed // whole)
        return epoch, batches.current.processed % whole if loop.restarting else 0
