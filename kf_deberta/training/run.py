"""The directory of a training run: made new, or found again to be resumed; nothing slow to import."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from kf_deberta.cli import InputError, check_writable, lock, one_line, read_json, say, write_atomically
from kf_deberta.data.official import git_blob_id
from kf_deberta.model.index import MODEL_FILES

RUN_FILE = "training_arguments.json"
# the description of RUN_FILE; a run adds what it finds out later: test, best_round, ...
RUN_KEYS = {"script": str, "status": str, "seed": int}
RUN_KEYS |= dict.fromkeys(("arguments", "content", "libraries", "baseline"), dict)
# evaluation.scoring's, which takes seconds to import; a baseline has them x100
FIGURES = [
    f"{name}_{kind}" for name in ("cosine", "euclidean", "manhattan", "dot") for kind in ("pearson", "spearman")
]
LIBRARIES = ("sentence-transformers", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
MANIFEST = "checkpoint_files.json"  # file name -> [size in bytes, CRC-32]; what it does not match is not loaded
STATE = "trainer_state.json"
STATE_KEYS = {
    "global_step": int,
    "best_global_step": int | None,
    "best_metric": int | float | None,
    "log_history": list,
}
UNFINISHED = "unfinished-checkpoint"  # where a checkpoint is written before it appears whole
LOCK = ".lock"
# flags that change no result: a resumed run may have others
SAME_RESULT = {"output_dir", "output_prefix", "resume", "save_steps", "logging_steps", "eval_batch_size", "download"}
SAME_RESULT |= {"disable_tqdm", "push_to_hub", "hub_private_repo", "hub_model_id", "report_to", "run_name"}
SAME_RESULT |= {"dataloader_num_workers", "hub_token"}
SAME_TO_ROUNDING = {"nli_mini_batch_size", "gradient_checkpointing"}  # what to change after out of memory
BY_CONTENT = {"dataset_path", "model_name_or_path"}  # another path to the same content is no difference
# the state of training, and what names folders of this machine; the card says all that others need
NOT_PUSHED = ["trainer_state.json", RUN_FILE, LOCK, "checkpoint-*/**", f"{UNFINISHED}/**", "runs/**"]
_locks: list[FileLock] = []  # of this process: a lock lasts until it ends


@dataclasses.dataclass
class Run:
    """A run directory, its facts (what RUN_FILE holds) and the checkpoint to go on from, if any."""

    directory: Path
    facts: dict
    checkpoint: Path | None = None

    def save(self) -> None:
        """Write the facts atomically."""
        with write_atomically(self.directory / RUN_FILE) as path:
            text = json.dumps(self.facts, indent=2, ensure_ascii=False, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Write the facts of a complete run, without directories of this machine, and tidy up."""
        arguments = self.facts["arguments"]
        self.facts["arguments"] = {name: value for name, value in arguments.items() if name not in SAME_RESULT}
        self.facts["arguments"] |= {name: _without_directory(arguments[name]) for name in BY_CONTENT}
        self.facts["status"] = "finished"
        self.save()
        tidy(self.directory, finished=True)


def _without_directory(name: str) -> str:
    """The last part of a path that is there; else, such as a hub name, as it is."""
    return Path(name).name if Path(name).exists() else name


def recorded_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; with --resume, flags that are not given are those that the run was begun with.

    A run that was finished with these flags is told to be complete, and what a kill left over in it goes.

    Raises:
        InputError: no such run, its file is damaged, or a given flag would change its result.
        SystemExit: 0, the run is complete.
    """
    args = parser.parse_args()
    if args.resume is None:
        return args
    directory, facts = _find_run(args, Path(parser.prog).name)
    finished = facts["status"] == "finished"
    if finished and not _is_first():
        sys.exit(0)
    parser.set_defaults(**_defaults(parser, facts["arguments"], directory / RUN_FILE))
    args = parser.parse_args()
    args.resume = str(directory)
    # a finished run loads nothing any more; of an unfinished one open_run compares the content
    unchecked = SAME_RESULT | ({"trust_remote_code"} if finished else BY_CONTENT)
    for name, value in _plain(args).items():
        old = facts["arguments"].get(name, parser.get_default(name))  # the flag may be newer than the run
        if isinstance(value, list) and isinstance(old, list):  # in any order
            value, old = sorted(value), sorted(old)
        if finished and name in BY_CONTENT:
            value = _without_directory(value)
        if value == old or name in unchecked:
            continue
        if name not in SAME_TO_ROUNDING:
            remedy = "delete it or give another --output_dir" if finished else "give the flags that it was begun with"
            raise InputError(f"{directory}: --{name} was {old}, is {value}; {remedy}")
        if not finished:
            print(f"{directory}: --{name} was {old}, is {value}: the same result to rounding", flush=True)
    if finished:
        _check_files(directory, args, facts["content"], sys.argv[1:])
        tidy(directory, finished=True)
        print(f"{directory}: this run is complete; start a new one without --resume, or delete it", flush=True)
        if args.push_to_hub and args.hub_model_id:
            print(f"not uploaded again; this does it: {upload_command(args.hub_model_id, directory)}", flush=True)
        sys.exit(0)
    if isinstance(commit := facts.get("base_revision"), str):
        args.revision = commit  # the hub's main may have moved since
    return args


def _check_files(directory: Path, args: argparse.Namespace, content: dict[str, str], words: list[str]) -> None:
    """Raise InputError where the data set or base among `words` has a file that is not what a finished run had."""
    typed = {word.split("=")[0] for word in words}  # a finished run's own directories are not recorded
    for name, blob_id in content.items():
        flag = "model_name_or_path" if name.startswith("base ") else "dataset_path"
        path = Path(getattr(args, flag)) / name.removeprefix("base ")
        if f"--{flag}" in typed and path.is_file() and git_blob_id(path) != blob_id:
            raise InputError(f"{path}: not the file that {directory} was trained with; give another --output_dir")


def upload_command(name: str, directory: Path) -> str:
    """Return the command that uploads a finished run to the hub's repository `name`."""
    excluded = (word for pattern in NOT_PUSHED for word in ("--exclude", pattern))
    return shlex.join(["hf", "upload", name, short(directory), *excluded])


def short(path: Path) -> str:
    """Return the path as the user would type it from the current directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _defaults(parser: argparse.ArgumentParser, arguments: dict, path: Path) -> dict:
    """Return recorded arguments as defaults, checked as if they were typed.

    Code from a model's repository is run only where the command line says so again.
    """
    defaults = {}
    for action in parser._actions:
        name, value = action.dest, arguments.get(action.dest)
        if name not in arguments or name in ("resume", "trust_remote_code") or value == action.default:
            continue
        with contextlib.suppress(argparse.ArgumentTypeError, ValueError, TypeError):
            if action.nargs == 0 or value is None:
                valid = value in (True, False, None)
            elif action.nargs == "+":
                valid = all(isinstance(part, str) for part in value)
            else:
                value = (action.type or str)(",".join(map(str, value)) if isinstance(value, list) else str(value))
                valid = True
            if valid:
                defaults[name] = value
                continue
        raise InputError(f"{path}: {name} in arguments is {value!r}; it was damaged or edited")
    return defaults


def _plain(args: argparse.Namespace) -> dict:
    """Return flags as JSON has them, directories in full: a run may be resumed from elsewhere."""
    plain = json.loads(json.dumps({k: v for k, v in vars(args).items() if k != "resume"}, default=str))
    for name in BY_CONTENT:
        if Path(plain[name]).is_dir():
            plain[name] = str(Path(plain[name]).resolve())
    return plain


def _read_facts(directory: Path) -> dict:
    """Read the facts of a run; InputError where something is damaged that is needed hours later."""
    path = directory / RUN_FILE
    facts = read_json(path, RUN_KEYS)
    arguments, baseline = facts["arguments"], facts["baseline"]
    damaged = [f"{name} in arguments" for name in BY_CONTENT if not isinstance(arguments.get(name), str)]
    dims = arguments.get("matryoshka_dims")
    for dim in ("", *(f"{dim}_" for dim in (dims if isinstance(dims, list) else ()))):
        for value, name in ((baseline.get(f"{dim}{figure}"), f"{dim}{figure}") for figure in FIGURES):
            if not isinstance(value, int | float) or not -101 < value < 101:  # NaN neither
                damaged.append(f"{name} in baseline")
    if damaged:
        raise InputError(f"{path}: {damaged[0]} is missing or wrong; it was damaged or edited")
    return facts


def _find_run(args: argparse.Namespace, script: str) -> tuple[Path, dict]:
    """Return the directory and the facts of the run that --resume means, locked where anything is left to do in it."""
    if args.resume != "newest":
        directory = Path(args.resume).resolve()
        if not (directory / RUN_FILE).is_file():
            raise InputError(f"{args.resume}: no {RUN_FILE} in it; give the directory of an unfinished run")
        facts = _read_facts(directory)
        if facts["script"] != script:
            raise InputError(f"{directory}: this is a run of {facts['script']}; resume it with that script")
        if facts["status"] != "finished" or left_over(directory, finished=True):
            _lock(directory)
        return directory, facts
    parent, complete, other = Path(args.output_dir).resolve(), None, None
    found = [path.parent for path in parent.glob(f"*/{RUN_FILE}")]
    for directory in sorted(found, key=lambda path: path.name[-19:], reverse=True):
        try:
            facts = _read_facts(directory)
        except InputError as error:
            print(f"passed over: {error}", flush=True)
            continue
        if facts["script"] != script or not directory.name.startswith(args.output_prefix):
            if facts["status"] != "finished":
                other = other or f"; the newest other one goes on with {facts['script']} --resume {directory}"
            continue
        if facts["status"] == "finished" and not left_over(directory, finished=True):
            complete = complete or (directory, facts)
            continue
        _lock(directory, f"{parent}: no unfinished run with these arguments: ")
        return directory, facts
    if complete is None:
        problem = f"{parent}: no unfinished run with these arguments"
        raise InputError(problem + (other or "; start one without --resume"))
    return complete


def _is_first() -> bool:
    """Tell whether this is the first process of a run, or the only one."""
    return os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ


def _lock(directory: Path, prefix: str = "") -> None:
    """Take the run for this process, the first of several, until it ends."""
    if not _is_first():
        return
    _locks.append(lock(directory / LOCK, f"{prefix}{directory}: still running in another process; stop that first"))


def left_over(directory: Path, *, finished: bool) -> list[Path]:
    """Return what a killed process left in a run's directory, or all that only an unfinished run needs."""
    names = f"{Path(RUN_FILE).stem}|README|training_curves|similarity_evaluation_.*"
    hidden = re.compile(rf"\.({names})\.\d+\.(json|md|png|csv)")
    paths = [path for path in (*directory.glob(".*"), *directory.glob("eval/.*")) if hidden.fullmatch(path.name)]
    paths += [path for path in [directory / UNFINISHED] if path.exists()]
    if finished:
        paths = [*checkpoints(directory), *paths, *(path for path in [directory / LOCK] if path.exists())]
    return paths


def tidy(directory: Path, *, finished: bool) -> None:
    """Delete what `left_over` returns."""
    for path in left_over(directory, finished=finished):
        if path.name.startswith("checkpoint-"):
            remove(path)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints that a run wrote, newest first; others, such as checkpoint-2.bak, are the user's."""
    found = [path for path in directory.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / STATE).is_file()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: out of sight first, so that a kill leaves no half of one."""
    trash = checkpoint.parent / UNFINISHED
    trash.mkdir(exist_ok=True)
    checkpoint.rename(trash / checkpoint.name)
    shutil.rmtree(trash, ignore_errors=True)


def size_and_crc(path: Path) -> list[int]:
    """Return the size in bytes and the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None where every file is as it was written."""
    try:
        for name, sums in read_json(checkpoint / MANIFEST, {STATE: list}).items():
            if size_and_crc(checkpoint / name) != sums:
                return f"{name} is not as it was written"
        read_json(checkpoint / STATE, STATE_KEYS)
    except (InputError, OSError, ValueError) as error:  # ValueError: a name with a NUL
        return one_line(error)
    return None


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint that is complete, its best one too, or None; others are named and passed over."""
    for path in checkpoints(run_dir):
        say(f"checking {path}")
        if reason := fault(path):
            print(f"{path}: damaged or cut short, not used ({reason})", flush=True)
            continue
        best = read_json(path / STATE, STATE_KEYS)["best_global_step"]
        if best in (None, step_of(path)) or not (reason := fault(run_dir / f"checkpoint-{best}")):
            return path
        print(f"{path}: the best checkpoint that it names, checkpoint-{best}, is damaged ({reason})", flush=True)
    print(f"{run_dir}: no usable checkpoint, the run starts anew", flush=True)
    return None


def open_run(args: argparse.Namespace, trainer, begun_with: dict) -> Run:
    """Create the run directory, or take up the one to resume; every process gets the same.

    Args:
        args: the script's flags, from recorded_flags.
        trainer: the run's trainer; its output_dir becomes the run's directory.
        begun_with: what a new run knows already, for its facts.

    Raises:
        InputError: not writable, or what the run to resume was begun with has changed since.
    """
    from accelerate.utils import broadcast_object_list

    found = [None]
    if trainer.args.process_index == 0:
        try:
            arguments = _plain(args) | {
                "processes": trainer.args.world_size,
                "mixed_precision": trainer.accelerator.mixed_precision,
            }
            content = content_of(args, trainer.model.revision, list(trainer.batch_samplers))
            begun_with = begun_with | {"arguments": arguments, "content": content, "libraries": _libraries()}
            found = [_take_up(args, begun_with) if args.resume else _new_run(args, begun_with)]
        except InputError as error:
            found = [error]
    run = broadcast_object_list(found)[0]  # a no-op in a single process
    if isinstance(run, InputError):
        raise run
    trainer.args.output_dir = str(run.directory)
    return run


def content_of(args: argparse.Namespace, commit: str | None, objectives: list[str]) -> dict[str, str]:
    """Return what tells the data and the base of a run from others: git blob ids of its files, or the hub's commit."""
    root, base = Path(args.dataset_path), Path(args.model_name_or_path)
    files = [root / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test", *(["train"] * ("sts" in objectives)))]
    if "nli" in objectives:
        files += (root / "KorNLI").glob("*train.ko.tsv")
    content = {path.relative_to(root).as_posix(): git_blob_id(path) for path in sorted(files)}
    if commit is not None:
        return content | {"base": f"{args.model_name_or_path} at {commit}"}
    files = sorted(path for path in base.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
    files = [path for path in files if not {"eval", "onnx"} & set(path.relative_to(base).parts)]
    # runs below the base are none of it
    files = [path for path in files if not any((p / RUN_FILE).is_file() for p in path.parents if base in p.parents)]
    return content | {f"base {path.relative_to(base).as_posix()}": git_blob_id(path) for path in files}


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def _new_run(args: argparse.Namespace, begun_with: dict) -> Run:
    parent, base = Path(args.output_dir).resolve(), Path(args.model_name_or_path)
    check_writable(parent)
    name = base.resolve().name if base.is_dir() else args.model_name_or_path.replace("/", "-")
    while True:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        directory = parent / f"{args.output_prefix}{name}-{stamp}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:  # another run of the same second
            time.sleep(0.2)
            continue
        _lock(directory)
        script = Path(sys.argv[0]).name
        run = Run(directory, {"script": script, "status": "unfinished", "seed": args.seed, **begun_with})
        run.save()
        return run


def _take_up(args: argparse.Namespace, begun_with: dict) -> Run:
    directory = Path(args.resume)
    facts = _read_facts(directory)
    old, new = facts["arguments"], begun_with["arguments"]
    if (was := old.get("processes")) != (now := new["processes"]):
        raise InputError(f"{directory}: begun with {was} processes, now {now}; torchrun --nproc_per_node sets them")
    if (was := old.get("mixed_precision")) != (now := new["mixed_precision"]):
        raise InputError(f"{directory}: begun with mixed precision {was}, now {now}; look at ACCELERATE_ variables")
    content = begun_with["content"]
    for name in sorted(facts["content"].keys() | content.keys()):
        if (was := facts["content"].get(name)) != (now := content.get(name)):
            raise InputError(
                f"{directory}: {name} is not what the run was begun with (was {was}, is {now}); restore it, "
                "or start a new run without --resume"
            )
    if facts["libraries"] != begun_with["libraries"]:
        print(f"{directory}: begun with other library versions; figures may differ from an unbroken run's")
    tidy(directory, finished=False)
    return Run(directory, facts, newest_checkpoint(directory))
