//! One registration: finds out where the local application is, checks it, and has a keeper per registry.

use super::{
    Phase, View,
    address::Machine,
    health::{Checks, Health},
    keeper::{Keeper, Kept, Wanted},
    port,
};
use crate::{
    config::{self, RegisterAddress, RegisterPort},
    registry::{Address, Instance, Registration, Registry, TAG},
    telemetry::{Telemetry, labels::RegistrationState},
};
use arc_swap::ArcSwap;
use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};

/// How often a file with a port, or a process that is to listen, is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How long until it is tried again to find out which address this machine has.
const ADDRESS: Duration = Duration::from_secs(5);

/// A listener of pillion's whose port can be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    pub name: String,
    pub bound: SocketAddr,
    /// The application behind it.
    pub app: Option<SocketAddr>,
}

/// All that makes a registration what it is. One that is the same after a reload is left alone.
#[derive(Clone)]
pub struct Plan {
    pub register: config::Register,
    pub node: config::Node,
    /// The name in the registries.
    pub name: String,
    pub registries: Vec<Arc<dyn Registry>>,
    /// The listener whose port is registered, if it is one's.
    pub listener: Option<Listening>,
}

impl Plan {
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<dyn Registry>, &Arc<dyn Registry>)| Arc::ptr_eq(a, b);
        self.register == other.register
            && self.node == other.node
            && self.name == other.name
            && self.listener == other.listener
            && self.registries.len() == other.registries.len()
            && self.registries.iter().zip(&other.registries).all(same)
    }

    /// Whether `other` puts the same entry, in whatever registries and perhaps with another content.
    pub fn is_same_entry(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.register, &other.register);
        self.name == other.name
            && ours.id == theirs.id
            && ours.address == theirs.address
            && ours.port == theirs.port
            && self.listener == other.listener
    }

    pub fn registry_names(&self) -> impl Iterator<Item = String> {
        self.registries.iter().map(|registry| registry.name().to_owned())
    }
}

/// Where the application is, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    host: String,
    port: u16,
}

/// One registration at work.
pub struct Local {
    pub plan: Plan,
    pub phase: watch::Receiver<Phase>,
    pub view: Arc<ArcSwap<View>>,
    pub telemetry: Arc<Telemetry>,
}

impl Local {
    /// Ends when it is told to, and has left.
    pub async fn run(mut self) {
        // Keepers of places where the application was before.
        let mut leaving = Keepers::default();
        loop {
            let mut phase = self.phase.clone();
            let place = tokio::select! {
                place = self.locate() => place,
                _ = phase.wait_for(|phase| *phase != Phase::Stay) => break,
            };
            let (keepers, moved) = self.serve(&place).await;
            leaving.absorb(keepers);
            if !moved {
                break;
            }
            tracing::info!(service = self.plan.name, "the application moved; it is registered anew");
        }
        loop {
            match &*self.phase.borrow_and_update() {
                // Without keepers the entries stay where they are.
                Phase::Abandon => return,
                Phase::Leave { replaced } => leaving.leave(replaced),
                Phase::Stay => {}
            }
            tokio::select! {
                () = leaving.ended() => return,
                changed = self.phase.changed() => if changed.is_err() {
                    return leaving.ended().await;
                },
            }
        }
    }

    /// Keeps it registered at `place`, until it is told to end or the application is somewhere else (true). Gives the
    /// keepers, which are to be told what comes next.
    async fn serve(&mut self, place: &Place) -> (Keepers, bool) {
        let mut keepers = Keepers::default();
        let Some(registration) = self.registration(place) else {
            let _ = self.phase.wait_for(|phase| *phase != Phase::Stay).await;
            return (keepers, false);
        };
        let registration = Arc::new(registration);
        let (checked, mut health) = watch::channel(Health::UNKNOWN);
        let mut all = Vec::new();
        for registry in &self.plan.registries {
            let (kept, seen) = watch::channel(Kept::default());
            all.push((registry.name().to_owned(), seen.clone()));
            match registry.clone().entry(registration.clone()) {
                Ok(entry) => {
                    let (id, ttl) = (&registration.instance.id, registration.ttl);
                    let ttl_left = move || {
                        let renewed = seen.borrow().renewed;
                        renewed.map(|renewed| (renewed + ttl).saturating_duration_since(Instant::now()))
                    };
                    let metrics = self.telemetry.metrics.registration(&self.plan.name, registry.name(), id, ttl_left);
                    let (wanted, told) = watch::channel(Wanted::Absent);
                    let (registration, health) = (registration.clone(), health.clone());
                    let registry = registry.name().to_owned();
                    let name = registry.clone();
                    let keeper = Keeper { registration, registry, entry, wanted: told, health, kept, metrics };
                    keepers.add(name, wanted, keeper);
                }
                Err(error) => {
                    tracing::error!(registry = registry.name(), service = self.plan.name, %error, "cannot register");
                    kept.send_modify(|kept| {
                        kept.state = RegistrationState::Failing;
                        kept.failure = Some(error);
                    });
                }
            }
        }
        let checks = self.checks(place);
        let mut checking = JoinSet::new();
        checking.spawn(checks.run(checked));
        let show = |health: Health| View {
            name: self.plan.name.clone(),
            place: format!("{}", registration.instance.address),
            id: registration.instance.id.clone(),
            waiting_for: None,
            health,
            entries: all.clone(),
        };
        self.view.store(Arc::new(show(Health::UNKNOWN)));
        let mut phase = self.phase.clone();
        let moved = loop {
            tokio::select! {
                Ok(()) = health.changed() => {
                    let seen = health.borrow_and_update().clone();
                    self.tell(&seen);
                    keepers.tell(if seen.is_fit() { Wanted::Fit } else { Wanted::Unfit });
                    self.view.store(Arc::new(show(seen)));
                }
                () = self.moved(place) => break true,
                _ = phase.wait_for(|phase| *phase != Phase::Stay) => break false,
            }
        };
        if moved {
            // They need not be waited for before it is registered where it is now.
            keepers.leave(&[]);
        }
        (keepers, moved)
    }

    fn tell(&self, seen: &Health) {
        let before = self.view.load();
        let service = &self.plan.name;
        match (before.health.is_fit(), seen.is_fit(), &seen.failure) {
            (false, true, _) => tracing::info!(service, "the application passes its checks"),
            (true, false, Some(failure)) => tracing::warn!(service, failure, "the application fails its checks"),
            (false, false, Some(failure)) if before.health.failure.as_ref() != Some(failure) => {
                tracing::info!(service, failure, "the application does not pass its checks yet");
            }
            _ => {}
        }
    }

    /// Waits until it is known where the application is.
    async fn locate(&self) -> Place {
        let mut told = None;
        loop {
            let (problem, wait) = match self.look() {
                Ok(Some(place)) => return place,
                Ok(None) => (self.awaited(), LOOK),
                Err(problem) => (problem, ADDRESS),
            };
            if told.as_ref() != Some(&problem) {
                tracing::warn!(service = self.plan.name, "cannot register yet: {problem}");
                let view = View { name: self.plan.name.clone(), waiting_for: Some(problem.clone()), ..View::default() };
                self.view.store(Arc::new(view));
                told = Some(problem);
            }
            sleep(wait).await;
        }
    }

    /// Where it is now; `None`: nowhere yet.
    fn look(&self) -> Result<Option<Place>, String> {
        let Some(port) = self.port()? else { return Ok(None) };
        let machine = Machine::here().map_err(|error| format!("this machine's addresses cannot be read: {error}"))?;
        Ok(Some(Place { host: machine.choose(&self.plan.register.address)?, port }))
    }

    fn port(&self) -> Result<Option<u16>, String> {
        match &self.plan.register.port {
            None => Err("it has no `port`".into()),
            Some(RegisterPort::Number(number)) => Ok(Some(number.get())),
            Some(RegisterPort::Env(name)) => port::in_variable(name, std::env::var(name).ok().as_deref()).map(Some),
            Some(RegisterPort::File(path)) => port::in_file(path),
            Some(RegisterPort::Listener(_)) => Ok(self.plan.listener.as_ref().map(|listener| listener.bound.port())),
            Some(RegisterPort::PidFile(path)) => {
                port::process_in_file(path)?.map_or(Ok(None), |id| self.of_process(id))
            }
            Some(RegisterPort::Pid(id)) => self.of_process(*id),
            Some(RegisterPort::Command) => Ok(None),
        }
    }

    fn of_process(&self, id: u32) -> Result<Option<u16>, String> {
        let ports = port::of_process(id).map_err(|error| format!("the process {id} cannot be looked at: {error}"))?;
        match (ports.for_all, ports.loopback, &self.plan.register.address) {
            (Some(port), ..) => Ok(Some(port)),
            (None, Some(port), RegisterAddress::Host(_)) => Ok(Some(port)),
            (None, Some(port), _) => Err(format!(
                "the process {id} listens on a loopback address only (port {port}), which others cannot reach; expected \
                 another address there, or `register[].address`"
            )),
            (None, None, _) => Ok(None),
        }
    }

    fn awaited(&self) -> String {
        match &self.plan.register.port {
            Some(RegisterPort::File(path)) => format!("there is no port in `{}` yet", path.display()),
            Some(RegisterPort::PidFile(path)) => format!("the process of `{}` does not listen yet", path.display()),
            Some(RegisterPort::Pid(id)) => format!("the process {id} does not listen yet"),
            Some(RegisterPort::Command) => {
                "no command runs, on whose port it would be (`pillion register … -- COMMAND`)".into()
            }
            _ => "its port is not known yet".into(),
        }
    }

    /// Waits until the application is somewhere else than at `place`. That it is nowhere is for the checks to see.
    async fn moved(&self, place: &Place) {
        let register = &self.plan.register;
        let port_moves =
            matches!(register.port, Some(RegisterPort::File(_) | RegisterPort::PidFile(_) | RegisterPort::Pid(_)));
        let host_moves = !matches!(register.address, RegisterAddress::Host(_));
        if !port_moves && !host_moves {
            return pending().await;
        }
        loop {
            sleep(if port_moves { 4 * LOOK } else { ADDRESS }).await;
            if let Ok(Some(there)) = self.look()
                && there != *place
            {
                return;
            }
        }
    }

    fn checks(&self, place: &Place) -> Checks {
        let (register, listener) = (&self.plan.register, &self.plan.listener);
        let behind = listener.as_ref().and_then(|listener| listener.app);
        let host = register.health.host.clone().or_else(|| behind.map(|app| app.ip().to_string()));
        let host = host.unwrap_or_else(|| "127.0.0.1".into());
        let port = register.health.port.map(|port| port.get()).or_else(|| behind.map(|app| app.port()));
        let port = port.unwrap_or(place.port);
        // What is no address was refused with the config, and port 0 with the place.
        let address = Address::new(&host, port).unwrap_or(Address::Name { host, port });
        Checks::new(&self.plan.name, &register.health, address, register.protocol)
    }

    /// What others are to find. `None`, after a line in the log: the address is none.
    fn registration(&self, place: &Place) -> Option<Registration> {
        let Plan { register, node, name, .. } = &self.plan;
        let address = Address::new(&place.host, place.port)
            .inspect_err(|error| tracing::error!(service = name, %error, "cannot register"))
            .ok()?;
        let id = register.id.clone().unwrap_or_else(|| {
            let host: String = place.host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            format!("{name}-{}-{}", host.trim_matches('-'), place.port)
        });
        let mut instance = Instance::new(id, address);
        instance.weight = register.weight.unwrap_or(Instance::DEFAULT_WEIGHT);
        instance.zone = register.zone.clone().or_else(|| node.zone.clone());
        instance.protocol = register.protocol;
        instance.tls = register.tls.then_some(true);
        instance.labels = register.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        for tag in &register.tags {
            instance.labels.insert(format!("{TAG}{tag}"), "true".into());
        }
        if let Some(version) = register.version.as_ref().or(node.version.as_ref()) {
            instance.labels.insert("version".into(), version.clone());
        }
        Some(Registration { service: name.clone(), instance, ttl: register.ttl, asked: register.clone() })
    }
}

/// The keepers of one place.
#[derive(Default)]
struct Keepers {
    told: Vec<Told>,
    tasks: JoinSet<()>,
}

struct Told {
    registry: String,
    wanted: watch::Sender<Wanted>,
    task: AbortHandle,
}

impl Keepers {
    fn add(&mut self, registry: String, wanted: watch::Sender<Wanted>, keeper: Keeper) {
        let task = self.tasks.spawn(keeper.run());
        self.told.push(Told { registry, wanted, task });
    }

    fn tell(&self, want: Wanted) {
        for Told { wanted, .. } in &self.told {
            wanted.send_if_modified(|wanted| std::mem::replace(wanted, want) != want);
        }
    }

    /// Takes the entries out, but for those in these registries, which somebody else keeps from now on.
    fn leave(&self, but: &[String]) {
        self.tell(Wanted::Gone);
        self.told.iter().filter(|told| but.contains(&told.registry)).for_each(|told| told.task.abort());
    }

    /// Adds those of another place. Theirs are gone on with until they end.
    fn absorb(&mut self, mut other: Self) {
        self.told.append(&mut other.told);
        self.tasks.spawn(async move { while other.tasks.join_next().await.is_some() {} });
    }

    async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
