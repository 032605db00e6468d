"""Maps of the patches that each word attended to, sheets of them, and tests of how faithful they are."""
