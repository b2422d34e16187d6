"""Values without torch or Triton that describe a problem: layouts of groups, epilogues, devices, configurations."""
