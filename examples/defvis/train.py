"""The training loop: two stages, log, checkpoints, validation, pictures."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from defvis import log
from defvis.checkpoint import load_checkpoint, previous, save_checkpoint
from defvis.config import Config
from defvis.data import rle
from defvis.data.clips import Batch, ClipDataset, FrameCache, collate
from defvis.data.sampling import EndlessSampler
from defvis.data.ytvis import Video, YouTubeVIS
from defvis.evaluate import VideoAP, evaluate
from defvis.model import DefVIS
from defvis.predict import SlotTrack, predict_videos, to_results
from defvis.stages import STAGES, Stage
from defvis.visualise import Overlay, draw_overlays, save_animation, save_strip

# Videos drawn at the end, and the score from which a slot is drawn.
_PICTURES, _DRAW_SCORE = 6, 0.3


class Run:
    """One training run and everything it writes to its folder.

    Files: config.json, log.jsonl, checkpoint.pt, curves.png, metrics.json, results.json and
    overlays/.

    Args:
        config: All numbers.
        train: Videos to learn from.
        val: Videos to validate on, with the same categories.
        out: Folder to write to.
        resume: Goes on from the checkpoint in `out` if there is one.
        progress: Shows progress bars.

    Raises:
        ValueError: If the two datasets or the config disagree, or the checkpoint is of another
            config.
        FileExistsError: If `out` holds a run and `resume` is False.
    """

    def __init__(
        self, config: Config, train: YouTubeVIS, val: YouTubeVIS, out: Path,
        resume: bool = False, progress: bool = True,
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
        self._seconds = 0.0
        torch.manual_seed(config.seed)
        self._model = DefVIS(config.model)
        self._saved: dict[str, Any] | None = None
        started = self._checkpoint.exists() or previous(self._checkpoint).exists()
        if resume and started:
            self._saved = load_checkpoint(self._checkpoint)
            if Config.from_dict(self._saved["config"]) != config:
                raise ValueError(f"{self._checkpoint} was written with another config")
        elif started:
            raise FileExistsError(f"{out} holds a run already; resume it or choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(str(config) + "\n")

    @property
    def num_parameters(self) -> int:
        """Weights of the model."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def run(self) -> VideoAP:
        """Trains what is left to train, validates on all of val, writes the pictures."""
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
        return self._finish(model)

    def _run_stage(self, stage: Stage, first: int) -> None:
        config = self._config
        self._model.train()
        running: dict[str, float] = {}
        batches = self._batches(stage, first)
        with tqdm(
            total=stage.steps, initial=first, desc=stage.name, unit="step",
            disable=not self._progress,
        ) as bar:
            for step in range(first + 1, stage.steps + 1):
                begin = time.perf_counter()
                losses = stage.step(next(batches))
                self._seconds += time.perf_counter() - begin
                for name, loss in losses.items():
                    running[name] = running.get(name, 0.0) + float(loss)
                bar.update()
                since = (step - 1) % config.log_every + 1
                if step % config.log_every == 0 or step == stage.steps:
                    means = {name: total / since for name, total in running.items()}
                    running = {}
                    self._write(stage, "train", step, {"lr": stage.learning_rate, **means})
                    bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
                last = step == stage.steps
                if step % config.checkpoint_every == 0 or last:
                    self._save(stage, step)
                if stage.name == "joint" and config.eval_every:
                    if step % config.eval_every == 0 and not last:
                        ap, _ = self._validate(stage.model, self._val.videos[: config.eval_videos])
                        self._write(stage, "val", step, ap.figures)
                        tqdm.write(f"step {step}, {config.eval_videos} videos: {ap}")

    def _batches(self, stage: Stage, first: int) -> Iterator[Batch]:
        """Batches of the steps after `first`; the time they take counts as training time."""
        dataset = ClipDataset(
            self._train, stage.num_frames, self._config.data, self._config.seed, self._cache
        )
        sampler = EndlessSampler(
            len(dataset), self._config.seed, first * stage.batch_size,
            (stage.steps - first) * stage.batch_size,
        )
        loader = DataLoader(
            dataset, stage.batch_size, sampler=sampler, collate_fn=collate,
            num_workers=self._config.data.workers,
            # A loader draws from its generator when it starts; from torch's own it would shift
            # the randomness of a resumed run.
            generator=torch.Generator(),
        )
        iterator = iter(loader)
        while True:
            begin = time.perf_counter()
            batch = next(iterator, None)
            self._seconds += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    def _validate(
        self, model: DefVIS, videos: tuple[Video, ...]
    ) -> tuple[VideoAP, list[list[SlotTrack]]]:
        model.eval()
        subset = YouTubeVIS(videos, self._val.category_ids, self._val.category_names)
        tracks = list(
            predict_videos(model, videos, self._config.data, self._val_cache,
                           progress=self._progress)
        )
        results = list(
            itertools.chain.from_iterable(
                to_results(slots, video, subset)
                for slots, video in zip(tracks, videos, strict=True)
            )
        )
        (self._out / "results.json").write_text(json.dumps(results))
        self._model.train()
        return evaluate(subset, results), tracks

    def _finish(self, model: DefVIS) -> VideoAP:
        ap, tracks = self._validate(model, self._val.videos)
        row = {"kind": "val", "stage": "joint", "step": self._config.steps,
               "minutes": self._seconds / 60, **ap.figures}
        log.append(self._log, row)
        names = self._val.category_names
        metrics = {
            **ap.figures,
            "AP per class": dict(zip(names, ap.per_class, strict=True)),
            "training minutes": self._seconds / 60,
            "videos": len(self._val.videos),
        }
        (self._out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        log.draw_curves(log.read(self._log), self._out / "curves.png")
        for video, slots in list(zip(self._val.videos, tracks, strict=True))[:_PICTURES]:
            self._draw(video, slots)
        return ap

    def _draw(self, video: Video, slots: list[SlotTrack]) -> None:
        """Truth and prediction of a video, as a strip and an animation."""
        folder = self._out / "overlays"
        folder.mkdir(exist_ok=True)
        names = self._val.category_names
        pixels = np.stack([video.frame(index) for index in range(video.length)])
        nothing = np.zeros(pixels.shape[1:3], dtype=bool)
        truth = [
            Overlay(number, names[track.label], np.stack(
                [nothing if mask is None else rle.decode(mask) for mask in track.masks]
            ))
            for number, track in enumerate(video.tracks)
        ]
        predicted = [
            Overlay(slot.slot, f"{names[slot.label]} {slot.scores.max():.2f}", slot.masks)
            for slot in slots
            if slot.scores.max() >= _DRAW_SCORE
        ]
        scale = max(1, 192 // video.width)
        images = draw_overlays(pixels, predicted, scale)
        rows = [
            ("frames", draw_overlays(pixels, [], scale)),
            ("truth", draw_overlays(pixels, truth, scale)),
            ("prediction (#slot: class score)", images),
        ]
        save_strip(rows, folder / f"video{video.id:05d}.png")
        save_animation(images, folder / f"video{video.id:05d}.webp")

    def _save(self, stage: Stage, step: int) -> None:
        save_checkpoint(
            self._checkpoint,
            {
                "config": self._config.to_dict(),
                "stage": stage.name,
                "step": step,
                "seconds": self._seconds,
                "model": self._model.state_dict(),
                "state": stage.state_dict(),
                "random": torch.get_rng_state(),
            },
        )

    def _write(self, stage: Stage, kind: str, step: int, values: dict[str, float]) -> None:
        row = {"kind": kind, "stage": stage.name, "step": step, "minutes": self._seconds / 60}
        log.append(self._log, {**row, **values})
