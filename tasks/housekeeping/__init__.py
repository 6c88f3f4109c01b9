"""Housekeeping: what a store holds, whether it is whole, and what of it nobody needs.

`inventory` reads a store into plain data, `garbage` decides on plain data what may go and why, `sweep` deletes it in an
order that a run beside it survives, `registered` asks MLflow what its registered models need, `verifying` reads
everything.
"""
