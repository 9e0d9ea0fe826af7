"""The loop: advances one session; safe to kill at any line."""
