"""The `mbrl-ros` command: one module a verb. Heavy imports happen inside the verbs."""
