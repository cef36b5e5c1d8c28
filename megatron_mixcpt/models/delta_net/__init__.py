"""Gated delta nets: layers that mix tokens by a recurrence in the place of attention."""
