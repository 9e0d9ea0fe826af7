"""Who advances which session, and when: `local` runs everything in one process."""
