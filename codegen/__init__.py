"""LLVM IR and machine code from extracted loop programs."""
