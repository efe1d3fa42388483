//! Scenarios on a simulated network with a paused clock.
