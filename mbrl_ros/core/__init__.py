"""Robot spec, task spec and the checks that everything else stands on. Numpy and YAML only."""
