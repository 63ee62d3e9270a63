"""What is said wherever a person meets the name "reasoning subspace"; no torch, so that all may say it."""

CAVEAT = (
    "The reasoning subspace is the field's name for the directions of a hidden state that the LM head "
    "hardly sees: its smallest right singular directions. That they carry reasoning is an unproven idea."
)
