"""Models of Hugging Face transformers, plain and with the operator put in.

They have their usual sizes and random weights. Nothing is downloaded: backbones are those of
transformers itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.measure.rows import MODES
from benchmarks.subjects.base import WrongAnswerError

VARIANTS = ("stdeform", "plain")
_SMALL = {
    **dict.fromkeys(("encoder_layers", "decoder_layers", "decoder_num_layers"), 2),
    "depths": [1, 1, 1, 1],
    "num_queries": 10,
}
_HUGE = 1e30
_TOLERANCE = 1e-4  # of a difference's norm over the norm of what it should be


def _nothing(transformers: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A model family of transformers at one size.

    Attributes:
        title: In the results.
        model: The class in transformers.
        pixels: Height and width of its images.
        small_pixels: The same for a small model.
        options: Makes arguments of its config, by default none, from the module transformers.
        inputs: What it takes beside an image.
    """

    title: str
    model: str
    pixels: int = 640
    small_pixels: int = 128
    options: Callable[[Any], Mapping[str, Any]] = _nothing
    inputs: Callable[[], Mapping[str, Tensor]] = dict

    def make(self, seed: int, *, small: bool) -> nn.Module:
        """The model with random weights.

        Args:
            seed: Of the weights.
            small: Makes it one layer deep, and its queries few.
        """
        import transformers

        model_class = getattr(transformers, self.model)
        config = model_class.config_class(**self.options(transformers))
        if small:
            _shrink(config)
        torch.manual_seed(seed)
        model: nn.Module = model_class(config)
        _draw_weights(model)
        return model


@torch.no_grad()
def _draw_weights(model: nn.Module) -> None:
    """Draws all weights anew.

    By transformers some models get norms near zero, through which little arrives at the attention,
    and all queries sample at the centres of cells, where the gradient of an interpolation jumps.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif name.endswith(".weight"):  # of a norm
            parameter.uniform_(0.5, 1.5)


def _shrink(config: Any) -> None:
    """Makes a config, and those in it, that of a shallow model with few queries."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            _shrink(value)
        elif name in _SMALL:
            setattr(config, name, _SMALL[name])


@dataclass
class Prepared:
    """A model with inputs.

    Attributes:
        model: In training or evaluation mode as the last call left it.
        inputs: For its `forward`.
        seed: Of dropout.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    seed: int

    def call(self, mode: str) -> Callable[[], dict[str, Tensor]]:
        """What is timed, of `MODES`."""
        return self.infer if mode == MODES[0] else self.step

    def infer(self) -> dict[str, Tensor]:
        """The real numbers among the outputs, as in inference."""
        self.model.eval()
        with torch.no_grad():
            return dict(_real(self.model(**self.inputs)))

    def step(self) -> dict[str, Tensor]:
        """The same as in training, and gradients of their mean squares left in the parameters."""
        self.model.train()
        self.model.zero_grad()
        torch.manual_seed(self.seed)
        outputs = dict(_real(self.model(**self.inputs)))
        differentiable = (each for each in outputs.values() if each.requires_grad)
        torch.stack([_finite(each).square().mean() for each in differentiable]).sum().backward()
        return outputs

    def in_float64(self) -> Prepared:
        """A copy in this dtype."""
        inputs = {
            name: each.double() if each.is_floating_point() else each
            for name, each in self.inputs.items()
        }
        return Prepared(copy.deepcopy(self.model).double(), inputs, self.seed)

    def answers(self) -> dict[str, Tensor]:
        """Outputs and gradients of a step; of each module's own parameters together.

        Some are zero but for rounding, as the gradient of a key's bias is beside its weight's.
        """
        outputs = {name: each.detach() for name, each in self.step().items()}
        modules: dict[str, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                modules.setdefault(name.rpartition(".")[0], []).append(parameter.grad.flatten())
        gradients = {f"gradient of {name}": torch.cat(each) for name, each in modules.items()}
        return outputs | gradients


def prepare(name: str, seed: int, *, small: bool) -> dict[str, Prepared]:
    """A family's model twice, and one image of noise; checked.

    Args:
        name: Of `FAMILIES`.
        seed: Of weights, image and dropout.
        small: Makes both small.

    Returns:
        By `VARIANTS`.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        WrongAnswerError: They differ in a result or gradient.
    """
    from stdeform.integrations import transformers as integration

    family = FAMILIES[name]
    plain = family.make(seed, small=small)
    ours = copy.deepcopy(plain)
    integration.patch(ours)
    side = family.small_pixels if small else family.pixels
    inputs = {"pixel_values": torch.randn(1, 3, side, side), **family.inputs()}
    prepared = {
        variant: Prepared(model, inputs, seed)
        for variant, model in zip(VARIANTS, (ours, plain), strict=True)
    }
    _check(name, *prepared.values())
    return prepared


def _check(name: str, ours: Prepared, plain: Prepared) -> None:
    """Compares results of training and all gradients in float64, results of inference in float32.

    In float32 rounding decides from which cells a point near a cell's centre has its gradient.
    """
    actual, expected = (each.in_float64().answers() for each in (ours, plain))
    _compare(f"{name}, {MODES[1]}", actual, expected)
    with _Choices() as choices:
        expected = plain.infer()
    with _Choices(choices.made):
        actual = ours.infer()
    _compare(f"{name}, {MODES[0]}", actual, expected)


def _compare(where: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if only := sorted(actual.keys() ^ expected.keys()):
        raise WrongAnswerError(f"{where}: only one of the models has {only[0]}")
    for what, right in expected.items():
        off = _distance(actual[what], right)
        if not off <= _TOLERANCE:
            raise WrongAnswerError(
                f"{where}: {what} must be that of the plain model within {_TOLERANCE:g} of its "
                f"norm, is off by {off:.3g}"
            )


def _distance(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of `expected`; infinite if infinities differ, or NaN."""
    special = ~(actual.isfinite() & expected.isfinite())
    if not torch.equal(actual[special], expected[special]):
        return float("inf")
    norm = torch.linalg.vector_norm
    off = norm(_finite(actual) - _finite(expected), dtype=torch.float64)
    return float(off / norm(_finite(expected), dtype=torch.float64)) if off else 0.0


def _finite(tensor: Tensor) -> Tensor:
    """The same with zeros where it is (almost) infinite: logits of cells that are no candidates."""
    return tensor.masked_fill(tensor.abs() > _HUGE, 0)


def _real(outputs: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """All tensors of real numbers in the outputs of a model, named by where they are."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield name, outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from _real(value, f"{name}.{key}")
    elif isinstance(outputs, list | tuple):
        for index, value in enumerate(outputs):
            yield from _real(value, f"{name}.{index}")


class _Choices(TorchFunctionMode):
    """Makes the choices of `topk` that another run made.

    Two proposals with almost the same score change places by rounding, and all that follows with
    them.

    Args:
        others: Of the other run in their order; beyond them, each choice is the run's own.

    Attributes:
        made: What was chosen, in order.
    """

    def __init__(self, others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._others = iter(others)
        self.made: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch; in place of the results of `topk` puts those of `others`."""
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if func not in (torch.topk, Tensor.topk):
            return results
        indices = next(self._others, results.indices)
        self.made.append(indices)
        dim = kwargs.get("dim", args[2] if len(args) > 2 else -1)
        return torch.return_types.topk((args[0].gather(dim, indices), indices))


def _text(rows: int = 1) -> Tensor:
    """Tokens of phrases, [rows, 6]."""
    return torch.arange(5, 5 + 6 * rows).view(rows, 6)


def _sentence() -> dict[str, Tensor]:
    """Two phrases, with the separators of BERT's tokens."""
    return {"input_ids": torch.tensor([[101, 1037, 4937, 1012, 1037, 2158, 1012, 102]])}


def _tasks() -> dict[str, Tensor]:
    """Three classes and a question."""
    return {
        "classes_input_ids": _text(3),
        "classes_attention_mask": torch.ones_like(_text(3)),
        "tasks_input_ids": _text(),
        "tasks_attention_mask": torch.ones_like(_text()),
        "classes_structure": torch.tensor([3]),
    }


def _resnet50(transformers: Any) -> dict[str, Any]:
    stages = ["stage2", "stage3", "stage4"]
    backbone = transformers.ResNetConfig(out_features=stages)
    return {"use_timm_backbone": False, "backbone_config": backbone}


def _swin_tiny(*stages: int, **options: Any) -> Callable[[Any], dict[str, Any]]:
    features = [f"stage{stage}" for stage in stages]
    return lambda transformers: {
        "backbone_config": transformers.SwinConfig(out_features=features),
        **options,
    }


def _ragged_points(transformers: Any) -> dict[str, Any]:
    return {"decoder_n_points": [3, 6, 3]}


# By their modules in transformers. Options are those of the published models where the defaults
# differ, or where a default backbone is from another package.
FAMILIES = {
    "deformable_detr": Family(
        "Deformable DETR", "DeformableDetrForObjectDetection", 480, options=_resnet50
    ),
    "mask2former": Family(
        *("Mask2Former", "Mask2FormerForUniversalSegmentation", 384),
        options=_swin_tiny(1, 2, 3, 4),
    ),
    "oneformer": Family(
        *("OneFormer", "OneFormerForUniversalSegmentation", 384),
        inputs=lambda: {"task_inputs": torch.arange(77)[None]},
    ),
    "grounding_dino": Family(
        "Grounding DINO", "GroundingDinoForObjectDetection", 480, inputs=_sentence
    ),
    "mm_grounding_dino": Family(
        "MM Grounding DINO", "MMGroundingDinoForObjectDetection", 480, inputs=_sentence
    ),
    "rf_detr": Family("RF-DETR", "RfDetrForObjectDetection", 560, 112),
    "lw_detr": Family(
        *("LW-DETR", "LwDetrForObjectDetection"),
        options=lambda transformers: {"projector_scale_factors": [1.0]},
    ),
    "omdet_turbo": Family(
        *("OmDet-Turbo", "OmDetTurboForObjectDetection"),
        options=_swin_tiny(
            *(2, 3, 4), use_timm_backbone=False, apply_layernorm_after_vision_backbone=False
        ),
        inputs=_tasks,
    ),
    "rt_detr": Family("RT-DETR", "RTDetrForObjectDetection"),
    "rt_detr_v2": Family("RT-DETRv2", "RTDetrV2ForObjectDetection"),
    "d_fine": Family("D-FINE", "DFineForObjectDetection", options=_ragged_points),
    "deimv2": Family("DEIMv2", "Deimv2ForObjectDetection", options=_ragged_points),
    "pp_doclayout_v2": Family(
        *("PP-DocLayoutV2", "PPDocLayoutV2ForObjectDetection"),
        options=lambda transformers: {
            "class_thresholds": [0.5] * 25,
            "class_order": list(range(25)),
        },
    ),
    "pp_doclayout_v3": Family("PP-DocLayoutV3", "PPDocLayoutV3ForObjectDetection"),
    "pp_doclayout_v4": Family("PP-DocLayoutV4", "PPDocLayoutV4ForObjectDetection"),
}
