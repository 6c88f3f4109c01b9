"""What is in a data set, and whether it is complete: `btm data`."""
