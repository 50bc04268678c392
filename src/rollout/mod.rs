//! The canary autopilot: gives a canary more and more of a service's requests, and takes them back if it does worse than the
//! baseline at the same time. `docs/rollouts.md` says how it decides.
//!
//! [`Look`] → `Guards` (with the test in `sequential`) → [`State`] → [`Decision`]. All of it is pure: who
//! has the figures, keeps the state and applies the weights is somebody else.

mod at;
mod decision;
mod evidence;
mod guards;
mod plan;
mod sequential;
mod split;
mod state;
#[cfg(test)]
mod tests;

pub use at::At;
pub use decision::{Cause, Decision, Evidence, Figures, GuardFigures, SideFigures, Verdict, Why};
pub use evidence::{Histogram, Look, Side};
pub use plan::{Command, command, due};
pub use split::{release, weigh};
pub use state::{Earlier, Phase, State, Weights};
