"""The task generators, one family a file; `data.task_list` lists them."""
