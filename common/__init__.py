"""What every worker and tool shares. Never imports workers or tools."""
