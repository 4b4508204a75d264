"""A recipe: one YAML file that says what is trained, on what, and how.

    model:        where the weights come from: a checkpoint, or a config to start from scratch
    compression:  CompressionConfig
    data:         sources of traces or task families, segmentation, row length, share of full
    chain-of-thought
    trainer:      transformers TrainingArguments, by their own names
    loss, lora, distributed, evaluate:  see sections.py; all optional
    save:         dtype and shard size of the final checkpoint

Unknown keys are errors with a suggestion; the resolved recipe is written beside every result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lightthinker.checks import check_types
from lightthinker.compression import CompressionConfig
from lightthinker.errors import ConfigError, suggestion
from lightthinker.segment import SegmentConfig
from lightthinker.tasks import DIFFICULTIES, FAMILIES
from lightthinker.train.overrides import apply_override, read_yaml
from lightthinker.train.sections import (
    DTYPES,
    DistributedConfig,
    EvaluateConfig,
    LoraConfig,
    LossConfig,
    check_choice,
    check_positive,
    check_share,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where weights and tokenizer come from: exactly one of `path` and `config`.

    Attributes:
        path: Checkpoint folder or hub name to fine-tune; `demo` is the bundled model.
        gguf_file: File inside `path`, if the weights are GGUF.
        config: transformers config (with `model_type`) of a model to train from scratch.
        tokenizer: Folder or hub name; `tasks` is the small tokenizer made for the task families.
            Default: `path`.
        chat_template: Jinja chat template to give the tokenizer.
        compile: Compile the decoder layers on a GPU.
        dtype: Of the weights in memory while training. float32 with bf16 autocast is the default;
            bfloat16 halves the memory of frozen weights (LoRA).
        trainable: `all`, or `new_tokens`: only the rows of the compression tokens.
        architecture: The transformers config of `path`, where it must be known without the
            checkpoint: for `--plan` and `--smoke` off line. Training checks it against the
            checkpoint.
        max_position_embeddings: Positions that the model is to have from now on, for rows longer
            than the checkpoint of `path` was made for; RoPE stays as it is.
    """

    path: str | None = None
    gguf_file: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    compile: bool = True
    dtype: str = "float32"
    trainable: str = "all"
    architecture: dict[str, Any] | None = None
    max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.trainable", self.trainable, ("all", "new_tokens"))
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ConfigError("model.architecture needs model_type, for example qwen2.")
        if (self.path is None) == (self.config is None):
            raise ConfigError("Give exactly one of model.path and model.config.")
        if self.max_position_embeddings is not None:
            check_positive("model.max_position_embeddings", self.max_position_embeddings)
            if self.path is None:
                raise ConfigError("model.config has max_position_embeddings of its own; set that.")
        if self.config is not None and "model_type" not in self.config:
            raise ConfigError("model.config needs model_type, for example qwen2.")
        if self.config is not None and self.tokenizer is None:
            raise ConfigError(
                "A model from scratch needs model.tokenizer: `tasks`, a folder or a hub name."
            )


@dataclass(frozen=True, kw_only=True)
class TraceSource:
    """A file or hub dataset of reasoning traces.

    Attributes:
        path: JSONL, JSON or Parquet file, or hub name.
        format: `auto` or one of the formats of `lightthinker.data.sources`.
        split: Split of a hub dataset.
        subset: Configuration of a hub dataset.
        revision: Revision of a hub dataset.
        streaming: Read a hub dataset as it downloads.
        columns: Which column holds question, reasoning, answer, ... for format `columns`.
        keep_calculator: Keep GSM8K's calculator annotations.
        limit: Read at most this many.
    """

    path: str
    format: str = "auto"
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    streaming: bool = False
    columns: dict[str, str] | None = None
    keep_calculator: bool = False
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Procedurally generated problems, fresh for every row.

    Attributes:
        families: Family name to weight; empty means all, equally.
        difficulty: Difficulty of `lightthinker.tasks`, or a mapping from difficulty to weight. Each
            family draws among those it knows.
        seed: Rows are a function of this seed and their number.
    """

    families: dict[str, float] = field(default_factory=dict)
    difficulty: str | dict[str, float] = "mixed"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.families, Mapping):
            raise ConfigError("data.tasks.families must map family names to weights.")
        for name, weight in self.families.items():
            if name not in FAMILIES:
                raise ConfigError(
                    f"data.tasks.families has {name!r}; there are {', '.join(FAMILIES)}."
                    f"{suggestion(name, FAMILIES)}"
                )
            if weight < 0 or not sum(self.families.values()) > 0:
                raise ConfigError("data.tasks.families needs weights of 0 or more, one above 0.")
        if isinstance(self.difficulty, str):
            check_choice("data.tasks.difficulty", self.difficulty, DIFFICULTIES)
            return
        if not isinstance(self.difficulty, Mapping):
            raise ConfigError("data.tasks.difficulty must be a name, or map names to weights.")
        families = self.families or dict.fromkeys(FAMILIES, 1.0)
        known = {name: FAMILIES[name].difficulties for name in families}
        for name, weight in self.difficulty.items():
            every = dict.fromkeys(one for names in known.values() for one in names)
            check_choice("data.tasks.difficulty", name, tuple(every))
            if not isinstance(weight, (int, float)) or not weight > 0:
                raise ConfigError(
                    f"data.tasks.difficulty.{name} is {weight!r}; it must be above 0."
                )
        for family, names in known.items():
            if not set(names) & set(self.difficulty):
                raise ConfigError(
                    f"data.tasks.difficulty names none of what {family} knows: {', '.join(names)}."
                )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on: exactly one of `sources` and `tasks`.

    Attributes:
        sources: Files or hub datasets of traces.
        tasks: Generated problems.
        segment: How reasoning is cut into thoughts.
        row_length: Tokens per packed row.
        full_cot_share: Share of examples written as full chain-of-thought (triggers kept, no
            gists).
        packing: `best_fit` packs documents into rows; `none` gives each a row of its own.
        too_long: What becomes of a trace longer than a row: `drop`, `truncate` after the last
            thought that fits (without answer), or `error`. Dropped and truncated ones are counted.
        retain_thoughts: Draw `compression.retain_thoughts` for each example from this list (mixed
            retention training); empty: use the settings'.
        recover_share: Share of compressed examples whose thoughts are also written again from
            their gists (the reconstruction loss); needs `compression.recover_token`.
        num_proc: Processes that encode traces; 0: one for each core, at most 16.
    """

    sources: tuple[TraceSource, ...] = ()
    tasks: TaskSource | None = None
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    row_length: int = 4096
    full_cot_share: float = 0.0
    packing: str = "best_fit"
    too_long: str = "drop"
    retain_thoughts: tuple[int, ...] = ()
    recover_share: float = 0.0
    num_proc: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "retain_thoughts", tuple(self.retain_thoughts))
        check_choice("data.packing", self.packing, ("best_fit", "none"))
        check_choice("data.too_long", self.too_long, ("drop", "truncate", "error"))
        check_share("data.recover_share", self.recover_share)
        if any(not isinstance(n, int) or n < 0 for n in self.retain_thoughts):
            raise ConfigError(
                f"data.retain_thoughts is {self.retain_thoughts}; it must list whole numbers of 0 "
                "or more."
            )
        if self.num_proc < 0:
            raise ConfigError(f"data.num_proc is {self.num_proc}; it must be 0 or more.")
        if bool(self.sources) == (self.tasks is not None):
            raise ConfigError("Give exactly one of data.sources and data.tasks.")
        if self.row_length < 16:
            raise ConfigError(f"data.row_length is {self.row_length}; it must be at least 16.")
        check_share("data.full_cot_share", self.full_cot_share)


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """The final checkpoint: `dtype` of its weights and `max_shard_size` of its files."""

    dtype: str = "bfloat16"
    max_shard_size: str = "5GB"

    def __post_init__(self) -> None:
        check_choice("save.dtype", self.dtype, DTYPES)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    `output_dir` receives the final checkpoint, and `checkpoints/` during the run.
    """

    output_dir: str
    model: ModelSource
    compression: CompressionConfig
    data: DataConfig
    trainer: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig | None = None
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    evaluate: EvaluateConfig | None = None
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self) -> None:
        data, compression = self.data, self.compression
        if data.recover_share and not compression.recover_token:
            raise ConfigError(
                "data.recover_share needs compression.recover_token, for example '<|recover|>'."
            )
        if data.recover_share and compression.blank_gists:
            raise ConfigError("data.recover_share has nothing to recover from: blank_gists is on.")
        for retained in data.retain_thoughts:
            dataclasses.replace(compression, retain_thoughts=retained)
        if self.loss.distillation and compression.method == "full":
            raise ConfigError("loss.distillation compares compression with full chain-of-thought; "
                              "compression.method is full.")  # fmt: skip
        if self.lora is not None and self.model.trainable != "all":
            raise ConfigError("lora and model.trainable: new_tokens exclude each other; lora "
                              "always trains the new rows.")  # fmt: skip
        if self.lora is not None and self.lora.quantize and self.distributed.strategy != "ddp":
            raise ConfigError("lora.quantize (QLoRA) needs distributed.strategy: ddp.")
        is_safetensors = self.model.path is not None and self.model.gguf_file is None
        if self.lora is not None and self.lora.quantize and not is_safetensors:
            raise ConfigError("lora.quantize (QLoRA) needs a model.path with safetensors weights.")

    @property
    def save_strategy(self) -> str:
        """When checkpoints are written: `no` (only on Ctrl-C), `steps`, `epoch` or `best`.

        Where the recipe does not say, giving `trainer.save_steps` asks for them.
        """
        default = "no" if self.trainer.get("save_steps") is None else "steps"
        return str(self.trainer.get("save_strategy", default) or "no")  # YAML: `no` is False.

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `recipe_from_dict` reads back."""
        plain = _plain(dataclasses.asdict(self))
        plain["compression"] = self.compression.to_dict()
        assert isinstance(plain, dict)
        return plain


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: `a.b=value` settings, values in YAML; see `apply_override`.

    Raises:
        ConfigError: It cannot be read, has unknown keys, or values that are not allowed.
    """
    file = Path(path)
    try:
        settings = read_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read recipe {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping with model, compression, data and trainer.")
    for override in overrides:
        apply_override(settings, override)
    try:
        return recipe_from_dict(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def recipe_from_dict(settings: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain data; see `load_recipe`."""
    _check_keys(Recipe, settings, "")
    for name in ("output_dir", "model", "data"):
        if name not in settings:
            raise ConfigError(f"The recipe lacks {name}.")
    for name in ("data", "trainer", "model"):
        if name in settings and not isinstance(settings[name] or {}, Mapping):
            raise ConfigError(f"{name} must be a mapping, not {settings[name]!r}.")
    data = dict(settings["data"] or {})
    if not isinstance(data.get("sources") or (), (list, tuple)):
        raise ConfigError("data.sources must be a list of sources, each with a path.")
    data["sources"] = tuple(
        _build(TraceSource, s, "data.sources") for s in data.get("sources") or ()
    )
    if data.get("tasks") is not None:
        data["tasks"] = _build(TaskSource, data["tasks"], "data.tasks")
    data["segment"] = _build(SegmentConfig, data.get("segment") or {}, "data.segment")
    trainer = dict(settings.get("trainer") or {})
    check_trainer_keys(trainer)
    return Recipe(
        output_dir=str(settings["output_dir"]),
        model=_build(ModelSource, settings["model"], "model"),
        compression=CompressionConfig.from_dict(settings.get("compression") or {}),
        data=_build(DataConfig, data, "data"),
        trainer=trainer,
        loss=_build(LossConfig, settings.get("loss") or {}, "loss"),
        lora=_optional(LoraConfig, settings.get("lora"), "lora"),
        distributed=_build(DistributedConfig, settings.get("distributed") or {}, "distributed"),
        evaluate=_optional(EvaluateConfig, settings.get("evaluate"), "evaluate"),
        save=_build(SaveConfig, settings.get("save") or {}, "save"),
    )


MANAGED_BY_US = ("output_dir", "remove_unused_columns")


def check_trainer_keys(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError for keys that are no TrainingArguments, or that the recipe sets itself."""
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    for key in trainer:
        if key in MANAGED_BY_US:
            raise ConfigError(f"trainer.{key} is set by the recipe itself; leave it out.")
        if key not in known:
            raise ConfigError(f"Unknown setting trainer.{key}.{suggestion(key, known)}")
    strategies = {k: v for k, v in trainer.items() if not k.endswith("_strategy")}
    check_types(TrainingArguments, strategies, "trainer.")


def _optional(kind: type[T], settings: Any, section: str) -> T | None:
    return None if settings is None else _build(kind, settings, section)


def _build(kind: type[T], settings: Any, section: str) -> T:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{section} must be a mapping, not {settings!r}.")
    _check_keys(kind, settings, section + ".")
    check_types(kind, settings, section + ".")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(f"{section}: {error}") from error


def _check_keys(kind: Any, settings: Mapping[str, Any], prefix: str) -> None:
    known = [f.name for f in dataclasses.fields(kind)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"Unknown setting {prefix}{key}.{suggestion(str(key), known)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
