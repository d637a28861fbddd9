"""Cards of Hub repositories, rendered from facts and checked; what is published is checked here before it leaves."""
