//! Configuration, telemetry and shutdown shared by the programs.
