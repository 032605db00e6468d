"""Training the decoder as a language model, before it sees images."""

from captioner.data.dataset import Batch
from captioner.model.memory import Memory
from captioner.training.task import CrossEntropyTask


class LanguageTask(CrossEntropyTask):
    """Predicts each token of a caption from the tokens before: the decoder attends to the null patch alone."""

    def encode(self, batch: Batch) -> Memory:
        """The memory of blank images."""
        decoder, encoder = self.model.decoder, self.model.encoder
        blank = decoder.token_embedding.weight.new_zeros(len(batch.image_ids), encoder.patches.stop, encoder.width)
        return self.model.blind(decoder.project(blank))

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        if batch.weight:
            self.validation.add_loss(batch, self.validation_loss(batch, self.encode(batch)))
