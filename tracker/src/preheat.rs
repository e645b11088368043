//! Preheating: what the custom resource `Preheat` asks for is seen to by the tracker that leads, and agents learn from it what to
//! fetch and say how far they are. So ten thousand agents neither watch nor write objects, and no node sees a pull secret.
//!
//! [`plan`] holds the rules and no IO; [`controller`] follows the objects and writes their status; [`images`] asks origins what
//! images are made of; [`service`] is the gRPC that agents call. No byte of a layer passes here.

mod controller;
mod images;
mod plan;
mod service;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use controller::{GIVEN_UP, run};
pub(crate) use images::Images;
pub(crate) use service::{REQUEST_LENGTH_MAX, Service};

use plan::Plan;

/// The plan, as those who share it see it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Plan>>);

impl Shared {
    /// The rounds under way, and the nodes known.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        self.lock().sizes()
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
