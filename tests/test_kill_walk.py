"""dev/kill_walk.py over some events of one recipe; a file of its own, so that another process takes it."""


def test_a_short_kill_walk_finds_no_difference(run_script, toy_base, toy_data):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--recipes", "sts"]
    result = run_script("dev/kill_walk.py", *flags, "--every", 40)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sts: " in result.stdout and "'same': " in result.stdout and "different" not in result.stdout
