"""Chat templates: which one a run uses, rendering within bounds, and which tokens of a conversation are trained on."""
