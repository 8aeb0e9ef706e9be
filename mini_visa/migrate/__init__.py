"""From another system to this one: its accounts and open holds, and its decisions compared with ours."""
