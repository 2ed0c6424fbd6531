"""Bad input: the exact error of every row of the matrix. docs/reference/bad-input.md is made from the same tables."""
