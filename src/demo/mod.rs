//! A first look: a registry, three services, the proxy and some traffic, all in one process.

mod samples;
mod screen;
mod tally;
mod traffic;

use crate::{
    app::App,
    config::{
        AccessLog, AccessLogMode, Admin, Balance, Config, EmbeddedRegistry, Listener, Log, Registry, Route, Service,
        Target, human,
    },
    drain::End,
    registry::embedded::Embedded,
    telemetry::log,
};
use anyhow::{bail, ensure};
use samples::{LEAVING, Sample};
use screen::Screen;
use std::{
    convert::Infallible,
    future::Future,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tally::Tally;
use tokio::{
    sync::mpsc,
    time::{Instant, interval_at, sleep, timeout},
};

/// The name of the registry in the demo's config.
const REGISTRY: &str = "demo";

/// The share of requests for the canary, in percent.
const CANARY_SHARE: u32 = 10;

/// How long the instances' news may take to the proxy at the start.
const KNOWN: Duration = Duration::from_secs(5);

/// What may take this long when the demo ends, each. Together they stay under two seconds.
const LAST_REQUESTS: Duration = Duration::from_millis(300);
const DRAIN: Duration = Duration::from_secs(1);

/// What can be chosen.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the proxy listens; port 0 is any free one, here and below.
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// Where the embedded registry's API listens.
    pub registry: SocketAddr,
    /// Stop after this time; without it, when told to.
    pub run_for: Option<Duration>,
    /// An instance leaves or dies, and returns, once in this time.
    pub churn: Duration,
    /// How the program was called, for lines to copy.
    pub program: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: Listener::egress().listen,
            admin: Admin::default().listen,
            registry: EmbeddedRegistry::default().listen,
            run_for: None,
            churn: Duration::from_secs(5),
            program: "pillion".into(),
        }
    }
}

/// What happens to the instance that comes and goes.
enum Event {
    Leaves,
    Dies,
    Returned(SocketAddr),
}

/// Runs until `stop` is ready or the time is up.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    check_ports(&options)?;
    let config = config(&options);
    let log = log::install(&config.log).map_err(anyhow::Error::msg)?;
    let app = App::start(config, log).await?;
    let (proxy, registry) = match (app.listener(&Listener::egress().name), app.embedded(REGISTRY)) {
        (Some(proxy), Some(registry)) => (proxy, registry),
        _ => bail!("the proxy or its registry did not come up"),
    };
    let mut samples = samples::start_all(&registry).await?;
    known(&app).await?;
    let mut screen = Screen::new();
    let shown = screen.say(&introduction(&options, proxy, app.admin()));
    // A reader that went away (`pillion demo | head`) ends the demo; that is no error.
    let seen = match shown {
        Ok(()) => watch(&options, &app, proxy, &registry, &mut samples, &mut screen, stop).await?,
        Err(_) => None,
    };
    let _ = screen.end_status();
    app.drain().ask(End::Quit, "the end of the demo", DRAIN);
    app.end().await;
    if let Some(closing) = seen {
        let _ = screen.say(&closing);
    }
    Ok(())
}

/// Keeps traffic and churn going and shows them. Gives the closing words, or nothing when nobody reads any more.
async fn watch(
    options: &Options,
    app: &App,
    proxy: SocketAddr,
    registry: &Arc<Embedded>,
    samples: &mut Vec<Sample>,
    screen: &mut Screen,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Option<String>> {
    let retried = || {
        let of = |name| app.telemetry().metrics.service(name).retries.total();
        samples::SERVICES.iter().map(|service| of(service.name)).sum()
    };
    let started = Instant::now();
    let (outcome, mut outcomes) = mpsc::unbounded_channel();
    let (event, mut events) = mpsc::unbounded_channel();
    let traffic = traffic::start(proxy, outcome);
    let mut tally = Tally::new(started);
    let period = screen.period();
    let mut show = interval_at(started + period, period);
    let mut churn = pin!(come_and_go(options.churn, registry, samples, event));
    let mut end = pin!(async {
        match options.run_for {
            Some(time) => tokio::select! { () = sleep(time) => {}, () = stop => {} },
            None => stop.await,
        }
    });
    loop {
        let shown = tokio::select! {
            // The end first: outcomes never stop coming.
            biased;
            () = &mut end => break,
            Err(error) = &mut churn => return Err(error),
            Some(event) = events.recv() => match event {
                Event::Leaves => {
                    tally.left(LEAVING);
                    screen.say(&format!("{} leaves: it deregisters, finishes what it has, and stops.", LEAVING.name()))
                }
                Event::Dies => {
                    tally.died(LEAVING);
                    screen.say(&format!("{} dies: its connections break off, and the registry still lists it.", LEAVING.name()))
                }
                Event::Returned(address) => {
                    tally.returned(LEAVING);
                    screen.say(&format!("{} is back, on port {}.", LEAVING.name(), address.port()))
                }
            },
            now = show.tick() => {
                tally.retried = retried();
                screen.status(tally.line(now))
            }
            Some(outcome) = outcomes.recv() => {
                tally.add(outcome);
                Ok(())
            }
        };
        if shown.is_err() {
            return Ok(None);
        }
    }
    traffic.stop();
    let last = async {
        while let Some(outcome) = outcomes.recv().await {
            tally.add(outcome);
        }
    };
    // What takes longer is not counted at all, neither as carried nor as failed.
    let _ = timeout(LAST_REQUESTS, last).await;
    tally.retried = retried();
    Ok(Some(tally.closing(started.elapsed())))
}

/// One instance leaves or dies, in turns, and returns, for ever.
async fn come_and_go(
    period: Duration,
    registry: &Arc<Embedded>,
    samples: &mut Vec<Sample>,
    events: mpsc::UnboundedSender<Event>,
) -> anyhow::Result<Infallible> {
    let mut dies = false;
    loop {
        sleep(period / 2).await;
        if let Some(at) = samples.iter().position(|sample| sample.which() == LEAVING) {
            let sample = samples.swap_remove(at);
            let _ = events.send(if dies { Event::Dies } else { Event::Leaves });
            if dies { sample.die().await } else { sample.leave(registry).await }
        }
        sleep(period / 2).await;
        let sample = Sample::start(registry, LEAVING).await?;
        let _ = events.send(Event::Returned(sample.address()));
        samples.push(sample);
        dies = !dies;
    }
}

fn config(options: &Options) -> Config {
    let registry = EmbeddedRegistry { listen: options.registry, ..EmbeddedRegistry::default() };
    Config {
        admin: Admin { listen: options.admin, ..Admin::default() },
        registries: [(REGISTRY.to_owned(), Registry::Embedded(registry))].into(),
        services: samples::SERVICES.iter().map(|sample| (sample.name.to_owned(), service(sample))).collect(),
        listeners: vec![Listener { listen: options.listen, ..Listener::egress() }],
        // The flaky instance would fill the screen.
        access_log: AccessLog { mode: AccessLogMode::Off, ..AccessLog::default() },
        // That a version has nobody yet while its instances start is no news either.
        log: Log { level: "warn,pillion::cluster::table=error".into(), ..Log::default() },
        ..Config::default()
    }
}

/// With a subset for each version, where there are several: a tenth of the requests goes to the last one.
fn service(sample: &samples::Service) -> Service {
    let versions = sample.versions();
    let subset = |version: &&str| ((*version).to_owned(), [("version".to_owned(), (*version).to_owned())].into());
    let target = |version: &&str| Target { service: None, subset: Some((*version).into()) };
    let weights = [CANARY_SHARE, 100 - CANARY_SHARE];
    let split = versions.iter().rev().map(target).zip(weights).collect();
    let route = Route { split, ..Route::default() };
    Service {
        balance: Balance { policy: sample.policy, ..Balance::default() },
        subsets: versions.iter().map(subset).collect(),
        routes: if versions.is_empty() { Vec::new() } else { vec![route] },
        ..Service::default()
    }
}

/// Waits until the proxy knows every instance, so that the first requests count like all others.
async fn known(app: &App) -> anyhow::Result<()> {
    let missing = || {
        let known = |name| app.discovery().table().get(name).map_or(0, |cluster| cluster.load().endpoints.len());
        samples::SERVICES.iter().find(|service| known(service.name) < service.len())
    };
    let start = Instant::now();
    while let Some(service) = missing() {
        ensure!(start.elapsed() < KNOWN, "the proxy does not learn of the instances of {}", service.name);
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Finds all ports that are taken, not only the first, and says how to choose others.
fn check_ports(options: &Options) -> anyhow::Result<()> {
    let (mut taken, mut other) = (String::new(), format!("{} demo", options.program));
    for (address, what, flag) in [
        (options.listen, "the proxy", "--listen"),
        (options.admin, "the admin interface", "--admin"),
        (options.registry, "the embedded registry", "--registry-listen"),
    ] {
        if let Err(error) = TcpListener::bind(address) {
            taken += &format!("  {address} for {what}: {error}; another one: {flag} IP:PORT\n");
            other += &format!(" {flag} {}:0", if address.is_ipv6() { "[::1]" } else { "127.0.0.1" });
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    bail!("the demo cannot listen where it should:\n{taken}Port 0 takes any free one:\n\n{other}")
}

fn introduction(options: &Options, proxy: SocketAddr, admin: SocketAddr) -> String {
    let rate = traffic::PER_SECOND;
    let registry = match options.registry.port() {
        0 => "in this process".to_owned(),
        _ => format!("http://{}", options.registry),
    };
    let churn = human::format(options.churn);
    let leaving = LEAVING.name();
    let services: String =
        samples::SERVICES.iter().map(|service| format!("  {:14}{}\n", service.name, service.about)).collect();
    let program = &options.program;
    let at = if admin == Admin::default().listen { String::new() } else { format!(" --admin {admin}") };
    format!(
        "pillion demo: a registry, three services, the proxy and some traffic, all in this process.\n\n\
         {services}\n\
         The instances registered themselves in the embedded registry ({registry}).\n\
         The proxy listens on {proxy}, finds them there, and carries {rate} requests per second to them.\n\
         Every {churn} {leaving} leaves or dies, and returns; no request is to fail because of that.\n\n\
         To try, in another terminal:\n\n\
         curl -s -H 'Host: user-service' http://{proxy}/\n\
         curl -s -H 'Host: web' -H 'x-version: canary' http://{proxy}/\n\
         {program} explain{at} GET http://web/\n\
         curl -s http://{admin}/metrics | grep ^pillion_requests_total\n\
         {program} services{at}\n\n\
         Now the traffic: requests per second, those that pillion failed, tries made again elsewhere,\n\
         latency, and each instance's share of its service's requests in percent. Ctrl-C stops.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_taken_port_is_named_with_its_flag_and_a_way_out() {
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = there.local_addr().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let options = Options { listen: taken, admin: any, registry: taken, ..Options::default() };
        let error = check_ports(&options).unwrap_err().to_string();
        for expected in [
            format!("{taken} for the proxy: "),
            "another one: --listen IP:PORT\n".into(),
            format!("{taken} for the embedded registry: "),
            "another one: --registry-listen IP:PORT\n".into(),
        ] {
            assert!(error.contains(&expected), "{expected}\n{error}");
        }
        assert!(error.ends_with("\npillion demo --listen 127.0.0.1:0 --registry-listen 127.0.0.1:0"), "{error}");
        assert!(check_ports(&Options { listen: any, admin: any, registry: any, ..options }).is_ok());
    }
}
