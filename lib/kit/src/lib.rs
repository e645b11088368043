//! Configuration, telemetry, listening, the admin server and shutdown, shared by the programs.
//!
//! The agent, the origin and the tracker call this; nothing here knows of blobs, peers or registries.

pub mod admin;
pub mod config;
pub mod incoming;
pub mod metrics;
mod open_files;
pub mod shutdown;
pub mod telemetry;
pub mod units;
pub mod window;

pub use admin::{Admin, AdminError, AdminParts, serve_admin, serve_router};
pub use config::{ConfigError, Rejected};
pub use metrics::Metrics;
pub use open_files::raise_open_files;
pub use units::{ByteSize, HumanDuration, ParseUnitError, Rate};
