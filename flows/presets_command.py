"""`btm presets`: the experiments that ship with BTM."""

import json

from flows.options import Json

__all__ = ["presets"]


def presets(as_json: Json = False) -> None:
    """List the experiments that ship with BTM."""
    from btm_core.config import load_experiment, preset_names

    rows = []
    for name in preset_names():
        config = load_experiment(name)
        command = f"btm run {name}" + " --set pretrain.initial=FILE" * config.pretrain.needs_trained_backbone
        facts = {"hardware": config.hardware, "published": config.published, "command": command}
        rows.append({"name": name, "source": config.source, **facts})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<24} {row['source']}")
    print("\nRun one with: btm run NAME; --json tells hardware, hours, published figures and what else a command needs")
