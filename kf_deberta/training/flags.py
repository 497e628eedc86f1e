"""The flags of the training scripts, and the library's training arguments made of them; nothing slow to import."""

import argparse
import logging
import os
import warnings
from pathlib import Path

from kf_deberta.cli import (
    InputError,
    Parser,
    check_model_name,
    check_writable,
    count,
    file_path,
    is_hub_name,
    model_name,
    not_negative,
    number,
    one_line,
    one_of,
    positive,
    say,
    seed,
    several,
)
from kf_deberta.data.download import DEFAULT_PATH, check_data_set
from kf_deberta.training.run import recorded_flags

# type and help of what a recipe may set; its values stand in the script
RECIPE_FLAGS = {
    "num_epochs": (count, "epochs"),
    "batch_size": (count, "examples (triplets for NLI, pairs for STS) per step, over all processes"),
    "nli_batch_size": (count, "triplets per step, over all processes"),
    "sts_batch_size": (count, "pairs per step, over all processes"),
    "sts_loss": (one_of("cosine", "cosent"), "loss on the pairs: CosineSimilarityLoss or CoSENTLoss"),
    "max_seq_length": (count, "tokens a sentence is cut to"),
    "scale": (positive, "factor on the cosines in the ranking loss"),
    "learning_rate": (positive, "peak learning rate of AdamW"),
    "weight_decay": (not_negative, "weight decay of AdamW, none on biases and LayerNorm"),
    "max_grad_norm": (positive, "norm that gradients are clipped to, per step"),
    "warmup_steps": (not_negative, "rounds of linear warm-up; below 1, a share of all rounds"),
    "lr_scheduler_type": (one_of("linear", "cosine", "constant_with_warmup"), "learning rate after the warm-up"),
    "eval_steps": (count, "rounds between evaluations within an epoch; one more at its end"),
    "seed": (seed, "seed of the order of batches and dropout, and of the triplets drawn from KorNLI"),
}
BY_THE_RECIPE = "is set by the recipe; "
REFUSED = {
    "per_device_train_batch_size": f"{BY_THE_RECIPE}use --batch_size, or --nli_batch_size and --sts_batch_size",
    "per_device_eval_batch_size": f"{BY_THE_RECIPE}use --eval_batch_size",
    "gradient_accumulation_steps": f"{BY_THE_RECIPE}use --gradient_checkpointing (objectives must not share a step)",
    "num_train_epochs": f"{BY_THE_RECIPE}use --num_epochs",
    "max_steps": f"{BY_THE_RECIPE}use --max_rounds",
    "resume_from_checkpoint": f"{BY_THE_RECIPE}use --resume",
    "warmup_ratio": f"{BY_THE_RECIPE}use --warmup_steps with a number below 1",
    **dict.fromkeys(("eval_strategy", "eval_on_start", "eval_delay"), f"{BY_THE_RECIPE}use --eval_steps"),
    **dict.fromkeys(("save_strategy", "save_total_limit", "save_only_model"), f"{BY_THE_RECIPE}use --save_steps"),
    **dict.fromkeys(("batch_sampler", "multi_dataset_batch_sampler", "optim"), f"{BY_THE_RECIPE}remove it"),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), f"{BY_THE_RECIPE}remove it"),
    **dict.fromkeys(("load_best_model_at_end", "hub_strategy", "data_seed"), f"{BY_THE_RECIPE}remove it"),
    **dict.fromkeys(("logging_strategy", "logging_nan_inf_filter"), f"{BY_THE_RECIPE}remove it"),
    **dict.fromkeys(("auto_find_batch_size", "fsdp", "deepspeed"), "is not supported; use --gradient_checkpointing"),
    **dict.fromkeys(("fp16", "fp16_full_eval"), "scales the loss and skips steps, which shifts schedules; use --bf16"),
    "prompts": "is not seen by the evaluation; use --prompt",
    "logging_dir": "is gone from transformers 5; set TENSORBOARD_LOGGING_DIR",
}
LIBRARY_SWITCHES = {
    "bf16": "train in bfloat16 autocast; the weights stay in --dtype",
    "tf32": "matrix products in TF32 on NVIDIA GPUs since Ampere",
    "gradient_checkpointing": "recompute activations in the backward pass: less memory, slower",
    "torch_compile": "compile the model with torch.compile",
    "disable_tqdm": "no progress bars",
    "push_to_hub": "upload the finished model to --hub_model_id",
    "hub_private_repo": "make the uploaded repository private",
}
LIBRARY_FLAGS = (*LIBRARY_SWITCHES, "dataloader_num_workers", "report_to", "run_name", "hub_model_id")
# flags without effect unless another one is given
NEEDS = {"run_name": "report_to", "hub_private_repo": "push_to_hub", "hub_token": "push_to_hub"}
# what accelerate and its launcher read from the environment, and the value that changes nothing
ENVIRONMENT = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_USE_MEGATRON_LM": "false",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
}


def training_parser(doc: str, recipe: dict[str, object], output_prefix: str) -> Parser:
    """Return the parser of a training script.

    Args:
        doc: docstring of the script, its help.
        recipe: the numbers of the recipe by flag name, the defaults of these flags.
        output_prefix: start of the run directory's name.
    """
    parser = Parser(doc, REFUSED)
    add = parser.add_argument_group("recipe").add_argument
    for name, value in recipe.items():
        kind, text = RECIPE_FLAGS[name]
        add(f"--{name}", type=kind, default=value, help=text)
    add("--max_rounds", type=count, help="stop after this many rounds, which the schedule then spans (default: all)")
    if "scale" in recipe:
        add("--nli_mini_batch_size", type=count, help="triplets in memory at once, same result (default: the batch)")
    dims = "train and score the first D values of the embeddings too, such as 768,512,256,128,64"
    add("--matryoshka_dims", type=several(number(int, least=2)), help=dims)  # one value has no direction

    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", type=model_name, default="kakaobank/kf-deberta-base", help="base encoder")
    add("--revision", help="commit, branch or tag of a hub model (default: main)")
    add("--dtype", type=one_of("float32", "bfloat16"), default="float32", help="data type of the weights")
    add("--no_fast_attention", action="store_true", help="use the library's slower DeBERTa attention")
    add("--normalize", action="store_true", help="a Normalize module behind the pooling: embeddings of length 1")
    add("--prompt", help="text put before every sentence, '' for none (default: the base's own)")
    add("--trust_remote_code", action="store_true", help="run Python code from the model repository")

    add = parser.add_argument_group("data").add_argument
    add("--dataset_path", type=file_path, default=DEFAULT_PATH, help="folder of KorNLI/ and KorSTS/")
    add("--download", action="store_true", help="clone the data set to --dataset_path, as is done for the default")

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", type=file_path, default=Path("output"), help="parent of the run's directory")
    add("--output_prefix", default=output_prefix, help="start of the run directory's name")
    add("--resume", nargs="?", const="newest", type=model_name, metavar="RUN", help="go on with RUN or the newest run")
    add("--save_steps", type=count, help="rounds between checkpoints beside those at evaluations (default: none)")
    add("--logging_steps", type=count, default=50, help="rounds between logged losses")
    add("--eval_batch_size", type=count, default=64, help="sentences per batch in evaluation")

    add = parser.add_argument_group("library, as in SentenceTransformerTrainingArguments").add_argument
    for name, text in LIBRARY_SWITCHES.items():
        add(f"--{name}", action="store_true", help=text)
    workers = number(int, least=0, most=1024)
    add("--dataloader_num_workers", type=workers, default=0, help="processes that prepare batches")
    add("--report_to", nargs="+", default=["none"], metavar="NAME", help="tensorboard, wandb and the like")
    add("--run_name", help="name of the run there (default: the run's directory)")
    add("--hub_model_id", metavar="OWNER/MODEL", help="name of the model in its card, and on the hub")
    add("--hub_token", help="token to upload with (default: the one you are logged in with)")
    return parser


def parse_flags(doc: str, recipe: dict[str, object], output_prefix: str) -> argparse.Namespace:
    """Parse the command line of a training script; arguments as for training_parser.

    Raises:
        InputError: flags that are unknown, out of range, or make no sense together or in this environment.
    """
    args = recorded_flags(training_parser(doc, recipe, output_prefix))
    args.matryoshka_dims = sorted(args.matryoshka_dims, reverse=True) if args.matryoshka_dims else None
    for name, needed in NEEDS.items():
        if getattr(args, name) and getattr(args, needed) in (False, ["none"]):
            raise InputError(f"--{name} has no effect without --{needed}; remove it or add that")
    check_model_name(args.model_name_or_path)
    if args.hub_model_id and not is_hub_name(args.hub_model_id):
        raise InputError(f"--hub_model_id {args.hub_model_id}: not a name that the hub takes; give OWNER/MODEL")
    if args.push_to_hub and not args.hub_model_id:
        raise InputError("--push_to_hub: name the repository with --hub_model_id OWNER/MODEL")
    if os.sep in args.output_prefix:
        raise InputError(f"--output_prefix {args.output_prefix}: must not hold a {os.sep}; use --output_dir")
    for name, neutral in ENVIRONMENT.items():
        value = os.environ.get(name, "").lower()
        if value not in ("", "0", neutral) and not (value == "bf16" and args.bf16):
            flag = {"bf16": ", give --bf16"}.get(value, ", give --torch_compile" if "DYNAMO" in name else "")
            raise InputError(f"{name}={value} in the environment would change the recipe; unset it{flag}")
    check_data_set(args.dataset_path, args.download)
    check_writable(args.output_dir)
    if token := vars(args).pop("hub_token"):  # so it is in no file and no printed command
        os.environ["HF_TOKEN"] = token
    say("loading libraries")  # 5 seconds and more
    return args


def training_arguments(args: argparse.Namespace):
    """Return the SentenceTransformerTrainingArguments of a run.

    Args:
        args: what parse_flags returned.

    Raises:
        InputError: the library cannot do what a flag asks for on this machine, or a batch cannot be shared equally.
    """
    import torch
    from sentence_transformers import SentenceTransformerTrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    from kf_deberta.model.hub import hub_unreachable
    from kf_deberta.training.batches import check_divides

    if args.push_to_hub and (reason := hub_unreachable()) is not None:
        raise InputError(f"--push_to_hub: the hub cannot be reached ({reason}); train without it and push later")
    library = {name: getattr(args, name) for name in LIBRARY_FLAGS}
    library["activation_checkpointing"] = library.pop("gradient_checkpointing")  # its name in transformers 5.23
    library["hub_private_repo"] = args.hub_private_repo or None  # None: as the owner has set it on the hub
    try:
        training_args = SentenceTransformerTrainingArguments(
            output_dir=str(args.output_dir),
            num_train_epochs=args.num_epochs,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            max_grad_norm=args.max_grad_norm,
            warmup_steps=args.warmup_steps,
            lr_scheduler_type=args.lr_scheduler_type,
            optim="adamw_torch_fused",
            seed=args.seed,
            per_device_eval_batch_size=args.eval_batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="steps",
            logging_nan_inf_filter=False,
            load_best_model_at_end=True,
            metric_for_best_model="eval_sts-dev_spearman_cosine",
            greater_is_better=True,
            hub_strategy="end",
            use_cpu=not torch.accelerator.is_available(),  # else accelerate starts no process group without a GPU
            **library,
        )
        for callback in get_reporting_integration_callbacks(training_args.report_to):
            callback()  # fails now, not after the data are loaded, where its package is missing
        if args.torch_compile:
            torch.compile(torch.nn.Linear(2, 2))(torch.ones(2, 2))
    except (ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"{given(args)}: {one_line(error, 1000)}") from error
    for name in ("batch_size", "nli_batch_size", "sts_batch_size"):
        if name in args:
            check_divides(f"--{name}", getattr(args, name), training_args.world_size)
    if training_args.process_index > 0:  # one process speaks for all
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    training_args._n_gpu = min(training_args.n_gpu, 1)  # several GPUs: torchrun; DataParallel would change the batches
    return training_args


def given(args: argparse.Namespace) -> str:
    """Name the library flags that were given, for an error that the library does not tie to one of them."""
    return " ".join(f"--{name}" for name in LIBRARY_FLAGS if getattr(args, name) not in (None, False, 0, ["none"]))
