"""What compiled code says: registers, spills, instructions, access widths; how compilation fails."""
