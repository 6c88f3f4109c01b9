"""`btm store`: what the store holds, whether it is whole, and what of it nobody needs."""
