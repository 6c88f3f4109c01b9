"""MLflow's registry: versions with evidence, and the one that is in use, which only the gate moves."""
