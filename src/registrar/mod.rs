//! The other half of a sidecar: registers the local application once it is fit to serve, keeps its entries, and takes them
//! out before it stops.
//!
//! A task per registration ([`local`]) finds out where the application is and checks it; it has a task per registry
//! ([`keeper`]) that puts the entry in, renews it, and looks whether the registry still has it.

mod address;
mod health;
mod keeper;
#[cfg(test)]
mod keeper_tests;
mod local;
mod port;

pub use health::Health;
pub use keeper::Kept;
pub use local::Listening;
pub use port::{Listening as ListeningSocket, group_of_socket, listening_on};

use crate::{
    config::{self, Config, RegisterPort},
    registry::Registry,
    telemetry::Telemetry,
};
use arc_swap::ArcSwap;
use indexmap::IndexMap;
use local::{Local, Plan};
use std::sync::Arc;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

/// The registries by the names that the config gives them, in its order.
type Registries = IndexMap<String, Arc<dyn Registry>>;

/// What is known of one registration, for whoever asks.
#[derive(Debug, Clone)]
pub struct View {
    /// The name in the registries.
    pub name: String,
    pub id: String,
    /// The address that is registered.
    pub place: String,
    /// What is missing before it can be registered.
    pub waiting_for: Option<String>,
    pub health: Health,
    /// By registry.
    pub entries: Vec<(String, watch::Receiver<Kept>)>,
}

impl View {
    /// Whether a registry may tell others of it.
    pub fn is_listed(&self) -> bool {
        self.entries.iter().any(|(_, kept)| kept.borrow().is_listed())
    }

    /// What keeps callers from hearing of it, by registry; nothing if all of them may tell of it.
    pub fn unlisted(&self) -> Vec<String> {
        let name = &self.name;
        if let Some(problem) = &self.waiting_for {
            return vec![format!("`{name}` is not registered ({problem})")];
        }
        if !self.health.is_fit() {
            let why = self.health.failure.as_deref().unwrap_or("it was not checked yet");
            return vec![format!("`{name}` does not pass its checks ({why})")];
        }
        let unlisted = self.entries.iter().filter_map(|(registry, kept)| {
            let kept = kept.borrow();
            let why = kept.failure.as_ref().map_or_else(|| kept.state.as_str().to_owned(), ToString::to_string);
            (!kept.is_listed()).then(|| format!("`{name}` is not registered in {registry} ({why})"))
        });
        unlisted.collect()
    }
}

impl Default for View {
    fn default() -> Self {
        Self {
            name: String::new(),
            id: String::new(),
            place: String::new(),
            waiting_for: None,
            health: Health::UNKNOWN,
            entries: Vec::new(),
        }
    }
}

/// How long a registration is to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Stay,
    /// Its entries are taken out, but for those in the registries of these names: another registration writes over them.
    Leave {
        replaced: Vec<String>,
    },
    /// Its entries stay, for another process that takes them over; nobody renews them here.
    Abandon,
}

/// What others hold of the registrar.
#[derive(Clone)]
pub struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    views: Arc<ArcSwap<Vec<Arc<ArcSwap<View>>>>>,
}

enum Order {
    Set { plans: Vec<Plan>, reply: oneshot::Sender<()> },
    End { phase: Phase, reply: oneshot::Sender<()> },
}

/// The task that has all registrations. Runs until it was told to leave or to abandon them, and all have.
pub struct Registrar {
    orders: mpsc::UnboundedReceiver<Order>,
    views: Arc<ArcSwap<Vec<Arc<ArcSwap<View>>>>>,
    telemetry: Arc<Telemetry>,
    running: Vec<Running>,
    /// Those that are on their way out.
    leaving: Vec<Running>,
    tasks: JoinSet<()>,
}

struct Running {
    plan: Plan,
    phase: watch::Sender<Phase>,
    view: Arc<ArcSwap<View>>,
}

impl Handle {
    /// Registers what `config` says from now on, in place of what was registered before; what stays the same is left alone.
    /// `listeners` are those that are up.
    pub async fn set(&self, config: &Config, registries: &Registries, listeners: &[Listening]) {
        let plans = config.register.iter().filter_map(|register| plan(register, config, registries, listeners));
        let (reply, done) = oneshot::channel();
        let _ = self.orders.send(Order::Set { plans: plans.collect(), reply });
        let _ = done.await;
    }

    /// Takes all entries out. Returns when they are; give it as long as there is.
    pub async fn leave(&self) {
        self.end(Phase::Leave { replaced: Vec::new() }).await;
    }

    /// Stops renewing, and leaves the entries as they are: another process takes them over.
    pub async fn abandon(&self) {
        self.end(Phase::Abandon).await;
    }

    async fn end(&self, phase: Phase) {
        let (reply, done) = oneshot::channel();
        let _ = self.orders.send(Order::End { phase, reply });
        // An error means that it has ended already.
        let _ = done.await;
    }

    /// All registrations, in the config's order.
    pub fn views(&self) -> Vec<Arc<View>> {
        self.views.load().iter().map(|view| view.load_full()).collect()
    }
}

/// What is to be done for `register`. `None`, after a line in the log, for what only a config that was not checked can have.
fn plan(
    register: &config::Register,
    config: &Config,
    registries: &Registries,
    listeners: &[Listening],
) -> Option<Plan> {
    let name = register
        .full_name(&config.node)
        .inspect_err(|error| tracing::error!(%error, "a registration has no name"))
        .ok()?;
    let able = |name: &str| config.registries.get(name).is_some_and(config::Registry::takes_registrations);
    let named: Vec<_> = match register.registry.as_slice() {
        [] => registries.keys().filter(|name| able(name)).take(1).collect(),
        names => names.iter().collect(),
    };
    let listener = match &register.port {
        Some(RegisterPort::Listener(name)) => listeners.iter().find(|listener| listener.name == *name).cloned(),
        _ => None,
    };
    let registries = named.into_iter().filter_map(|name| registries.get(name).cloned()).collect();
    Some(Plan { register: register.clone(), node: config.node.clone(), name, registries, listener })
}

impl Registrar {
    /// A registrar without registrations, to be run, and what others hold of it.
    pub fn new(telemetry: Arc<Telemetry>) -> (Self, Handle) {
        let (orders, taken) = mpsc::unbounded_channel();
        let views = Arc::<ArcSwap<_>>::default();
        let registrar = Self {
            orders: taken,
            views: views.clone(),
            telemetry,
            running: Vec::new(),
            leaving: Vec::new(),
            tasks: JoinSet::new(),
        };
        (registrar, Handle { orders, views })
    }

    pub async fn run(mut self) {
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                Some(_) = self.tasks.join_next() => continue,
            };
            match order {
                Some(Order::Set { plans, reply }) => {
                    self.set(plans);
                    let _ = reply.send(());
                }
                Some(Order::End { phase, reply }) => {
                    match phase {
                        // Entries stay where they are when nobody keeps them.
                        Phase::Abandon => self.tasks.abort_all(),
                        _ => {
                            for running in &self.running {
                                let _ = running.phase.send(phase.clone());
                            }
                        }
                    }
                    while self.tasks.join_next().await.is_some() {}
                    let _ = reply.send(());
                    return;
                }
                None => return,
            }
        }
    }

    fn set(&mut self, plans: Vec<Plan>) {
        let mut old = std::mem::take(&mut self.running);
        self.leaving.retain(|running| !running.phase.is_closed());
        for plan in &plans {
            match old.iter().position(|running| running.plan.is_same(plan)) {
                Some(same) => self.running.push(old.remove(same)),
                None => self.start(plan.clone()),
            }
        }
        self.views.store(Arc::new(self.running.iter().map(|running| running.view.clone()).collect()));
        // These leave by themselves, and are waited for with all tasks at the end. Whatever is registered again must not be
        // taken out by those that were told to leave before.
        self.leaving.append(&mut old);
        for running in &self.leaving {
            let again = plans.iter().filter(|plan| running.plan.is_same_entry(plan));
            let replaced = again.flat_map(Plan::registry_names).collect();
            let _ = running.phase.send(Phase::Leave { replaced });
        }
    }

    fn start(&mut self, plan: Plan) {
        let (phase, told) = watch::channel(Phase::Stay);
        let view = Arc::new(ArcSwap::from_pointee(View { name: plan.name.clone(), ..View::default() }));
        let local = Local { plan: plan.clone(), phase: told, view: view.clone(), telemetry: self.telemetry.clone() };
        self.tasks.spawn(local.run());
        self.running.push(Running { plan, phase, view });
    }
}
