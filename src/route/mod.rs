//! Where a request goes: the service that it is for ([`service`]), and which of that service's [`Route`]s it takes, with a
//! [`Split`] between versions where the route has one. All of it is worked out from the config once; what a request needs is
//! only read, without a lock and without memory of its own, but for what is percent-encoded in its baggage.

mod baggage;
mod condition;
mod cookie;
#[cfg(test)]
mod cost_tests;
mod edit;
mod hops;
mod mirror;
mod name;
mod place;
mod split;
mod table;
#[cfg(test)]
mod tests;
mod version;

pub use baggage::Baggage;
pub use condition::{Asked, Miss, X_PILLION_CALLER, caller_name, is_grpc};
pub use cookie::cookie;
pub use edit::Edit;
pub use hops::{MOST_SERVICES, too_many};
pub use mirror::Mirror;
pub use name::{Named, Rule, authority, is_host, service};
pub use place::{Redirect, Rewrite, X_FORWARDED_HOST, X_FORWARDED_PROTO};
pub use split::{KeyFrom, Split};
pub use table::{Action, Route, Table, Target};
pub use version::{Marking, Version};
