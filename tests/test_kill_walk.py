"""A run killed at any file-system event goes on to the same end: a short walk; BENCHMARKS.md has the full one."""

from kf_deberta.cli import write_atomically
from kf_deberta.training.run import tidy


def test_sts_killed_at_every_seventh_event_ends_the_same(run_script, toy_base, toy_data):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--recipes", "sts"]
    result = run_script("dev/kill_walk.py", *flags, "--max_rounds", 1, "--every", 7)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sts: " in result.stdout and "'same': 1" in result.stdout and "different" not in result.stdout


def test_what_a_kill_leaves_of_a_file_being_written_is_tidied_up(tmp_path):
    for name in ("training_arguments.json", "README.md", "training_curves.png", "similarity_evaluation_a_results.csv"):
        with write_atomically(tmp_path / name) as temporary:
            temporary.touch()
        temporary.touch()  # as if the process had ended before it was moved
    (tmp_path / ".notes.md").touch()  # the user's
    before = {path.name for path in tmp_path.iterdir()}
    tidy(tmp_path, finished=False)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(before) == 9 and len(left) == 5 and ".notes.md" in left
