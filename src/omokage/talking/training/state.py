"""What is kept of a training run, so that a killed one goes on exactly: no pickle, every process its own file.

A folder holds `latest.json`, written last, and the files of the step that it names. Weights that do not learn are not
kept: they are those of the folder that training began with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omokage.errors import InputError
from omokage.files import parse_json, result_folder, saving
from omokage.talking.training.config import OptimizerConfig
from omokage.talking.training.sharding import local
from omokage.workers import Workers

LATEST = "latest.json"
VERSION = 1


@dataclass
class Run:
    """A network that learns, its optimiser and its average, and how far it is."""

    learning: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    averages: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, network: nn.Module, config: OptimizerConfig) -> Run:
        learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
        on_card = next(iter(learning.values())).device.type == "cuda"
        optimizer = torch.optim.AdamW(
            learning.values(),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=on_card or None,  # the other kinds hold further copies of all weights
        )
        averages = {name: value.detach().clone() for name, value in learning.items()} if config.ema else {}
        return cls(learning, optimizer, averages)

    def share(self, config: OptimizerConfig) -> float:
        """How much of the training will be over after the coming step, 0 to 1."""
        spent = self.seconds / (60 * config.minutes) if config.minutes else 0.0
        return max((self.step + 1) / config.steps, spent)

    def update(self, rate: float, config: OptimizerConfig) -> None:
        """One step of the optimiser with the gradients as they are, and of the average; young ones forget faster."""
        nn.utils.clip_grad_norm_(self.learning.values(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, mean in self.averages.items():
                mean.lerp_(self.learning[name], 1 - decay)

    def finish(self) -> None:
        """Let the averages, where there are any, be the weights."""
        with torch.no_grad():
            for name, mean in self.averages.items():
                self.learning[name].copy_(mean)

    def save(self, folder: Path, key: str, workers: Workers) -> None:
        """Write everything that `load` needs; the state before stays until all processes have written.

        `key`: see `load`. Raises OutputError.
        """
        with result_folder(folder):
            path = folder / _file(self.step, workers)
            with saving(path, SafetensorError) as part:
                save_file(
                    {name: value.detach().cpu().contiguous() for name, value in self._state().items()}, part
                )
            workers.wait()
            if workers.is_first:
                described = {
                    "version": VERSION, "run": key, "world": workers.world, "step": self.step,
                    "seconds": self.seconds, "losses": self.losses,
                }  # fmt: skip
                with saving(folder / LATEST) as part:
                    part.write_text(json.dumps(described), encoding="utf-8")
                for old in folder.glob("step-*.safetensors"):
                    if not old.name.startswith(f"step-{self.step:08d}."):
                        old.unlink()

    def load(self, folder: Path, key: str, workers: Workers) -> bool:
        """Go back to where a stopped run was; False where there is none.

        Raises InputError for the state of another run (`key`), of another number of processes, or a damaged one.
        """
        path = folder / LATEST
        if not path.is_file():
            return False
        try:
            described: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
            if (described["version"], described["run"]) != (VERSION, key):
                raise InputError(
                    f"{folder} holds the state of a training with other data, weights or settings; delete it, or "
                    "choose another output folder"
                )
            if described["world"] != workers.world:
                raise InputError(
                    f"{folder} holds the state of a training of {described['world']} processes, and now there are "
                    f"{workers.world}; start as many, or delete the folder to begin anew"
                )
            state = load_file(folder / _file(int(described["step"]), workers))
            self._restore(state)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{folder} holds a damaged state of a training; delete it to begin anew"
            ) from error
        self.step, self.seconds = int(described["step"]), float(described["seconds"])
        self.losses = [float(loss) for loss in described["losses"]]
        return True

    def _state(self) -> dict[str, Tensor]:
        state = {f"value.{name}": local(value) for name, value in self.learning.items()}
        state |= {f"average.{name}": local(value) for name, value in self.averages.items()}
        for name, value in self.learning.items():
            for kind, kept in self.optimizer.state.get(value, {}).items():
                state[f"{kind}.{name}"] = local(kept)
        return state

    def _restore(self, state: dict[str, Tensor]) -> None:
        kinds: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            kinds.setdefault(kind, {})[name] = value
        with torch.no_grad():
            for name, parameter in self.learning.items():
                local(parameter).copy_(kinds["value"][name])
                if name in self.averages:
                    local(self.averages[name]).copy_(kinds["average"][name])
                if name in kinds.get("step", {}):
                    kept = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
                    for kind, value in kept.items():
                        local(value).copy_(kinds[kind][name])
                    count = kinds["step"][name]
                    on_card = parameter.device.type == "cuda"
                    self.optimizer.state[parameter] = {
                        "step": count.to(parameter.device) if on_card else count,
                        **kept,
                    }


def _file(step: int, workers: Workers) -> str:
    return f"step-{step:08d}.rank-{workers.rank:04d}-of-{workers.world:04d}.safetensors"
