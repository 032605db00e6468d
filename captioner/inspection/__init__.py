"""Maps of the patches that each word attended to, sheets that show them, and tests of their faithfulness."""
