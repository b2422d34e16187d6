"""From a problem and a configuration to launches: operands, arguments, temporaries, compilation."""
