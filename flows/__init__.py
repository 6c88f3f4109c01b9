"""When and where the steps run: Prefect flows, and the command line."""
