//! The configuration: its types and defaults ([`Config`]), and how it is loaded ([`load`]).
//!
//! file → [`tree`] → `${VAR}` → flags and environment over it, `defaults` under each service → types → checks. Positions
//! are kept all the way, and whatever is wrong is reported at once.

mod de;
mod duration;
mod env;
mod error;
mod health_check;
mod layers;
mod load;
mod log_level;
mod model;
mod print;
mod read;
pub mod registry_url;
mod schema;
#[cfg(test)]
mod tests;
pub mod tree;
mod validate;
mod workers;

pub use duration::human;
pub use env::Env;
pub use error::{Errors, Fault, Faults, Path, Place, Step};
pub use layers::Overrides;
pub use load::{Input, Loaded, Source, load};
pub use log_level::log_filter;
pub use model::*;
pub use print::print;
pub use read::read;
pub use schema::schema;
