"""Callbacks that tests name in `training.trainer.callbacks`."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Callback

from captioner.errors import AnnotationError


class Gradients(Callback):
    """Saves the gradients of the first step."""

    def __init__(self, path):
        self.path = path

    def on_before_optimizer_step(self, trainer, task, optimizer):
        if trainer.is_global_zero and trainer.global_step == 0:
            found = {name: each.grad for name, each in task.named_parameters() if each.grad is not None}
            torch.save(found, self.path)


class Batches(Callback):
    """Writes the epoch, the learning rate and the images of each batch that is trained on, a file for each process."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_start(self, trainer, task, batch, index):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        images = batch.image_ids if batch.weight else []
        with Path(f"{self.path}.{trainer.world_size}.{trainer.global_rank}").open("a") as file:
            print(json.dumps([trainer.current_epoch, trainer.global_step, rate, images]), file=file)


class StopAfter(Callback):
    """Ends a run after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, task):
        trainer.should_stop = trainer.current_epoch == self.epoch


class Misbehave(Callback):
    """Lets the second process be killed, hang or fail at its third batch."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_start(self, trainer, task, batch, index):
        if trainer.global_rank != 1 or index != 2:
            return
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "hangs":
            time.sleep(600)
        else:
            raise AnnotationError("photo.jpg: is broken")
