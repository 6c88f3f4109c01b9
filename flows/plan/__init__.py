"""`btm plan`: what a run will do, before any of it is done."""
