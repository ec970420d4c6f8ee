"""Where the README's numbers come from. Every script takes `--quick` and `--json FILE`."""
