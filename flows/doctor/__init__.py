"""`btm doctor`: whether this machine and its settings can run BTM."""
