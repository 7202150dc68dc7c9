"""The VTA back end: instructions, static checker, simulators and runtime of a tensor accelerator.

`network.compile_network` compiles graphs of integers, `lower.compile_kernel` one kernel. docs/vta.md is the tour.
"""
