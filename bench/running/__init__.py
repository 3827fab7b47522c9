"""Run a suite: tasks, the runner, and the processes that it forks workers from."""
