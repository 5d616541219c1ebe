"""The training loop: two stages, log, checkpoints, periodic validation."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from defvis.config import Config
from defvis.data import categories
from defvis.data.clips import Batch, ClipDataset, FrameCache, collate
from defvis.data.dataset import YouTubeVIS
from defvis.data.resize_crop import with_seen_sides
from defvis.data.sampling import EndlessSampler
from defvis.evaluation.ap import VideoAP
from defvis.evaluation.whole_file import whole_file
from defvis.models.model import DefVIS
from defvis.pretrained.checkpoint_file import load_checkpoint, previous
from defvis.pretrained.weights import LoadReport, load_weights, warn_of_random_frozen_parts
from defvis.programs import prepare_folder
from defvis.progress import Progress
from defvis.training.checkpoint import (
    check_finite,
    random_state,
    save_checkpoint,
    set_random_state,
)
from defvis.training.distributed import World
from defvis.training.log import Log, RunningMeans
from defvis.training.pace import Pace, seconds_per_step, what_is_left
from defvis.training.preflight import extremes, leaves_some_unused, try_model
from defvis.training.profiling import Profile, profile
from defvis.training.report import REPORT_FILES, Validation, validate, write_report
from defvis.training.resume import check_resumed, describe_videos
from defvis.training.sharding import load_whole, whole
from defvis.training.stages import (
    BackboneStage,
    JointStage,
    Stage,
    planned_stages,
)

# Steps of a stage after which the program says how long the run takes; videos to measure on.
_SAID_AFTER, _MEASURED_VIDEOS = 20, 2


class Trainer:
    """One training run and everything it writes to its folder.

    Files: config.json, log.jsonl, tensorboard/ where TensorBoard is installed, checkpoint.pt, and
    at the end those of `report.write_report`.

    Args:
        config: All numbers.
        train: Videos to learn from.
        val: Videos to validate on, with the same categories.
        out: Folder to write to; with several processes one that all can read.
        resume: Goes on from the checkpoint in `out` if there is one.
        progress: Shows progress bars.
        world: The processes that train together.

    Attributes:
        num_parameters: Weights of the model.
        pace: What is left of the run, and how long it takes as far as that is known.
        weights_report: What was loaded from `config.weights`, None if that is empty.

    Raises:
        ValueError: If a dataset is empty, the two or the config disagree, the model cannot take
            frames of the data's sizes, nothing in `config.weights` fits it, or the checkpoint is of
            another run (see `check_resumed`).
        CheckpointError: If `config.weights` or the checkpoint cannot be read.
        FileExistsError: If `out` holds a run and `resume` is False.
        OSError: If `out` cannot be written to, or has no room for the checkpoints.
    """

    def __init__(
        self,
        config: Config,
        train: YouTubeVIS,
        val: YouTubeVIS,
        out: Path,
        resume: bool = False,
        progress: bool = True,
        world: World | None = None,
    ) -> None:
        config.check()
        for name, data in {"train": train, "val": val}.items():
            if not data.videos:
                raise ValueError(f"{name} must have at least one video")
        other = categories.difference(
            train.category_ids, train.category_names, val.category_ids, val.category_names
        )
        if other:
            raise ValueError(f"train and val must have the same categories: {other}")
        if train.num_classes != config.model.num_classes:
            raise ValueError(
                f"num_classes must be the dataset's {train.num_classes}, "
                f"got {config.model.num_classes}"
            )
        self._config = replace(config, data=with_seen_sides(config.data, train.videos))
        self._train, self._val, self._out = train, val, out
        self._world = world or World()
        self._progress = progress and self._world.is_main
        # Every worker of a loader has its own cache.
        share = config.data.cache_megabytes // max(1, config.data.workers)
        self._cache, self._val_cache = FrameCache(share), FrameCache(config.data.cache_megabytes)
        self._checkpoint = out / "checkpoint.pt"
        self._seconds = 0.0  # of training, without validation and checkpoints
        self.weights_report: LoadReport | None = None
        self._leaves_some_unused = False
        self._videos = describe_videos(train)
        self._saved = self._find_saved(resume)
        torch.manual_seed(config.seed)
        self._model = self._build_model()
        self.num_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._world.gather(None)  # All have looked before one writes.
        if self._world.is_main:
            self._prepare_folder()
        if self._world.rank:
            # The same weights in all processes, but different dropout.
            torch.manual_seed(config.seed + self._world.rank)
        self._log = Log(out, self._saved is not None) if self._world.is_main else None
        self.pace = what_is_left(
            config, self._saved, len(train.videos), len(val.videos), self._world.size
        )

    def train(self) -> VideoAP:
        """Trains what is left to train, validates on all of val, writes the report."""
        model, steps = self._model, 0
        for kind in planned_stages(self._config):
            if self._saved is not None and self._saved["stage"] != kind.name:
                continue  # This stage ended before the checkpoint.
            if self._saved is not None:
                load_whole(self._model, self._saved["model"])
            stage = self._stage(kind)
            first = 0
            if self._saved is not None:
                stage.load_state_dict(self._saved["state"])
                set_random_state(self._saved["random"][self._world.rank])
                first, self._seconds = self._saved["step"], self._saved["seconds"]
                self._saved = None
            self._run_stage(stage, first)
            model, steps = stage.model, stage.steps
        row = {"kind": "val", "stage": "joint", "step": steps}
        validation = self._validate(model, self._val, row)
        if self._log is not None:
            write_report(self._out, self._val, validation, self._log.read())
        return validation.ap

    def measure_pace(self) -> Pace:
        """Takes a few steps of each stage that is left, and undoes them.

        Not with several processes: they would have to agree on the number of steps.
        """
        if self._world.size > 1:
            return self.pace
        weights = {name: value.clone() for name, value in self._model.state_dict().items()}
        random = random_state(self._world.device)
        try:
            self._model.train()
            for kind in planned_stages(self._config):
                stage = self._stage(kind)
                if self.pace.steps[stage.name]:
                    self.pace.seconds[stage.name] = seconds_per_step(
                        stage,
                        partial(self._first_batch, stage),
                        self._world.device,
                        self._config.data.workers,
                    )
            begin = time.perf_counter()
            some = self._val.first(_MEASURED_VIDEOS)
            validate(self._model, some, self._config.data, self._val_cache, progress=False,
                     precision=self._config.precision)  # fmt: skip
            taken = time.perf_counter() - begin
            self.pace.seconds_per_video = taken / len(some.videos)
        except FloatingPointError:
            pass  # The run will say it.
        finally:
            self._model.load_state_dict(weights)
            self._model.zero_grad(set_to_none=True)
            set_random_state(random)
        return self.pace

    def profile(self, steps: int) -> Profile:
        """Measures steps of the joint stage, without writing anything."""
        self._model.train()
        stage = self._stage(JointStage)
        return profile(
            stage,
            self._model,
            self._batches(stage, 0, self._config.data.workers),
            steps,
            self._world.device,
        )

    def _stage(self, kind: type[BackboneStage] | type[JointStage]) -> BackboneStage | JointStage:
        videos = len(self._train.videos)
        return kind(self._model, self._config, videos, self._world, self._leaves_some_unused)

    def _build_model(self) -> DefVIS:
        config = self._config
        model = DefVIS(config.model)
        if self._saved is None:  # The checkpoint has all weights.
            if config.weights:
                own = self._train.category_ids, self._train.category_names
                self.weights_report = load_weights(model, Path(config.weights), own)
            warn_of_random_frozen_parts(config.model.backbone, self.weights_report)
        sizes = extremes(self._train.videos, self._val.videos, config.data)
        try_model(model, sizes, config)
        if self._world.size > 1:
            self._leaves_some_unused = leaves_some_unused(model, sizes[0])
        if self._world.size > 1 and self._world.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return self._world.place(model)

    def _find_saved(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from."""
        started = self._checkpoint.exists() or previous(self._checkpoint).exists()
        saved = None
        if resume and started:
            saved = load_checkpoint(self._checkpoint, set_aside=self._world.is_main)
            check_resumed(self._checkpoint, saved, self._config, self._train, self._world.size)
        elif started:
            raise FileExistsError(
                f"{self._out} holds a run already; go on with it by --resume, or "
                "write elsewhere with --out"
            )
        return saved

    def _prepare_folder(self) -> None:
        """Makes sure that the run can be written, and begins with its config."""
        prepare_folder(
            self._out, (*REPORT_FILES, "config.json", "log.jsonl"), ("overlays", "tensorboard")
        )
        # Weights, their average, and AdamW's two averages of them, in fp32. Two checkpoints are
        # kept while a third is written.
        size = 16 * self.num_parameters
        kept = sum(path.exists() for path in (self._checkpoint, previous(self._checkpoint)))
        free = shutil.disk_usage(self._out).free
        if free < (3 - kept) * size:
            raise OSError(
                f"{self._out} has room for {free >> 20} MiB, but {3 - kept} checkpoints need "
                f"{(3 - kept) * size >> 20} MiB"
            )
        with whole_file(self._out / "config.json") as partial:
            partial.write_text(str(self._config) + "\n")

    def _run_stage(self, stage: Stage, first: int) -> None:
        config = self._config
        self._model.train()
        means, spent = RunningMeans(), 0.0
        batches = self._batches(stage, first, config.data.workers)
        with Progress(stage.name, "step", stage.steps, first, not self._progress) as progress:
            for step in range(first + 1, stage.steps + 1):
                begin = time.perf_counter()
                batch = next(batches).to(self._world.device)
                loaded = time.perf_counter()
                with self._explains_divergence(stage, step):
                    losses = stage.step(batch)
                end = time.perf_counter()
                self._seconds += end - begin
                means.add(losses, loaded - begin, end - loaded)
                self.pace.steps[stage.name] -= 1
                done = step - first
                if done > 1:  # The first one allocates memory.
                    spent += end - begin
                    self.pace.seconds[stage.name] = spent / (done - 1)
                progress.update()
                if done == _SAID_AFTER and self._world.is_main:
                    seconds = self.pace.seconds[stage.name]
                    progress.write(f"{stage.name}: {seconds:.2f} s a step; to go: {self.pace}")
                last = step == stage.steps
                row = {"stage": stage.name, "step": step}
                if step % config.log_every == 0 or last:
                    figures = means.figures(stage, self._world)
                    left = sum(self.pace.minutes().values())
                    self._append({"kind": "train", **row}, {**figures, "minutes left": left})
                    shown = {name: f"{figures[name]:.3f}" for name in losses}
                    rate = figures[f"{stage.unit} per second"]
                    progress.show({**shown, f"{stage.unit}/s": f"{rate:.1f}"})
                    means = RunningMeans()
                if step % config.checkpoint_every == 0 or last:
                    with self._explains_divergence(stage, step):
                        self._save(stage, step)
                due = config.eval_every and step % config.eval_every == 0
                if stage.validates and due and not last:
                    subset = self._val.first(config.eval_videos)
                    ap = self._validate(stage.model, subset, {"kind": "val", **row}).ap
                    if self._world.is_main:
                        progress.write(f"step {step}, {len(subset.videos)} videos: {ap}")
                    self._model.train()

    @contextlib.contextmanager
    def _explains_divergence(self, stage: Stage, step: int) -> Iterator[None]:
        """Says after numbers that are not finite what can be done."""
        try:
            yield
        except FloatingPointError as error:
            group = "backbone_stage" if stage.name == "backbone" else "optim"
            weights = (
                f"; the weights of an earlier step are in {self._checkpoint}, to start from with "
                "--weights and another --out"
                if self._checkpoint.exists()
                else ""
            )
            raise FloatingPointError(
                f"training diverged in step {step} of the {stage.name} stage: {error}. Start again "
                f"with a lower {group}.learning_rate{weights}"
            ) from error

    def _first_batch(self, stage: Stage) -> Batch:
        return next(self._batches(stage, 0, workers=0))

    def _batches(self, stage: Stage, first: int, workers: int) -> Iterator[Batch]:
        """This process's batches of the steps after `first`."""
        dataset = ClipDataset(
            self._train, stage.num_frames, self._config.data, self._config.seed, self._cache
        )
        world = self._world
        clips = stage.batch_size * world.size
        sampler = EndlessSampler(
            len(dataset),
            self._config.seed,
            first * clips,
            (stage.steps - first) * clips,
            world.rank,
            world.size,
        )
        loader = DataLoader(
            dataset,
            stage.batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=world.device.type == "cuda",
            # A loader draws from its generator when it starts; from torch's own it would shift
            # the randomness of a resumed run.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _validate(self, model: DefVIS, data: YouTubeVIS, row: dict[str, Any]) -> Validation:
        begin = time.perf_counter()
        validation = validate(
            model,
            data,
            self._config.data,
            self._val_cache,
            self._progress,
            self._config.precision,
            self._world,
        )
        self.pace.videos -= len(data.videos)
        self.pace.seconds_per_video = (time.perf_counter() - begin) / len(data.videos)
        self._append(row, {"videos": len(data.videos), **validation.ap.figures})
        return validation

    def _save(self, stage: Stage, step: int) -> None:
        random = self._world.gather(random_state(self._world.device))
        states = {"model": self._model.state_dict(), "state": stage.state_dict()}
        states = whole(states, keep=self._world.is_main)
        if not self._world.is_main:
            return
        check_finite(states)
        save_checkpoint(
            self._checkpoint,
            {
                "config": self._config.to_dict(),
                "categories": {
                    "ids": list(self._train.category_ids),
                    "names": list(self._train.category_names),
                },
                "videos": self._videos,
                "stage": stage.name,
                "step": step,
                "seconds": self._seconds,
                **states,
                "random": random,
            },
        )

    def _append(self, row: dict[str, Any], values: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.append({**row, "minutes": self._seconds / 60, **values})
