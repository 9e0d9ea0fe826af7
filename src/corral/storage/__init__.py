"""Where things last: backends of the `EventLog` and `Records` seams. SQL lives in the `.sql` files beside them."""
