"""PyTorch and JAX on a GPU, each in the ways that its own documentation has for speed."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from bench.gpu_contenders import EPSILON, LEARNING_RATE, Contender, Task


class Torch(Contender):
    """PyTorch as its documentation has it, with the fused Adam."""

    name = "PyTorch eager"
    library = "torch"

    @classmethod
    def missing(cls, task: Task) -> str | None:
        if reason := super().missing(task):
            return reason
        import torch

        if task.device == "cuda" and not torch.cuda.is_available():
            return "this PyTorch finds no GPU"
        return None

    def prepare(self) -> None:
        import torch
        from torch import nn

        task = self.task
        torch.backends.cuda.matmul.allow_tf32 = task.precision == "tf32"
        layers: list[Any] = []
        for weight, bias in task.parameters():
            linear = nn.Linear(*weight.shape)
            linear.weight = nn.Parameter(torch.from_numpy(weight.T.copy()))
            linear.bias = nn.Parameter(torch.from_numpy(bias))
            layers += [linear, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1]).to(task.device)
        X, y = task.data()
        self.X, self.y = torch.from_numpy(X).to(task.device), torch.from_numpy(y).to(task.device)
        capturable = task.device == "cuda"
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, eps=EPSILON, fused=True,
            capturable=capturable,
        )  # fmt: skip
        rows: Any = torch.arange(len(X), device=task.device)
        self.batches = rows.split(task.batch)

    def objective(self, X: Any, y: Any) -> Any:
        """The mean log loss of a batch."""
        import torch
        from torch.nn.functional import cross_entropy

        rounds = self.task.precision == "bfloat16"
        with torch.autocast(self.task.device, torch.bfloat16, enabled=rounds):
            logits = self.model(X)
        return cross_entropy(logits.float(), y)

    def train(self, rows: Any) -> Any:
        """One step; its loss."""
        self.optimizer.zero_grad()
        loss = self.objective(self.X[rows], self.y[rows])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self) -> float:
        for step in range(self.task.steps):
            loss = self.train(self.batches[step % self.task.batches])
        return float(loss)


class TorchCompiled(Torch):
    """Forward and backward pass compiled, and replayed as CUDA graphs."""

    name = "torch.compile, reduce-overhead"

    def prepare(self) -> None:
        super().prepare()
        import torch

        self.compiled = torch.compile(super().objective, mode="reduce-overhead", dynamic=False)

    def objective(self, X: Any, y: Any) -> Any:
        return self.compiled(X, y)


class TorchGraph(Torch):
    """A whole step captured by hand with ``torch.cuda.graph``."""

    name = "PyTorch, torch.cuda.graph"

    @classmethod
    def missing(cls, task: Task) -> str | None:
        return super().missing(task) or (None if task.device == "cuda" else "no CUDA graphs here")

    def prepare(self) -> None:
        super().prepare()
        import torch

        self.rows = self.batches[0].clone()
        before = [p.detach().clone() for p in self.model.parameters()]
        cuda: Any = torch.cuda
        aside = cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # as its documentation asks
                super().train(self.rows)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.loss = super().train(self.rows)
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), before, strict=True):
                p.copy_(value)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def train(self, rows: Any) -> Any:
        self.rows.copy_(rows)
        self.graph.replay()
        return self.loss


class Jax(Contender):
    """All steps of a call as one jitted scan."""

    name = "JAX, jit and scan"
    library = "jax"

    @classmethod
    def missing(cls, task: Task) -> str | None:
        if reason := super().missing(task):
            return reason
        if find_spec("click") is None:  # of the module with its network and Adam
            return "click is not installed"
        import jax

        if task.device == "cuda" and jax.default_backend() != "gpu":
            return "this JAX finds no GPU"
        return None

    def prepare(self) -> None:
        import jax

        from bench import peers

        config: Any = jax.config
        # By "bfloat16" JAX means what is fastest, on a GPU TF32.
        rounds = {"ieee": "float32", "tf32": "TF32_TF32_F32", "bfloat16": "BF16_BF16_F32"}
        config.update("jax_default_matmul_precision", rounds[self.task.precision])
        X, y = self.task.data()
        self.X, self.y = jax.numpy.asarray(X), jax.numpy.asarray(y)
        parameters = [tuple(map(jax.numpy.asarray, pair)) for pair in self.task.parameters()]
        zeros = jax.tree.map(jax.numpy.zeros_like, parameters)
        self.state: Any = parameters, zeros, zeros, jax.numpy.zeros(())
        starts = np.arange(self.task.steps) % self.task.batches * self.task.batch
        self.order = jax.numpy.asarray(starts[:, None] + np.arange(self.task.batch))
        self.steps = jax.jit(partial(peers.steps, epsilon=EPSILON, rate=LEARNING_RATE))

    def run(self) -> float:
        self.state, losses = self.steps(self.state, self.X, self.y, self.order)
        return float(losses[-1])
