"""The training loop: two stages, log, checkpoints, validation now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from defvis import log
from defvis.checkpoint import load_checkpoint, previous, save_checkpoint
from defvis.config import Config
from defvis.data.clips import Batch, ClipDataset, FrameCache, collate
from defvis.data.sampling import EndlessSampler
from defvis.data.ytvis import YouTubeVIS
from defvis.evaluate import VideoAP
from defvis.model import DefVIS
from defvis.report import validate, write_report
from defvis.stages import STAGES, Stage


class Run:
    """One training run and everything it writes to its folder.

    Files: config.json, log.jsonl, checkpoint.pt, and at the end those of `report.write_report`.

    Args:
        config: All numbers.
        train: Videos to learn from.
        val: Videos to validate on, with the same categories.
        out: Folder to write to.
        resume: Goes on from the checkpoint in `out` if there is one.
        progress: Shows progress bars.

    Attributes:
        num_parameters: Weights of the model.

    Raises:
        ValueError: If the two datasets or the config disagree, or the checkpoint is of another
            config.
        FileExistsError: If `out` holds a run and `resume` is False.
    """

    def __init__(
        self,
        config: Config,
        train: YouTubeVIS,
        val: YouTubeVIS,
        out: Path,
        resume: bool = False,
        progress: bool = True,
    ) -> None:
        if train.category_ids != val.category_ids:
            raise ValueError("train and val must have the same category ids")
        if train.num_classes != config.model.num_classes:
            raise ValueError(
                f"num_classes must be the dataset's {train.num_classes}, "
                f"got {config.model.num_classes}"
            )
        self._config, self._train, self._val = config, train, val
        self._out, self._progress = out, progress
        self._cache = FrameCache(config.data.cache_megabytes)
        self._val_cache = FrameCache(config.data.cache_megabytes)
        self._checkpoint = out / "checkpoint.pt"
        self._log = out / "log.jsonl"
        self._seconds = 0.0  # of training, without validation and checkpoints
        torch.manual_seed(config.seed)
        self._model = DefVIS(config.model)
        self.num_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._saved: dict[str, Any] | None = None
        started = self._checkpoint.exists() or previous(self._checkpoint).exists()
        if resume and started:
            self._saved = load_checkpoint(self._checkpoint)
            if Config.from_dict(self._saved["config"]) != config:
                raise ValueError(f"{self._checkpoint} was written with another config")
        elif started:
            raise FileExistsError(f"{out} holds a run already; resume it or write elsewhere")
        out.mkdir(parents=True, exist_ok=True)
        if self._saved is None:
            self._log.unlink(missing_ok=True)  # Of a run that ended before its first checkpoint.
        (out / "config.json").write_text(str(config) + "\n")

    def run(self) -> VideoAP:
        """Trains what is left to train, validates on all of val, writes the report."""
        model = self._model
        for kind in STAGES:
            if self._saved is not None and self._saved["stage"] != kind.name:
                continue  # This stage lies before the checkpoint.
            if self._saved is not None:
                self._model.load_state_dict(self._saved["model"])
            stage = kind(self._model, self._config)
            first = 0
            if self._saved is not None:
                stage.load_state_dict(self._saved["state"])
                torch.set_rng_state(self._saved["random"])
                first, self._seconds = self._saved["step"], self._saved["seconds"]
                self._saved = None
            self._run_stage(stage, first)
            model = stage.model
        validation = validate(model, self._val, self._config.data, self._val_cache, self._progress)
        row = {"kind": "val", "stage": "joint", "step": self._config.steps}
        self._append(row, {"videos": len(self._val.videos), **validation.ap.figures})
        write_report(self._out, self._val, validation, log.read(self._log))
        return validation.ap

    def _run_stage(self, stage: Stage, first: int) -> None:
        config = self._config
        self._model.train()
        sums: dict[str, float] = {}
        counted = 0
        batches = self._batches(stage, first)
        with tqdm(
            total=stage.steps,
            initial=first,
            desc=stage.name,
            unit="step",
            disable=not self._progress,
        ) as bar:
            for step in range(first + 1, stage.steps + 1):
                begin = time.perf_counter()
                losses = stage.step(next(batches))
                self._seconds += time.perf_counter() - begin
                bar.update()
                counted += 1
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(loss)
                last = step == stage.steps
                row = {"stage": stage.name, "step": step}
                if step % config.log_every == 0 or last:
                    means = {name: total / counted for name, total in sums.items()}
                    self._append({"kind": "train", **row}, {"lr": stage.learning_rate, **means})
                    bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
                    sums, counted = {}, 0
                if step % config.checkpoint_every == 0 or last:
                    self._save(stage, step)
                due = config.eval_every and step % config.eval_every == 0
                if stage.validates and due and not last:
                    self._validate_subset(stage, row)

    def _batches(self, stage: Stage, first: int) -> Iterator[Batch]:
        """Batches of the steps after `first`."""
        dataset = ClipDataset(
            self._train, stage.num_frames, self._config.data, self._config.seed, self._cache
        )
        size = stage.batch_size
        sampler = EndlessSampler(
            len(dataset), self._config.seed, first * size, (stage.steps - first) * size
        )
        loader = DataLoader(
            dataset,
            size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self._config.data.workers,
            # A loader draws from its generator when it starts; from torch's own it would shift
            # the randomness of a resumed run.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _validate_subset(self, stage: Stage, row: dict[str, Any]) -> None:
        subset = self._val.first(self._config.eval_videos)
        validation = validate(
            stage.model, subset, self._config.data, self._val_cache, self._progress
        )
        count = len(subset.videos)
        self._append({"kind": "val", **row}, {"videos": count, **validation.ap.figures})
        tqdm.write(f"step {row['step']}, {count} videos: {validation.ap}")
        self._model.train()

    def _save(self, stage: Stage, step: int) -> None:
        save_checkpoint(
            self._checkpoint,
            {
                "config": self._config.to_dict(),
                "categories": {
                    "ids": list(self._train.category_ids),
                    "names": list(self._train.category_names),
                },
                "stage": stage.name,
                "step": step,
                "seconds": self._seconds,
                "model": self._model.state_dict(),
                "state": stage.state_dict(),
                "random": torch.get_rng_state(),
            },
        )

    def _append(self, row: dict[str, Any], values: dict[str, Any]) -> None:
        log.append(self._log, {**row, "minutes": self._seconds / 60, **values})
