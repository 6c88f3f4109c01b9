"""Where steps run: worker processes of this machine, or the same on a Ray cluster (`flows.workpool` has a third)."""
