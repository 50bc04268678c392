//! The configuration: its types and defaults ([`Config`]), and how it is loaded ([`load`]).
//!
//! file → [`tree`] → `${VAR}` → flags and environment over it, `defaults` under each service → types → checks. Positions
//! are kept all the way, and whatever is wrong is reported at once.

mod app_address;
mod de;
mod duration;
mod env;
mod error;
mod health_check;
mod kubernetes_port;
mod layers;
mod load;
mod log_level;
mod model;
mod print;
mod read;
mod register;
pub mod registry_url;
pub mod routes;
mod schema;
mod stored;
#[cfg(test)]
mod tests;
pub mod tree;
mod validate;
mod workers;

pub use duration::human;
pub use env::{Env, NOT_FOR_CHILDREN};
pub use error::{Errors, Fault, Faults, Path, Place, Step, shorten};
pub use layers::Overrides;
pub use load::{Input, Loaded, Origin, load};
pub use log_level::log_filter;
pub use model::*;
pub use print::{flow_scalar, print};
pub use read::read;
pub use register::NameError;
pub use schema::{SCHEMA, schema};
pub use stored::read_stored;
