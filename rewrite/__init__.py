"""Rewrite rules of both levels, the egglog languages they are rendered into, and the saturation driver."""
