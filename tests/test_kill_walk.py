"""A run killed at any file-system event goes on to the same end: a short walk; BENCHMARKS.md has the full one."""


def test_sts_killed_at_every_seventh_event_ends_the_same(run_script, toy_base, toy_data):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--recipes", "sts"]
    result = run_script("dev/kill_walk.py", *flags, "--max_rounds", 1, "--every", 7)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sts: " in result.stdout and "'same': 1" in result.stdout and "different" not in result.stdout
