"""CUDA without a GPU: fake tensors that claim to be on it, and a record of what would make the host wait for it."""

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)
"""Operations with a result that depends on values; indexing by a mask calls the last."""


class FakeCuda(FakeTensorMode):
    """Tensors have a device, a shape and a dtype, but no values; operations that mix devices raise an error.

    A number read from the GPU is `answer`, and all elements of a mask are true. `waits` holds the operations that
    make the host wait: reads of numbers, indices of a mask, and copies between CPU and GPU that block; `pinned` is the
    number of tensors that were pinned.
    """

    def __init__(self, answer=1):
        super().__init__(allow_non_fake_inputs=False)
        self.answer = answer
        self.waits, self.pinned = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            if args[0].device.type == "cuda":
                self.waits.append(str(func))
            if func is not aten.nonzero.default:
                return torch.tensor(self.answer, dtype=args[0].dtype).item()
            with self:
                return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if func is aten._pin_memory.default:
            self.pinned += 1
            return args[0].clone()
        if func in (aten._to_copy.default, aten.copy_.default) and blocks(func, args, kwargs or {}):
            self.waits.append(str(func))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is aten.lift_fresh.default:
            result.constant = None  # known numbers would be copied to a real GPU
        return result


def blocks(func, args, kwargs):
    """Whether a copy goes from one device to the other and the host waits for it."""
    if func is aten.copy_.default:
        devices, later = {args[0].device.type, args[1].device.type}, args[2:] == (True,)
    else:
        devices, later = {args[0].device.type, (kwargs.get("device") or args[0].device).type}, False
    return len(devices) > 1 and not (later or kwargs.get("non_blocking"))


@contextmanager
def autocast(dtype):
    """`torch.autocast("cuda")`, which switches itself off where there is no CUDA; None is full precision."""
    if dtype is None:
        yield
        return
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def to_fake_cuda(module, dtype=torch.float32):
    """Replace weights and buffers by fake ones on CUDA, floating ones in this type; inside the mode."""

    def fake(tensor):
        return torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="cuda")

    for part in module.modules():
        for name, each in part._parameters.items():
            if each is not None:
                part._parameters[name] = torch.nn.Parameter(fake(each), requires_grad=each.requires_grad)
        for name, each in part._buffers.items():
            if each is not None:
                part._buffers[name] = fake(each)
    return module


def on_cuda(*tensors):
    """Whether all are fake tensors on CUDA."""
    return all(isinstance(each, FakeTensor) and each.device.type == "cuda" for each in tensors)
