//! Import of routes that were written for others: Istio's `VirtualService` and `DestinationRule`, and the Gateway API's
//! `HTTPRoute`, become pillion's config ([`import`]). What cannot be carried over, or means something slightly different,
//! is told with its place ([`Note`]); nothing is left out in silence.
//!
//! files → [`object`]s → [`istio`], [`gateway_api`] → [`services`] → text, which the config's own loader must accept.

mod common;
mod duration;
mod gateway_api;
mod istio;
mod name;
mod object;
mod output;
mod reader;
mod services;
#[cfg(test)]
mod tests;

pub use object::Source;
pub use reader::Note;

use crate::config::{Errors, Faults, Path, Place};
use name::Names;
use object::Kind;
use reader::Log;
use services::Services;

/// What is to be known besides the files.
#[derive(Debug, Clone)]
pub struct Options {
    /// Services of this namespace are called by their names alone, all others `NAME.NAMESPACE`.
    pub namespace: String,
    /// Registries for the config, as URLs.
    pub registries: Vec<String>,
}

/// What has come out.
#[derive(Debug)]
pub struct Imported {
    /// A config that pillion takes.
    pub config: String,
    /// In the order of the files.
    pub notes: Vec<Note>,
}

/// Reads the sources and makes one config of all of them. Fails if one cannot be read, with all that is wrong.
pub fn import(sources: &[Source], options: &Options) -> Result<Imported, Vec<Errors>> {
    let names = Names::new(&options.namespace);
    let objects = object::read(sources, &names)?;
    if objects.iter().all(|object| matches!(object.kind, Kind::Gateway | Kind::Other)) {
        return nothing(sources).map_err(|error| vec![error]);
    }
    let mut log = Log::new(sources);
    let mut services = Services::default();
    for object in &objects {
        let at = object.root();
        match object.kind {
            Kind::VirtualService => istio::virtual_service(&at, &names, &mut services, &mut log),
            Kind::DestinationRule => istio::destination_rule(&at, &names, &mut services, &mut log),
            Kind::HttpRoute => gateway_api::http_route(&at, &names, &objects, &mut services, &mut log),
            Kind::Gateway => gateway_api::gateway(&at, &mut log),
            Kind::Other => log.note(
                &at,
                "this kind of object is not imported; only VirtualService, DestinationRule and HTTPRoute are",
            ),
        }
    }
    log.failed()?;
    services.finish(&mut log);
    let config = output::config(services, sources, &options.registries, &mut log)?;
    Ok(Imported { config, notes: log.into_notes() })
}

fn nothing(sources: &[Source]) -> Result<Imported, Errors> {
    let mut faults = Faults::default();
    let message = "there is nothing to import; expected a VirtualService, a DestinationRule or an HTTPRoute";
    faults.add(Place::Whole, Path::default(), message);
    faults.or(sources.first().map(|source| source.name.as_str()), None)
}
