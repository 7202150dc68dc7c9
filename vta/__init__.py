"""The VTA back end: instructions, simulators and lowering for a tensor accelerator.

Empty for now: PLAN.md in this folder says what will live here and in which order.
"""
