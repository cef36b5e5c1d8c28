"""One page about several runs: who learned the domain, who forgot the rest, and what was different."""
