"""The nemesis: random streams, clients and faults from one seed, and a checker for I1-I12 of spec/faults.md."""
