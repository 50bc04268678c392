//! The configuration: its types and defaults ([`Config`]).

mod duration;
mod model;

pub use duration::human;
pub use model::*;
