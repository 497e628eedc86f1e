"""A training step of each objective in kf-deberta-base's shape, random weights: library eager against ours.

One process, the variants in turn on the same batches (A B A B), gradients, clipping and fused AdamW included; peak
memory in a fresh process per variant. Columns merged: in one forward pass, as the trainer does with pairs. On a GPU
also torch.compile and CUDA graphs.

    python dev/speed.py train
    python dev/speed.py train --objective nli --layers 2 --vocab 2000 --rounds 3
    python dev/speed.py train --device cuda --dtype bfloat16 --rounds 20 --peers
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import speed_model as common
from kf_deberta.cli import InputError
from kf_deberta.model.cpu import keep_freed_memory
from speed_load import memory_mib

BATCH = {"sts": 8, "nli": 128}
AIM = {"cpu": {"sts": 2.6, "nli": 3.2}, "cuda": {"sts": 5.0, "nli": 3.0}}
ROUNDS = 7190


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark to a parser."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--objective", choices=["sts", "nli", "both"], default="both", help="whose step to time (default: %(default)s)"
    )
    add("--sts_batch_size", type=int, default=BATCH["sts"], help="pairs of a step (default: %(default)s)")
    add("--nli_batch_size", type=int, default=BATCH["nli"], help="triplets of a step (default: %(default)s)")
    add("--rounds", type=int, default=7, help="measured steps of each variant (default: %(default)s)")
    add("--keep_freed_memory", action="store_true", help="call keep_freed_memory first, for every variant")
    add("--peers", action="store_true", help="disentangled-flash and flashdeberta too, where they are installed")
    add("--no_compile", action="store_true", help="leave out torch.compile, which takes a minute to compile")
    add("--no_memory", action="store_true", help="leave out the peak memory")


def run(args: argparse.Namespace) -> None:
    """Measure and print Markdown tables."""
    common.check_positive(args)
    torch.set_num_threads(args.threads)
    if args.keep_freed_memory and not keep_freed_memory():
        raise InputError("--keep_freed_memory: this C library is not glibc; leave the flag out")
    model = common.base_model(args.layers, args.vocab, args.seed).train().to(args.device)
    variants = common.variants_of(model, args.device, compiled=not args.no_compile) | (
        common.peers_of(model) if args.peers else {}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
    fastest = {}
    for objective in ["sts", "nli"] if args.objective == "both" else [args.objective]:
        # 1. The same batches for every variant
        lengths, source = common.sentence_lengths(objective, args)
        batches = _batches(lengths, getattr(args, f"{objective}_batch_size"), args)
        steps = {
            name: [partial(_step, variant, optimizer, args, objective, *batch) for batch in batches]
            for name, variant in variants.items()
        }
        # 2. Rates before and after, in the same process: the machine may be shared
        rates = common.matmul_rates(args)
        seconds = common.interleave(steps, args, objective)
        again = common.matmul_rates(args)
        rates = {name: max(rate, again[name]) for name, rate in rates.items()}
        fastest[objective] = {name: median(values) for name, values in seconds.items()}
        peaks = {} if args.no_memory else _peaks(steps, objective, args)
        # 3. The report
        masks = [[column["attention_mask"] for column in columns] for columns, _ in batches]
        flops = [sum(step_flops(mask, args.layers) for mask in columns) for columns in masks]
        real = np.mean([float(mask.float().mean()) for columns in masks for mask in columns])
        print(f"\n### Training step, {objective.upper()}: {len(batches[0][1])} rows per batch, {args.layers} layers\n")
        print(f"{common.machine(args)}. {source}; {real:.0%} of the padded positions are real tokens.")
        _print_table(objective, args, seconds, rates, flops, peaks)
    if len(fastest) == 2:
        print(f"\nThe published run is {ROUNDS:,} steps of each; in steps alone, with these batches:")
        for name in (name for name in fastest["sts"] if name in fastest["nli"]):
            print(f"- {name}: {ROUNDS * (fastest['sts'][name] + fastest['nli'][name]):,.0f} s")


def _peaks(steps: dict[str, list], objective: str, args: argparse.Namespace) -> dict[str, float]:
    """MiB that a step adds to the loaded model, by variant; on a CPU without the optimizer's pass."""
    if args.device != "cpu":
        peaks = {}
        for name, (first, *_) in steps.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            first()
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return peaks
    if not Path("/proc/self/clear_refs").exists():  # Linux alone has it
        return {}
    return {name: _peak_in_new_process(name, objective, args) for name in steps}


def _batches(lengths: np.ndarray, size: int, args: argparse.Namespace) -> list[tuple[list[dict[str, Tensor]], Tensor]]:
    """One random batch a round: its padded columns, and gold scores between 0 and 1."""
    generator, ids = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    rows = [lengths[generator.permutation(len(lengths))[:size]] for _ in range(args.rounds)]
    batches = []
    for row in rows:
        columns = [common.padded_batch(column, args.vocab, ids) for column in row.T]
        on_device = [column | {"input_ids": column["input_ids"].to(args.device)} for column in columns]
        batches.append((on_device, torch.rand(len(row), generator=ids).to(args.device)))
    return batches


def _loss(variant: common.Variant, objective: str, columns: list[dict[str, Tensor]], scores: Tensor) -> Tensor:
    """CosineSimilarityLoss of pairs, or MultipleNegativesRankingLoss (scale 20, cosine) of triplets."""
    first, *others = [nn.functional.normalize(column.float()) for column in variant.embed_columns(columns)]
    if objective == "sts":
        return nn.functional.mse_loss((first * others[0]).sum(-1), scores)
    return nn.functional.cross_entropy(20 * first @ torch.cat(others).T, torch.arange(len(first), device=first.device))


def _backward(variant: common.Variant, args: argparse.Namespace, *batch) -> None:
    bfloat16 = args.dtype == "bfloat16"
    caches = not isinstance(variant.model, common.Graphed)  # a graph must cast the weights itself
    with torch.autocast(args.device, torch.bfloat16, enabled=bfloat16, cache_enabled=caches):
        loss = _loss(variant, *batch)
    loss.backward()


def _step(variant: common.Variant, optimizer: torch.optim.Optimizer, args: argparse.Namespace, *batch) -> None:
    """One training step."""
    _backward(variant, args, *batch)
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def step_flops(mask: Tensor, layers: int) -> int:
    """Floating-point operations that a column's forward and backward passes cannot do without.

    Per layer and real token: query, key, value and output projections and the feed-forward; per pair of real tokens:
    content, c2p, p2c and the weighted sum; per distance: two projections. Backward: twice the forward.
    """
    lengths = mask.sum(1).double()
    hidden, tokens = common.HIDDEN, lengths.sum()
    token = 2 * (4 * hidden**2 + 2 * hidden * common.INTERMEDIATE)
    distances = 2 * mask.size(1) - 1
    forward = layers * (tokens * token + 4 * 2 * hidden * lengths.square().sum() + distances * 2 * 2 * hidden**2)
    return int(3 * forward)


def _print_table(
    objective: str,
    args: argparse.Namespace,
    seconds: dict[str, list[float]],
    rates: dict[str, float],
    flops: list[int],
    peaks: dict[str, float],
) -> None:
    best = max(rates.values())
    print(f"{args.rounds} rounds on random batches. A step must do {median(flops) / 1e9:,.0f} GFLOP (median).")
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    print(f"{args.dtype} product here: {rates}.\n")
    print(
        "| variant | s per step (median) | times as fast as library (range) | share of the best product rate | peak |"
    )
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        share = median(flop / second / best for flop, second in zip(flops, values, strict=True))
        ratio = "1" if name == common.LIBRARY else common.ratio_of(seconds, name, common.LIBRARY)
        peak = f"{peaks[name]:,.0f} MiB" if peaks else "not measured"
        print(f"| {name} | {median(values):.3f} | {ratio} | {share:.0%} | {peak} |")
    print(f"\nAim: {AIM[args.device][objective]} times as fast. Peak: what a step adds to the loaded model.")


def _peak_in_new_process(variant: str, objective: str, args: argparse.Namespace) -> float:
    """MiB that forward and backward of the first batch add to the loaded model, in a fresh process."""
    command = [sys.executable, __file__, json.dumps(vars(args) | {"variant": variant, "child": objective})]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_of_step(args: argparse.Namespace) -> float:
    torch.set_num_threads(args.threads)
    if args.keep_freed_memory:
        keep_freed_memory()
    model = common.base_model(args.layers, args.vocab, args.seed).train()
    variant = (common.variants_of(model) | (common.peers_of(model) if args.peers else {}))[args.variant]
    lengths, _ = common.sentence_lengths(args.child, args)
    batch, *_ = _batches(lengths, getattr(args, f"{args.child}_batch_size"), args)
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    _backward(variant, args, args.child, *batch)
    return memory_mib("VmHWM") - before


if __name__ == "__main__":  # one measurement of memory, in the fresh process that run() starts
    print(_peak_of_step(argparse.Namespace(**json.loads(sys.argv[1]))))
